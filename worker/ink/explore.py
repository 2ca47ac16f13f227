"""Plays a compiled story many times at random, as players would, and tells what it met.

Runs inside a limited process (`worker.ink.cell`); `worker.ink.check` makes a report of it.
"""

import json
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from worker.ink.engine import InkEngine, Turn
from worker.ink.errors import InkError
from worker.ink.machine import ExternalFunction

# A broken story is broken in many places at once, and each may cost a whole time budget.
_ENOUGH_FAILURES: Final = 10
_LONGEST_NAME: Final = 60
_VISITS: Final = 1  # a bit of a container's "#f": its visits are counted
_WEAVE: Final = re.compile(r"[cgs]-\d+|b|\$r\d*")  # names that the compiler gives


@dataclass
class Exploration:
    """What was met. Keys are an ending's tag, or its last line; a knot; a choice's id; a failure.

    The values of `failures` are the choices that led to the first of its kind.
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

    Calls `note` with None when a path begins and with the text of each choice that is taken, before
    the story goes on, so that whoever listens knows where a story was that killed its process.
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
        picks: list[str] = []
        self._note(None)
        try:
            turn = self._path(rng, functions, picks)
        except InkError as error:
            self.found.failures.setdefault(f"{type(error).__name__}: {error}", picks)
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
        self, rng: random.Random, functions: Mapping[str, ExternalFunction], picks: list[str]
    ) -> Turn:
        turn = self._engine.advance(functions=functions, seed=rng.randrange(2**31))
        words = _words(turn)
        ids: list[str] = []
        while turn.choices and len(picks) < self._longest:
            self._look_at_choices(turn)
            choice = self._pick(rng, turn)
            picks.append(choice.text)
            ids.append(choice.id)
            self._note(choice.text)
            turn = self._engine.advance(turn.save, choice.id, functions=functions)
            words += _words(turn)
        self._note_end(turn, ids)
        self._lengths.append((len(picks), words))
        return turn

    # Half of the time a choice that was taken least, so that rare corners are seen early.
    def _pick(self, rng: random.Random, turn: Turn) -> Any:
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
