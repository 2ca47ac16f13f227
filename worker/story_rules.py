"""What a story asks of the code around ink: its global tags, read once per version.

A tag that can't be read counts as absent and is warned of: a story is never lost over a typo.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import structlog

from worker.ink.engine import metadata_of
from worker.ink.ranges import Range, judged_in, names_in, ranges_in

log = structlog.get_logger(__name__)

CONFIDENCE = 0.6
"""How sure a referee must be before its choice is taken; a story may ask for more or less."""

TITLE = "the story"
SHRUG = "Nothing comes of it."


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
    judged = judged_in(tags, variables)
    _warn_of_judged(said, tags, variables)
    return StoryRules(
        title=said.get("title") or TITLE,
        about=said.get("description", ""),
        confidence=_confidence(said.get("confidence")),
        stats=_names(said, "stats", variables) if "stats" in said else public,
        judged=judged,
        narrate_choices="choices" in said.get("narrate", "").lower().split(),
        shrug=said.get("shrug") or SHRUG,
    )


def _names(said: Mapping[str, str], tag: str, variables: Sequence[str]) -> tuple[str, ...]:
    names = names_in(said, tag)
    for name in names:
        if name not in variables:
            log.warning("a story's tag names no variable", tag=tag, name=name)
    return tuple(name for name in names if name in variables)


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


def _warn_of_judged(said: Mapping[str, str], tags: Sequence[str], variables: Sequence[str]) -> None:
    if said.get("judge", "").lower() != "off":
        _names(said, "judged", variables)
    for _, text, allowed in ranges_in(tags):
        if allowed is None:
            log.warning("a story's tag is no range", tag="range", text=text)
