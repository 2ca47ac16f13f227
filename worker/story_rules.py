"""What a story asks of the code around ink: its global tags, read once per version.

A tag that can't be read counts as absent and is warned of: a story is never lost over a typo.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import structlog

from worker.ink.engine import metadata_of

log = structlog.get_logger(__name__)

CONFIDENCE = 0.6
"""How sure a referee must be before its choice is taken; a story may ask for more or less."""

TITLE = "the story"
SHRUG = "Nothing comes of it."

_NUMBER = r"-?\d+(?:\.\d+)?"
_NUMBERS = re.compile(rf"({_NUMBER})\s*\.\.\s*({_NUMBER})(?:\s+by\s+({_NUMBER}))?")


@dataclass(frozen=True, slots=True)
class Range:
    """What a judged variable may become: numbers from `low` to `high`, at most `step` away from
    what it was, or one of `words`."""

    low: float = -math.inf
    high: float = math.inf
    step: float = math.inf
    words: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.words:
            return " or ".join(self.words)
        if self.low == -math.inf:
            return "any"
        changing = "" if self.step == math.inf else f", changing by at most {self.step:g}"
        return f"{self.low:g} to {self.high:g}{changing}"


@dataclass(frozen=True, slots=True)
class StoryRules:
    """What the global tags say, with what holds where they say nothing.

    `stats` may help a player's free deed, `judged` may be changed by the judge; both name
    variables that the story declares. An empty `judged` means that there is no judge.
    """

    title: str = TITLE
    about: str = ""
    confidence: float = CONFIDENCE
    stats: tuple[str, ...] = ()
    judged: Mapping[str, Range] = field(default_factory=dict)
    narrate_choices: bool = False
    shrug: str = SHRUG


@lru_cache(maxsize=256)
def read_rules(
    tags: tuple[str, ...], variables: tuple[str, ...], public: tuple[str, ...]
) -> StoryRules:
    """The rules of a story with these global tags and variables.

    Args:
        variables: all that the story declares.
        public: those that players see; they are the stats of a story that names none.
    """
    said = metadata_of(tags)
    judged = () if said.get("judge", "").lower() == "off" else _names(said, "judged", variables)
    ranges = dict(_ranges(tags))
    return StoryRules(
        title=said.get("title") or TITLE,
        about=said.get("description", ""),
        confidence=_confidence(said.get("confidence")),
        stats=_names(said, "stats", variables) if "stats" in said else public,
        judged={
            name: allowed for name in judged if (allowed := ranges.get(name, Range())) is not None
        },
        narrate_choices="choices" in said.get("narrate", "").lower().split(),
        shrug=said.get("shrug") or SHRUG,
    )


def _names(said: Mapping[str, str], tag: str, variables: Sequence[str]) -> tuple[str, ...]:
    listed = [name.strip() for name in said.get(tag, "").split(",") if name.strip()]
    for name in listed:
        if name not in variables:
            log.warning("a story's tag names no variable", tag=tag, name=name)
    return tuple(name for name in dict.fromkeys(listed) if name in variables)


def _confidence(text: str | None) -> float:
    if text is None:
        return CONFIDENCE
    try:
        confidence = float(text)
    except ValueError:
        confidence = math.nan
    if not 0 <= confidence <= 1:
        log.warning("a story's tag is no number from 0 to 1", tag="confidence", text=text)
        return CONFIDENCE
    return confidence


def _ranges(tags: Sequence[str]) -> Iterator[tuple[str, Range | None]]:
    """Every `range` tag's variable; with None where the range can't be read, for then the
    variable has no bounds that anyone meant, and nobody may change it."""
    for tag in tags:
        kind, colon, text = tag.partition(":")
        if not colon or kind.strip().lower() != "range":
            continue
        name, _, bounds = text.strip().partition(" ")
        allowed = _range(bounds.strip())
        if allowed is None:
            log.warning("a story's tag is no range", tag="range", text=text)
        yield name, allowed


def _range(text: str) -> Range | None:
    if ".." not in text and "," in text:
        words = tuple(word.strip() for word in text.split(",") if word.strip())
        return Range(words=words) if words else None
    match = _NUMBERS.fullmatch(text)
    if match is None:
        return None
    low, high = float(match[1]), float(match[2])
    step = math.inf if match[3] is None else float(match[3])
    return Range(low, high, step) if low <= high and step > 0 else None
