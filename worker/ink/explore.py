"""Plays a compiled story many times at random, as players would, and tells what it met.

Runs inside a limited process (`worker.ink.cell`); `worker.ink.check` makes a report of it.
"""

import json
import math
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from worker.ink.engine import Choice, InkEngine, Turn
from worker.ink.errors import InkError
from worker.ink.machine import ExternalFunction, InkValue
from worker.ink.ranges import Range, judged_in
from worker.ink.throws import DIE, Throw, check_in, help_of

# A broken story is broken in many places at once, and each may cost a whole time budget.
_ENOUGH_FAILURES: Final = 10
_LONGEST_NAME: Final = 60
_FARTHEST: Final = 1000  # that a number without bounds is moved in one change
_LARGEST: Final = 2**31 - 1  # number that ink holds
_VISITS: Final = 1  # a bit of a container's "#f": its visits are counted
_WEAVE: Final = re.compile(r"[cgs]-\d+|b|\$r\d*")  # names that the compiler gives


@dataclass
class Exploration:
    """What was met. Keys are an ending's tag, or its last line; a knot; a choice's id; a failure.

    The values of `failures` are the steps that led to the first of its kind: choices, with how
    their throws fell, and changes of the judge's.
    """

    tags: tuple[str, ...] = ()
    played: int = 0
    choices_per_path: float = 0.0
    words_per_path: float = 0.0
    endings: dict[str, int] = field(default_factory=dict)
    dead_ends: dict[str, int] = field(default_factory=dict)
    loops: dict[str, int] = field(default_factory=dict)
    unreached: tuple[str, ...] = ()
    silent_choices: tuple[str, ...] = ()
    twin_choices: tuple[str, ...] = ()
    without_fallback: tuple[str, ...] = ()
    failures: dict[str, list[str]] = field(default_factory=dict)


def explore(
    compiled: str,
    *,
    paths: int,
    seed: int,
    longest: int,
    seconds: float,
    note: Callable[[Any], None],
) -> Exploration:
    """Play `paths` paths of at most `longest` choices each, for at most `seconds` in all.

    Calls `note` with None when a path begins and with each step that is taken, before the story
    goes on, so that whoever listens knows where a story was that killed its process.
    Raises StoryInvalidError.
    """
    counted, places = _with_visits(compiled)
    explorer = _Explorer(InkEngine(counted, contained=False), longest, note)
    end = time.monotonic() + seconds
    for number in range(paths):
        if time.monotonic() > end or len(explorer.found.failures) >= _ENOUGH_FAILURES:
            break
        explorer.play(random.Random(f"{seed}/{number}"), alone=number % 4 == 3)  # noqa: S311 - no secret
    return explorer.finished(places)


