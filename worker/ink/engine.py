"""Plays a compiled story turn by turn; all that lasts between turns is in the save a turn returns.

One engine per process and story serves every session. A turn takes about 0.3 ms, one that uses up
its budget as long as the budget says. A story that could kill or stop the process that plays it is
played in one of its own, which takes about 0.1 s for a turn.
"""

import hashlib
import json
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from worker.ink import cell
from worker.ink.cell import CellLimits
from worker.ink.errors import (
    BudgetExceededError,
    ChoiceNotFoundError,
    ExternalMissingError,
    SaveInvalidError,
    StoryInvalidError,
    VariableInvalidError,
)
from worker.ink.machine import (
    Budget,
    ExternalFunction,
    InkLine,
    InkValue,
    Machine,
    in_order,
    shortest,
)

DEFAULT_FLOW: Final = "DEFAULT_FLOW"

TURN_LIMITS: Final = CellLimits(seconds=60.0, cpu_seconds=5, memory_bytes=512 << 20)
"""What a turn in a process of its own may use. It ends by its CPU time; the clock is for one that
only waits, and far off, for a story is not to fail because the machine is busy."""

# Keys of ours in a save. Ink's own format stays whole around them; other runtimes pass over them.
_STORY_KEY: Final = "firesideStory"
_FLOW_KEY: Final = "firesideFlow"
_SEEDS: Final = 2**31
_INVISIBLE: Final = 8  # a bit of a choice point's "flg"


