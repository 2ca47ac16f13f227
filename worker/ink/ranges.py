"""What a judge may make of a story's variables: those of `# judged`, each within its `# range`."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from worker.ink.engine import metadata_of

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


def judged_in(tags: Sequence[str], declared: Sequence[str]) -> dict[str, Range]:
    """The declared variables that the global tags open to the judge; none when it is off.

    One whose range can't be read is left out: it has no bounds that anyone meant.
    """
    said = metadata_of(tags)
    if said.get("judge", "").lower() == "off":
        return {}
    ranges = {name: allowed for name, _, allowed in ranges_in(tags)}
    names = (name for name in names_in(said, "judged") if name in declared)
    return {name: allowed for name in names if (allowed := ranges.get(name, Range())) is not None}


def names_in(said: Mapping[str, str], tag: str) -> tuple[str, ...]:
    """The names in a tag such as `# judged: mood, trust`, each once."""
    names = (name.strip() for name in said.get(tag, "").split(","))
    return tuple(dict.fromkeys(name for name in names if name))


def ranges_in(tags: Sequence[str]) -> Iterator[tuple[str, str, Range | None]]:
    """Every `range` tag's variable, its text and its range: None where that can't be read."""
    for tag in tags:
        kind, colon, text = tag.partition(":")
        if colon and kind.strip().lower() == "range":
            name, _, bounds = text.strip().partition(" ")
            yield name, text, _range(bounds.strip())


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
