"""One story object of the runtime: typed, within a budget, and honest about panics.

Everything about the `bink` package stays in this file. A machine that failed is `broken` and must
be thrown away: after a panic or an unfinished line the object's inner state is unknown.
"""

import math
import re
import struct
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from bink.story import Story
from bink.value import InkList

from worker.ink.errors import (
    BudgetExceededError,
    EngineCrashedError,
    ExternalFailedError,
    ExternalMissingError,
    InkError,
    PathNotFoundError,
    SaveInvalidError,
    StoryFailedError,
    StoryInvalidError,
    VariableInvalidError,
)

InkValue = bool | int | float | str | tuple[str, ...] | None
"""A value of a variable. A tuple holds the full names of an ink list's items, lowest first; None
stands for what has no value outside of ink (a divert target)."""

ExternalFunction = Callable[..., bool | int | float | str | None]
"""Called with ink's values by position."""

_INT32: Final = range(-(2**31), 2**31)
_FLOAT32_MAX: Final = 3.4e38  # what other runtimes save for infinity
_HALF_CHARACTER: Final = re.compile("[\ud800-\udfff]")
_RAN_OUT: Final = "ran out of content"


@dataclass(frozen=True)
class Budget:
    """What one turn may use: CPU time, lines and characters of text, characters of save.

    No wall-clock time: a story is not to fail because the machine is busy or stood still.
    """

    milliseconds: float = 500.0
    lines: int = 300
    characters: int = 200_000
    save_characters: int = 4_000_000


@dataclass(frozen=True)
class InkLine:
    """One line of the story's text, without its line end, and its tags."""

    text: str
    tags: tuple[str, ...] = ()


class Machine:
    """A story object with `externals`, the names of functions that the caller will give, bound."""

    def __init__(self, compiled: str, externals: Collection[str]) -> None:
        self.broken = False
        self.warnings: list[str] = []
        self._errors: list[str] = []
        self._functions: Mapping[str, ExternalFunction] = {}
        self._failure: tuple[str, Exception] | None = None
        try:
            self._story: Any = Story(compiled)
            self._story.set_error_handler(self._note)
            self._story.set_allow_external_function_fallbacks(True)
            for name in externals:
                # Never while looking ahead: a die that was thrown stays thrown.
                self._story.bind_external_function(name, self._call)
        except RuntimeError as error:
            raise StoryInvalidError(_load_failure(str(error))) from None

    @property
    def global_tags(self) -> tuple[str, ...]:
        """The tags at the top of the story."""
        return tuple(self._story.get_global_tags())

    def load(self, state: str) -> None:
        """Replace the whole state; raises SaveInvalidError."""
        try:
            with self._guard():
                self._story.load_state(state)
        except InkError as error:
            raise SaveInvalidError(f"the save does not fit this story: {error}") from None
        self.warnings.clear()
        self._errors.clear()
        self._failure = None

    def state(self) -> str:
        """The whole state as JSON in ink's own format."""
        with self._guard():
            return str(self._story.save_state())

    def lines(self, functions: Mapping[str, ExternalFunction], budget: Budget) -> Iterator[InkLine]:
        """Continue to the next choices or the end.

        Raises BudgetExceededError, ExternalFailedError, ExternalMissingError, StoryFailedError or
        EngineCrashedError; after each of them the machine is broken.
        """
        self._functions = functions
        began = time.thread_time()
        lines = characters = 0
        with self._guard():
            while self._story.can_continue():
                self._spend(lines < budget.lines, f"more than {budget.lines} lines in one turn")
                self._continue(began, budget)
                text = str(self._story.current_text).removesuffix("\n")
                lines, characters = lines + 1, characters + len(text)
                self._spend(
                    characters <= budget.characters, f"more than {budget.characters} characters"
                )
                yield InkLine(text, tuple(self._story.tags))

    def choices(self) -> tuple[InkLine, ...]:
        """The visible choices' texts and tags."""
        with self._guard():
            choices = self._story.choices
            return tuple(
                InkLine(text, tuple(choices.get_tags(i))) for i, text in enumerate(choices)
            )

    def choose(self, index: int) -> None:
        """Take one of the visible choices."""
        with self._guard():
            self._story.choose_choice_index(index)

    def jump(self, path: str) -> None:
        """Go to a knot or stitch; raises PathNotFoundError."""
        try:
            with self._guard():
                self._story.choose_path_string(path)
        except StoryFailedError:
            raise PathNotFoundError(f"the story has no path {path!r}") from None

    def switch_flow(self, name: str | None) -> None:
        """Go on in the named flow, or in the default one."""
        with self._guard():
            if name is None:
                self._story.switch_to_default_flow()
            else:
                self._story.switch_flow(name)

    def get(self, name: str) -> InkValue:
        """The value of a declared variable."""
        with self._guard():
            try:
                value = self._story.get_variable(name)
            except TypeError:  # a divert target
                return None
        if isinstance(value, InkList):
            return in_order(value.items)
        return shortest(value) if isinstance(value, float) else value

    def set(self, name: str, value: InkValue, items: Mapping[str, int]) -> None:
        """Set a declared variable; `items` has the number of every list item that the story knows.

        Raises VariableInvalidError.
        """
        sendable = _sendable(name, value, items)
        with self._guard():
            self._story.set_variable(name, sendable)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            self.broken = True
            raise _translated(str(error)) from None
        except BaseException:  # an interrupt leaves a line unfinished, too
            self.broken = True
            raise

    def _spend(self, within: bool, excess: str) -> None:
        if not within:
            raise BudgetExceededError(excess)

    def _continue(self, began: float, budget: Budget) -> None:
        done = False
        while not done:
            left = budget.milliseconds - (time.thread_time() - began) * 1000
            self._spend(left > 0, f"a turn took longer than {budget.milliseconds:g} ms")
            # It ends after so much time of the clock, of which the story may have had but a part.
            done = self._story.continue_async(left)
        if self._failure is not None:
            name, cause = self._failure
            raise ExternalFailedError(f"external function {name!r} failed: {cause}") from cause
        if self._errors:
            raise StoryFailedError("; ".join(self._errors))

    def _note(self, message: str, is_error: bool) -> None:
        text = message.removeprefix("RUNTIME ERROR: ").removeprefix("RUNTIME WARNING: ")
        # A knot without an end has still told its text: the player reads it and the story is over.
        (self._errors if is_error and _RAN_OUT not in text else self.warnings).append(text)

    # The runtime swallows what a callback raises: the first one is kept for the end of the line.
    def _call(self, name: str, *arguments: Any) -> bool | int | float | str | None:
        if self._failure is not None:
            return 0
        try:
            result = self._functions[name](*arguments)
            return None if result is None else _checked_scalar(name, result)
        except Exception as error:  # noqa: BLE001 - any code of the caller's; raised again as ExternalFailedError
            self._failure = name, error
            return 0