@dataclass(frozen=True)
class Choice:
    """One choice; `id` is the same whenever the same choice of this story is offered."""

    id: str
    index: int
    text: str
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Turn:
    """What one turn brought: text, the open choices, every variable, the save to go on from."""

    lines: tuple[InkLine, ...]
    choices: tuple[Choice, ...]
    variables: Mapping[str, InkValue]
    save: str
    ended: bool
    warnings: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The lines joined."""
        return "\n".join(line.text for line in self.lines)


class InkEngine:
    """A compiled story; `hash` marks its saves (by default the SHA-256 of the compiled text).

    Its turns are `contained` in processes of their own, within `limits`, if the story needs it,
    and always or never if the caller says so. Raises StoryInvalidError when the compiled text
    cannot be loaded.
    """

    def __init__(
        self,
        compiled: str,
        *,
        story_hash: str | None = None,
        budget: Budget | None = None,
        contained: bool | None = None,
        limits: CellLimits = TURN_LIMITS,
    ) -> None:
        self._compiled = compiled.removeprefix("\ufeff")
        self._content = _Content(self._compiled)
        self.hash = story_hash or hashlib.sha256(self._compiled.encode()).hexdigest()
        self.budget = budget or Budget()
        self.contained = self._content.refers_to_itself if contained is None else contained
        self._limits = limits
        self.variable_names = self._content.variables
        self.external_names = self._content.externals
        self._lock = threading.Lock()
        self._bound: frozenset[str] = frozenset()
        machine = Machine(self._compiled, self._bound)
        self._machine: Machine | None = machine
        self._blank = machine.state()
        self._defaults = {name: machine.get(name) for name in self.variable_names}
        self.tags = machine.global_tags

    @property
    def metadata(self) -> Mapping[str, str]:
        """The story's global tags as `metadata_of` reads them."""
        return metadata_of(self.tags)

    @property
    def externals_without_fallback(self) -> frozenset[str]:
        """The external functions that every caller of `advance` must give."""
        return self.external_names - self._content.functions

    @property
    def public_names(self) -> tuple[str, ...]:
        """The variables that a player may see: those of the tag `# public: a, b`."""
        listed = (name.strip() for name in self.metadata.get("public", "").split(","))
        return tuple(name for name in listed if name in self.variable_names)

    def advance(
        self,
        save: str | None = None,
        choice_id: str | None = None,
        *,
        variables: Mapping[str, InkValue] | None = None,
        functions: Mapping[str, ExternalFunction] | None = None,
        seed: int | None = None,
        path: str | None = None,
        flow: str | None = None,
    ) -> Turn:
        """Play one turn from `save`, or from the beginning.

        With neither `choice_id` nor `path` it continues, which after a finished turn brings no
        lines and the same choices. `variables` are set first. `seed` fixes the story's dice from
        here on; a new game without one gets its own, and one save always throws the same dice.
        `flow` moves to a named flow (DEFAULT_FLOW is the main one); without it the save's own goes
        on.

        Raises every InkError but those of compiling and of the library; the save stays usable.
        """
        given = functions or {}
        if self.contained:
            how = {"choice_id": choice_id, "variables": variables, "seed": seed}
            return self._contained_turn({"save": save, "path": path, "flow": flow, **how}, given)
        with self._lock:
            machine = self._ready(frozenset(given) & self.external_names)
            state = self._opened(save, seed)
            flow = flow or state.flow
            index = None if choice_id is None else state.index_of(choice_id, flow)
            try:
                machine.load(state.json())
                if flow != DEFAULT_FLOW:
                    machine.switch_flow(flow)
                for name, value in (variables or {}).items():
                    self._set(machine, name, value)
                if index is not None:
                    machine.choose(index)
                elif path is not None:
                    machine.jump(path)
                lines = machine.lines(given, self.budget)
                told = tuple(line for line in lines if line.text or line.tags)
                return self._turn(machine, told, flow)
            finally:
                if machine.broken:
                    self._machine = None

    def _contained_turn(
        self, turn: Mapping[str, Any], functions: Mapping[str, ExternalFunction]
    ) -> Turn:
        request = {
            "compiled": self._compiled,
            "story_hash": self.hash,
            "budget": asdict(self.budget),
            "functions": sorted(functions),
            "turn": turn,
        }
        return _told(cell.run("turn", request, limits=self._limits, functions=functions))

    def _ready(self, bound: frozenset[str]) -> Machine:
        if missing := self.externals_without_fallback - bound:
            raise ExternalMissingError(f"the story calls {', '.join(sorted(missing))}")
        if self._machine is None or self._bound != bound:
            self._machine, self._bound = Machine(self._compiled, bound), bound
        return self._machine

    def _opened(self, save: str | None, seed: int | None) -> "_Save":
        opened = _Save(self._blank if save is None else save, self._content, self.hash)
        if save is None and seed is None:
            seed = secrets.randbelow(_SEEDS)
        if seed is not None:
            opened.reseed(seed % _SEEDS)
        return opened

    def _set(self, machine: Machine, name: str, value: InkValue) -> None:
        if name not in self.variable_names:
            raise VariableInvalidError(f"the story declares no variable {name!r}")
        machine.set(name, value, self._content.list_items)

    def _turn(self, machine: Machine, lines: tuple[InkLine, ...], flow: str) -> Turn:
        shown = machine.choices()
        # A freshly entered flow loses its choices when it is saved as the current one: the default
        # flow is current in every save, and a key of ours says where the player is.
        if flow != DEFAULT_FLOW:
            machine.switch_flow(None)
        state = _Save(machine.state(), self._content, self.hash)
        state.stamp(flow)
        state.fill_holes(machine.get)
        variables = {**self._defaults, **state.variables()}
        choices = tuple(
            Choice(name, index, line.text, line.tags)
            for index, (name, line) in enumerate(zip(state.choice_ids(flow), shown, strict=True))
        )
        save = state.json()
        if len(save) > self.budget.save_characters:
            raise BudgetExceededError(f"a save of over {self.budget.save_characters} characters")
        return Turn(lines, choices, variables, save, not choices, tuple(machine.warnings))


def metadata_of(tags: Iterable[str]) -> Mapping[str, str]:
    """The tags of the form `name: value`, names in lower case; of two with one name, the first."""
    metadata: dict[str, str] = {}
    for name, colon, value in (tag.partition(":") for tag in tags):
        if colon:
            metadata.setdefault(name.strip().lower(), value.strip())
    return metadata