class _Explorer:
    def __init__(self, engine: InkEngine, longest: int, note: Callable[[Any], None]) -> None:
        self._engine = engine
        self._longest = longest
        self._note = note
        self._judged = judged_in(engine.tags, engine.variable_names)
        self._taken: Counter[str] = Counter()
        self._visited: set[str] = set()
        self._lengths: list[tuple[int, int]] = []
        self._silent: set[str] = set()
        self._twins: set[str] = set()
        self.found = Exploration(
            tags=engine.tags, without_fallback=tuple(sorted(engine.externals_without_fallback))
        )

    def play(self, rng: random.Random, *, alone: bool) -> None:
        """Play one path; `alone` without a caller's functions, where the story has its own."""
        functions = {} if alone and not self.found.without_fallback else self._functions(rng)
        steps: list[str] = []
        self._note(None)
        try:
            turn = self._path(rng, functions, steps)
        except InkError as error:
            self.found.failures.setdefault(f"{type(error).__name__}: {error}", steps)
        else:
            visits = json.loads(turn.save)["visitCounts"]
            self._visited.update(visits)
        self.found.played += 1

    def finished(self, places: tuple[str, ...]) -> Exploration:
        """The whole exploration."""
        found = self.found
        found.unreached = tuple(place for place in places if place not in self._visited)
        found.silent_choices = tuple(sorted(self._silent))
        found.twin_choices = tuple(sorted(self._twins))
        if self._lengths:
            choices, words = zip(*self._lengths, strict=True)
            found.choices_per_path = statistics.median(choices)
            found.words_per_path = statistics.median(words)
        return found

    def _path(
        self, rng: random.Random, functions: Mapping[str, ExternalFunction], steps: list[str]
    ) -> Turn:
        turn = self._engine.advance(functions=functions, seed=rng.randrange(2**31))
        words = _words(turn)
        ids: list[str] = []
        # Half of the paths without a judge: that of a session may never find a reason to act.
        judged = self._judged if self._judged and rng.random() < 0.5 else {}
        while turn.choices and len(ids) < self._longest:
            self._look_at_choices(turn)
            choice = self._pick(rng, turn)
            throw = _thrown(rng, choice, turn.variables)
            ids.append(choice.id)
            self._step(steps, _told(choice, throw))
            variables = {} if throw is None else throw.variables(self._engine.variable_names)
            turn = self._engine.advance(
                turn.save, choice.id, functions=functions, variables=variables
            )
            words += _words(turn)
            change = _change(rng, judged, turn.variables) if judged and turn.choices else None
            if change is not None:
                name, value = change
                self._step(steps, f"({name} = {value})")
                turn = self._engine.advance(turn.save, functions=functions, variables={name: value})
        self._note_end(turn, ids)
        self._lengths.append((len(ids), words))
        return turn

    def _step(self, steps: list[str], step: str) -> None:
        steps.append(step)
        self._note(step)

    # Half of the time a choice that was taken least, so that rare corners are seen early.
    def _pick(self, rng: random.Random, turn: Turn) -> Choice:
        choices = list(turn.choices)
        rng.shuffle(choices)
        choice = min(choices, key=lambda c: self._taken[c.id]) if rng.random() < 0.5 else choices[0]
        self._taken[choice.id] += 1
        return choice

    def _look_at_choices(self, turn: Turn) -> None:
        texts = Counter(choice.text for choice in turn.choices)
        for choice in turn.choices:
            if not choice.text:
                self._silent.add(choice.id)
            elif texts[choice.text] > 1:
                self._twins.add(f"{choice.text} ({choice.id})")

    def _note_end(self, turn: Turn, ids: list[str]) -> None:
        if turn.choices:
            round_trip = Counter(ids[len(ids) // 2 :])
            _count(self.found.loops, round_trip.most_common(1)[0][0])
        elif turn.warnings or _stopped_without_end(turn):
            _count(self.found.dead_ends, _name(turn))
        else:
            _count(self.found.endings, _name(turn))

    def _functions(self, rng: random.Random) -> dict[str, ExternalFunction]:
        def number(*arguments: Any) -> int:
            sides = arguments[0] if arguments and isinstance(arguments[0], int) else 6
            return rng.randint(1, max(1, sides))

        return dict.fromkeys(self._engine.external_names, number)


# Half of the throws are won, where the die can do it: what lies behind a hard one is seen, too.
def _thrown(rng: random.Random, choice: Choice, variables: Mapping[str, InkValue]) -> Throw | None:
    try:
        check = check_in(choice.tags)
    except ValueError:
        return None
    if check is None:
        return None
    throws = [Throw(check, roll, help_of(check.stat, variables) or 0) for roll in range(1, DIE + 1)]
    won = rng.random() < 0.5
    return rng.choice([throw for throw in throws if throw.success is won] or throws)


def _told(choice: Choice, throw: Throw | None) -> str:
    if throw is None:
        return choice.text
    return f"{choice.text} ({'won' if throw.success else 'lost'})"


def _change(
    rng: random.Random, judged: Mapping[str, Range], current: Mapping[str, InkValue]
) -> tuple[str, InkValue] | None:
    """A change that a judge may make in the turn that was played, if it makes one."""
    name = rng.choice(list(judged))
    values = [
        value for value in _values(rng, current[name], judged[name]) if value != current[name]
    ]
    return (name, rng.choice(values)) if values and rng.random() < 0.5 else None


def _values(rng: random.Random, current: InkValue, allowed: Range) -> Sequence[InkValue]:
    """Some values that a judged variable may become: of its type, within its range and step."""
    if isinstance(current, bool):
        return (not current,)
    if isinstance(current, str):
        return allowed.words or ("changed",)
    if allowed.words or not isinstance(current, int | float) or not math.isfinite(current):
        return ()
    reach = min(allowed.step, _FARTHEST)
    low = max(allowed.low, current - reach, -_LARGEST)
    high = min(allowed.high, current + reach, _LARGEST)
    if isinstance(current, int):
        whole = range(math.ceil(low), math.floor(high) + 1)
        return (whole[0], whole[-1], rng.choice(whole)) if whole else ()
    return (low, high, rng.uniform(low, high)) if low <= high else ()


def _words(turn: Turn) -> int:
    return sum(len(line.text.split()) for line in turn.lines)


def _count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def _name(turn: Turn) -> str:
    tagged = [tag for line in turn.lines for tag in line.tags if tag.lower().startswith("ending:")]
    if tagged:
        return tagged[-1].partition(":")[2].strip()
    text = turn.lines[-1].text if turn.lines else "(no text)"
    return text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 1].rstrip() + "…"


# After END a thread points nowhere; after DONE it still knows where it was.
def _stopped_without_end(turn: Turn) -> bool:
    flows = json.loads(turn.save)["flows"].values()
    threads = (thread for flow in flows for thread in flow["callstack"]["threads"])
    return any("previousContentObject" in thread for thread in threads)


def _with_visits(compiled: str) -> tuple[str, tuple[str, ...]]:
    """The story with visits counted at all of its knots and stitches, and their paths."""
    story = json.loads(compiled)
    places = tuple(_counted_places(story["root"]))
    return json.dumps(story), places


def _counted_places(root: Any) -> Iterator[str]:
    for knot, container in _parts(root):
        _count_visits(container)
        yield knot
        for stitch, inner in _parts(container):
            _count_visits(inner)
            yield f"{knot}.{stitch}"


def _parts(container: list[Any]) -> list[tuple[str, list[Any]]]:
    return [
        (name, part)
        for name, part in (container[-1] or {}).items()
        if isinstance(part, list) and name != "global decl" and not _WEAVE.fullmatch(name)
    ]


def _count_visits(container: list[Any]) -> None:
    own = container[-1] or {}
    container[-1] = own | {"#f": own.get("#f", 0) | _VISITS}