def _translated(message: str) -> InkError:
    if "panic" in message:
        return EngineCrashedError(
            "the runtime panicked, as it does when a whole number is divided by 0"
        )
    if "Missing function binding" in message:
        return ExternalMissingError(
            message.removeprefix("Invalid story state: ").removeprefix("ERROR: ")
        )
    return StoryFailedError(message)


def _load_failure(message: str) -> str:
    if "recursion limit" in message or "not in JSON" in message or "not valid JSON" in message:
        return (
            f"the compiled story cannot be read, perhaps because it is nested too deep: {message}"
        )
    return f"the compiled story cannot be loaded: {message}"


def _sendable(name: str, value: InkValue, items: Mapping[str, int]) -> Any:
    if isinstance(value, tuple):
        if unknown := [item for item in value if item not in items]:
            raise VariableInvalidError(f"{name}: the story has no list item {unknown[0]!r}")
        return InkList([(item, items[item]) for item in value])
    try:
        return _checked_scalar(name, value)
    except (TypeError, ValueError) as error:
        raise VariableInvalidError(str(error)) from None


def _checked_scalar(name: str, value: object) -> bool | int | float | str:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if value not in _INT32:
            raise ValueError(f"{name}: {value} does not fit into 32 bits")
        return value
    if isinstance(value, float):
        if not abs(value) <= _FLOAT32_MAX:
            raise ValueError(f"{name}: {value} is not a number that ink can hold")
        return value
    if isinstance(value, str):
        if "\0" in value or _HALF_CHARACTER.search(value):
            raise ValueError(f"{name}: text with NUL or half a character")
        return value
    raise TypeError(f"{name}: ink cannot hold a value of type {type(value).__name__}")


def in_order(items: Iterable[tuple[str, int]]) -> tuple[str, ...]:
    """The names of a list's items, given with their numbers, lowest first."""
    return tuple(name for name, _ in sorted(items, key=lambda item: (item[1], item[0])))


def shortest(value: float) -> float:
    """The decimal number of fewest digits that is the same 32-bit float: 0.1, not 0.10000000149."""
    if math.isnan(value):
        return 0.0
    if abs(value) > _FLOAT32_MAX:
        return math.copysign(_FLOAT32_MAX, value)
    for digits in range(1, 9):
        short = float(f"{value:.{digits}g}")
        if struct.pack("f", short) == struct.pack("f", value):
            return short
    return value