def _told(answer: Mapping[str, Any]) -> Turn:
    """A turn as it came out of its process: JSON has no tuples."""
    return Turn(
        lines=tuple(InkLine(line["text"], tuple(line["tags"])) for line in answer["lines"]),
        choices=tuple(
            Choice(**choice | {"tags": tuple(choice["tags"])}) for choice in answer["choices"]
        ),
        variables={
            name: tuple(value) if isinstance(value, list) else value
            for name, value in answer["variables"].items()
        },
        save=answer["save"],
        ended=answer["ended"],
        warnings=tuple(answer["warnings"]),
    )


class _Save:
    """A save opened for reading and for the changes that it needs; raises SaveInvalidError."""

    def __init__(self, text: str, content: "_Content", story: str) -> None:
        self._story = story
        try:
            self._state: dict[str, Any] = json.loads(text)
            saved_story = self._state.pop(_STORY_KEY, story)
            self.flow = str(self._state.pop(_FLOW_KEY, DEFAULT_FLOW))
            if saved_story == story:
                self._tidy(content)
        except (ValueError, RecursionError):
            raise SaveInvalidError("the save is not JSON") from None
        except (LookupError, TypeError, AttributeError):
            raise SaveInvalidError("this is not a whole save of this story") from None
        if saved_story != story:
            raise SaveInvalidError(f"the save is of another story or version, {saved_story}")

    def json(self) -> str:
        """The save as it is now."""
        return json.dumps(self._state, ensure_ascii=False, separators=(",", ":"))

    def choice_ids(self, flow: str) -> tuple[str, ...]:
        """The stable ids of the flow's open choices, in their order."""
        seen: Counter[str] = Counter()
        return tuple(_numbered(path, seen) for path in self._paths(flow))

    def index_of(self, choice_id: str, flow: str) -> int:
        """The place of an open choice; raises ChoiceNotFoundError."""
        ids = self.choice_ids(flow)
        if choice_id not in ids:
            offered = ", ".join(ids) or "none"
            raise ChoiceNotFoundError(f"no choice {choice_id!r} now; there are: {offered}")
        return ids.index(choice_id)

    def reseed(self, seed: int) -> None:
        """Throw other dice from here on."""
        self._state["storySeed"], self._state["previousRandom"] = seed, 0

    def stamp(self, flow: str) -> None:
        """Say whose save this is and in which flow its player is."""
        self._state[_STORY_KEY], self._state[_FLOW_KEY] = self._story, flow

    def fill_holes(self, current: Callable[[str], InkValue]) -> None:
        """Put numbers where the runtime wrote null for infinity, which it could not load again."""
        saved = self._state["variablesState"]
        saved.update({name: current(name) for name, token in saved.items() if token is None})

    def variables(self) -> dict[str, InkValue]:
        """The variables that are not as the story declares them."""
        return {name: _value(token) for name, token in self._state["variablesState"].items()}

    def _paths(self, flow: str) -> Iterator[str]:
        choices = self._state["flows"].get(flow, {}).get("currentChoices", ())
        return (str(choice["targetPath"]) for choice in choices)

    # A save forgets that a fallback choice is invisible, and it would come back as an empty one. It
    # has done its part when a turn ends with other choices, so it is left out. What is looked at
    # here is also what the runtime would not miss, or would panic without.
    def _tidy(self, content: "_Content") -> None:
        self._state["flows"][self._state["currentFlowName"]]
        self._state["variablesState"].items()
        for name, flow in self._state["flows"].items():
            choices = flow["currentChoices"]
            choices[:] = [c for c in choices if not content.is_invisible(c["originalChoicePath"])]
            self.choice_ids(name)


