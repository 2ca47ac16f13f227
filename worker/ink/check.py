"""Whether a story may be offered: it is compiled, loaded and played in a limited process."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from worker.ink import cell
from worker.ink.cell import CellLimits
from worker.ink.errors import EngineCrashedError, Problem, Severity, StoryInvalidError
from worker.ink.explore import Exploration

_SHOWN_PICKS: Final = 12


_PLAYED_FOR = 0.75
"""What of its time the process plays; the rest is for its start and for the findings."""


@dataclass(frozen=True)
class StoryReport:
    """The verdict on one version of a story, with all that led to it.

    `compiled` is None when it does not compile. The numbers of `met` count paths.
    """

    compiled: str | None
    problems: tuple[Problem, ...]
    met: Exploration = field(default_factory=Exploration)

    @property
    def ok(self) -> bool:
        """Whether the story may be offered."""
        return not any(problem.severity == "error" for problem in self.problems)


def check_story(
    files: Mapping[str, str],
    main: str = "story.ink",
    *,
    paths: int = 1000,
    seed: int = 0,
    longest: int = 300,
    limits: CellLimits | None = None,
) -> StoryReport:
    """Compile the story and play it along `paths` random paths of at most `longest` choices.

    Never raises for what a story does: it is in the report. Takes seconds and blocks: for a thread.
    The same seed plays the same paths.
    """
    limits = limits or CellLimits()
    try:
        compiled = cell.run("compile", {"files": files, "main": main}, limits=limits)
    except StoryInvalidError as error:
        return StoryReport(None, error.problems or (Problem("error", str(error), main),))
    except EngineCrashedError as error:
        return StoryReport(None, (Problem("error", f"while it was compiled: {error}", main),))
    remarks = tuple(Problem(**problem) for problem in compiled["problems"])
    request = {
        "compiled": compiled["json"],
        "paths": paths,
        "seed": seed,
        "longest": longest,
        "seconds": limits.seconds * _PLAYED_FOR,
    }
    trail = _Trail()
    try:
        met = _met(cell.run("explore", request, limits=limits, note=trail.follow))
    except StoryInvalidError as error:
        return StoryReport(compiled["json"], (Problem("error", str(error), main), *remarks))
    except EngineCrashedError as error:
        death = Problem("error", f"{trail} the story killed its process: {error}", main)
        return StoryReport(compiled["json"], (death, *remarks))
    return StoryReport(compiled["json"], (*_findings(met, files, main, paths), *remarks), met)


class _Trail:
    """The choices of the path that is being played."""

    def __init__(self) -> None:
        self._picks: list[str] | None = None

    def follow(self, pick: str | None) -> None:
        """Begin a path, or take a choice on it."""
        if pick is None or self._picks is None:
            self._picks = []
        if pick is not None:
            self._picks.append(pick)

    def __str__(self) -> str:
        return "while it was loaded:" if self._picks is None else f"{_way(self._picks)}:"


def _met(answer: Mapping[str, Any]) -> Exploration:
    found: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in answer.items()
    }
    return Exploration(**found)


def _findings(
    met: Exploration, files: Mapping[str, str], main: str, paths: int
) -> Iterator[Problem]:
    for failure, picks in met.failures.items():
        yield Problem("error", f"{_way(picks)}: {failure}", main)
    if met.loops and not met.endings and not met.dead_ends:
        yield Problem("error", "no path came to an end", main)
    if not met.failures and met.played < paths:
        yield Problem("note", f"there was time for {met.played} of {paths} paths only", main)
    for line, count in met.dead_ends.items():
        yield Problem("warning", f"stops without -> END after {line!r} ({count} paths)", main)
    for choice, count in met.loops.items():
        yield Problem("warning", f"{count} paths did not end; they kept coming to {choice}", main)
    for place in () if met.failures else met.unreached:
        file, line_number, is_function = _declared_at(place, files)
        kind = "function" if is_function else "knot or stitch"
        severity: Severity = "note" if is_function else "warning"
        yield Problem(severity, f"no path reached {kind} {place!r}", file or main, line_number)
    for choice in met.silent_choices:
        yield Problem("warning", f"choice {choice} has no text", main)
    for choice in met.twin_choices:
        yield Problem("warning", f"a choice stood beside another of the same text: {choice}", main)
    for name in met.without_fallback:
        yield Problem("warning", f"EXTERNAL {name} has no fallback function", main)


def _way(picks: list[str]) -> str:
    if not picks:
        return "at the beginning"
    shown = " > ".join(repr(pick) for pick in picks[-_SHOWN_PICKS:])
    return f"after {'... > ' if len(picks) > _SHOWN_PICKS else ''}{shown}"


def _declared_at(place: str, files: Mapping[str, str]) -> tuple[str | None, int | None, bool]:
    knot, _, stitch = place.partition(".")
    marks, name = ("=", stitch) if stitch else ("={2,}", knot)
    heading = re.compile(rf"^[ \t]*{marks}[ \t]*(function[ \t]+)?{name}\b", re.MULTILINE)
    for file, text in files.items():
        if match := heading.search(text):
            return file, text.count("\n", 0, match.start()) + 1, match[1] is not None
    return None, None, False