class _Content:
    """What the compiled text tells without being played."""

    def __init__(self, compiled: str) -> None:
        try:
            story = json.loads(compiled)
            root = story["root"]
            named = root[-1] or {}
            lists: Mapping[str, Mapping[str, int]] = story.get("listDefs", {})
            self.functions = frozenset(name for name in named if name != "global decl")
            self.variables = tuple(dict.fromkeys(_declared(named.get("global decl", ()))))
        except RecursionError:
            raise StoryInvalidError("the compiled story is nested too deep") from None
        except (ValueError, LookupError, TypeError, AttributeError):
            raise StoryInvalidError("this is not a compiled story") from None
        self.list_items = {f"{o}.{i}": n for o, items in lists.items() for i, n in items.items()}
        self.externals = frozenset(_externals(root))
        self.refers_to_itself = any(_own_references(root, self.variables))
        self._invisible = {
            ".".join(path): bool(flags & _INVISIBLE) for path, flags in _choice_points(root)
        }

    def is_invisible(self, path: str) -> bool:
        """Whether the choice point at an absolute path such as `knot.0.5` is a fallback choice.

        Raises KeyError when there is no choice point.
        """
        return self._invisible[path]


# Reading the save costs a tenth of asking the runtime for one variable after the other.
def _value(token: Any) -> InkValue:
    if isinstance(token, float):
        return shortest(token)
    if isinstance(token, str):
        return token.removeprefix("^")
    if isinstance(token, dict):
        return in_order(token["list"].items()) if "list" in token else None
    value: InkValue = token
    return value


def _declared(tokens: Iterable[Any]) -> Iterator[str]:
    return (token["VAR="] for token in tokens if isinstance(token, dict) and "VAR=" in token)


def _choice_points(root: list[Any]) -> Iterator[tuple[tuple[str, ...], int]]:
    """The path of every choice point and its flags; the last item of a container is not content."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), root)]
    while waiting:
        path, node = waiting.pop()
        if isinstance(node, dict):
            if "*" in node:
                yield path, node["flg"]
        elif isinstance(node, list):
            named = node[-1] or {}
            waiting.extend(((*path, name), part) for name, part in named.items())
            waiting.extend(
                ((*path, _own_name(part) or str(index)), part)
                for index, part in enumerate(node[:-1])
            )


def _own_name(node: Any) -> str | None:
    if isinstance(node, list) and isinstance(node[-1], dict):
        name: str | None = node[-1].get("#n")
        return name
    return None


def _externals(root: Any) -> Iterator[str]:
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting.extend(node)
        elif isinstance(node, dict):
            if "x()" in node:
                yield node["x()"]
            waiting.extend(value for value in node.values() if isinstance(value, list))


# A ref parameter of a knot that is diverted to, or begun as a thread, lives in the same frame of
# the call stack as the variable that it is given, so that it may come to point at itself, at once
# or by way of others. The runtime then follows it until the process has no stack left, or for ever,
# and no budget holds it. A function or tunnel has its own frame: what it is given lies below it.
def _own_references(root: Any, variables: Collection[str]) -> Iterator[str]:
    """The temporary variables that a divert or thread may give by reference."""
    waiting: list[Any] = [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            waiting.extend(value for value in node.values() if isinstance(value, list))
        else:
            waiting.extend(part for part in node if isinstance(part, list | dict))
            for place, part in enumerate(node):
                given = part.get("^var") if isinstance(part, dict) else None
                if given is not None and given not in variables and _diverts(node, place):
                    yield given


def _diverts(content: list[Any], place: int) -> bool:
    """Whether the evaluation around this place is that of a divert's or thread's arguments."""
    depth = 1
    for end in range(place + 1, len(content)):
        if content[end] == "ev":
            depth += 1
        elif content[end] == "/ev":
            depth -= 1
        if depth == 0:
            following = next((part for part in content[end + 1 :] if part != "thread"), None)
            return isinstance(following, dict) and "->" in following and content[end - 1] != "out"
    return False


# One choice point can be offered twice at once, by a thread that runs twice.
def _numbered(path: str, seen: Counter[str]) -> str:
    seen[path] += 1
    return path if seen[path] == 1 else f"{path}#{seen[path]}"
