"""Conversations of the LoCoMo format: sessions with dates, turns, questions with their evidence.

Only what was said is read: captions, observations and summaries were written by a model.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from shared.encoding import well_formed
from shared.memories import DEFAULT_LANGUAGE

CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop"}
"""The fifth has questions that can't be answered, and therefore no evidence."""

_TURN = re.compile(r"D:?(\d+):0*(\d+)")
_SESSION = re.compile(r"session_(\d+)")

_CLOCK = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d))?(?: ?([ap])\.?m\b\.?)?", re.IGNORECASE)
_DAYS = (
    "%d %B %Y", "%d %b %Y", "%B %d %Y", "%b %d %Y", "%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d",
    "%d.%m.%Y", "%Y年%m月%d日",
)  # fmt: skip
_BESIDE_DAYS = re.compile(
    r"\b(?:on|at|of|the|(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?)\b\.?|,"
    r"|(?<=\d)(?:st|nd|rd|th)\b",
    re.IGNORECASE,
)
_FIRST_DAY = datetime(2000, 1, 1, tzinfo=UTC)
"""Of a conversation whose first date can't be read."""


class DataError(Exception):
    """The file is not what it should be."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker said; `id` is the data's name for it."""

    id: str
    speaker: str
    text: str


@dataclass(frozen=True, slots=True)
class Sitting:
    """Turns of one day."""

    number: int
    at: datetime
    turns: Sequence[Turn]


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the turns that answer it."""

    text: str
    category: int
    evidence: frozenset[str]


@dataclass(frozen=True, slots=True)
class Conversation:
    """A long conversation of two speakers."""

    id: str
    speakers: tuple[str, str]
    sittings: Sequence[Sitting]
    questions: Sequence[Question]

    @property
    def turns(self) -> list[Turn]:
        """All turns in order."""
        return [turn for sitting in self.sittings for turn in sitting.turns]

    @property
    def language(self) -> str:
        """As its session would say it: English, or word by word where most letters are others."""
        letters = [sign for turn in self.turns for sign in turn.text if sign.isalpha()]
        plain = sum(sign.isascii() for sign in letters)
        return DEFAULT_LANGUAGE if 2 * plain >= len(letters) else "simple"


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which conversations are read; `read_given` reads them."""
    parser.add_argument("--data", type=Path, required=True, help="conversations, LoCoMo format")
    parser.add_argument(
        "--corrections",
        type=Path,
        help="corrected evidence; else audit_errors.json beside the data, if there is one",
    )


def read_given(options: argparse.Namespace) -> list[Conversation]:
    """The conversations that the options name; raises DataError."""
    beside = options.data.parent / "audit_errors.json"
    return read(options.data, options.corrections or (beside if beside.is_file() else None))


def read(data: Path, corrections: Path | None = None) -> list[Conversation]:
    """The conversations of a file, with the evidence that corrections give instead.

    Questions without any evidence among the turns are left out. So is what has no sense: then, and
    where dates could not be read, one line on stderr says how much of it there was.

    Raises:
        DataError: a file can't be read, is not of this format, or has no conversations.
    """
    corrected = {} if corrections is None else _corrections(_load(corrections))
    entries = _load(data)
    if isinstance(entries, dict):
        entries = [entries]
    if not isinstance(entries, list):
        raise DataError(f"{data.name} is not of the LoCoMo format: no list of conversations")
    odd: Counter[str] = Counter()
    read_ = (_conversation(entry, number, corrected, odd) for number, entry in enumerate(entries))
    found = [one for one in read_ if one is not None]
    if entries and not found:
        raise DataError(f"{data.name} is not of the LoCoMo format: no conversation in it")
    if not found:
        raise DataError(f"{data.name} has no conversations")
    if odd:
        said = ", ".join(f"{what}: {count}" for what, count in sorted(odd.items()))
        print(f"{data.name}: {said}", file=sys.stderr)
    return found


def _load(path: Path) -> Any:
    try:
        return _clean(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise DataError(f"{path.name} can't be read: {error}") from error


def _clean(value: Any) -> Any:
    """The same without what no database takes as text: NUL and halves of surrogate pairs."""
    if isinstance(value, str):
        return well_formed(value).replace("\0", "")
    if isinstance(value, list):
        return [_clean(one) for one in value]
    if isinstance(value, dict):
        return {name: _clean(one) for name, one in value.items()}
    return value


def _corrections(entries: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[str]]:
    """Corrected evidence by the question's words and what was cited, for numbers of questions
    depend on which conversations a file has."""
    try:
        return {
            (entry["question"], _key(entry.get("cited_evidence", ()))): entry["correct_evidence"]
            for entry in entries
            if entry.get("correct_evidence")
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"the corrections are not of their format: {error!r}") from error


def _key(evidence: object) -> str:
    return " ".join(sorted(_ids(evidence)))


def _ids(evidence: object) -> set[str]:
    said = [evidence] if isinstance(evidence, str) else evidence
    if not isinstance(said, list | tuple):
        return set()
    return {f"D{one}:{two}" for part in said for one, two in _TURN.findall(str(part))}


def _conversation(
    entry: Any, number: int, corrected: Mapping[tuple[str, str], Sequence[str]], odd: Counter[str]
) -> Conversation | None:
    """A conversation; None where there is none. What was odd about it is counted."""
    said: Any = entry.get("conversation") if isinstance(entry, dict) else None
    if not isinstance(said, dict):
        odd["conversations that are none, left out"] += 1
        return None
    sittings = list(_sittings(said, odd))
    known = {turn.id for sitting in sittings for turn in sitting.turns}
    return Conversation(
        str(entry.get("sample_id") or f"conversation-{number}"),
        _speakers(said, sittings),
        sittings,
        list(_questions(entry.get("qa"), corrected, known, odd)),
    )


def _speakers(said: Mapping[str, Any], sittings: Sequence[Sitting]) -> tuple[str, str]:
    """The two who are named, or else the first two who speak."""
    speaking = dict.fromkeys(turn.speaker for sitting in sittings for turn in sitting.turns)
    named = [str(said[name]) for name in ("speaker_a", "speaker_b") if said.get(name)]
    others = [name for name in speaking if name not in named]
    one, other, *_ = [*named, *others, "", ""]
    return (one, other)


def _questions(
    entries: Any,
    corrected: Mapping[tuple[str, str], Sequence[str]],
    known: set[str],
    odd: Counter[str],
) -> Iterator[Question]:
    for asked in entries if isinstance(entries, list) else ():
        said = asked.get("question") if isinstance(asked, dict) else None
        category = _category(asked.get("category")) if said else None
        if category is None:
            odd["questions without a text or a category, left out"] += 1
            continue
        text, cited = str(said), asked.get("evidence") or ()
        evidence = _ids(corrected.get((text, _key(cited)), cited)) & known
        if category in CATEGORIES and evidence:
            yield Question(text, category, frozenset(evidence))


def _category(said: Any) -> int | None:
    try:
        return int(said)
    except (TypeError, ValueError, OverflowError):
        return None


def _sittings(said: Mapping[str, Any], odd: Counter[str]) -> Iterator[Sitting]:
    numbers = sorted(int(match[1]) for name in said if (match := _SESSION.fullmatch(name)))
    before = _FIRST_DAY - timedelta(days=1)
    for number in numbers:
        turns = list(_turns(said[f"session_{number}"], number, odd))
        if not turns:
            continue
        at = date_of(str(said.get(f"session_{number}_date_time") or ""))
        if at is None:
            odd["dates that can't be read, taken as the day after the one before"] += 1
            at = before + timedelta(days=1)
        before = at
        yield Sitting(number, at, turns)


def _turns(entries: Any, number: int, odd: Counter[str]) -> Iterator[Turn]:
    if entries is not None and not isinstance(entries, list):
        odd["sittings that are no lists, left out"] += 1
        return
    for place, turn in enumerate(entries or (), start=1):
        if not isinstance(turn, dict):
            odd["turns that are none, left out"] += 1
            continue
        id_ = _one_id(turn.get("dia_id")) or f"D{number}:{place}"
        yield Turn(id_, str(turn.get("speaker") or ""), str(turn.get("text") or ""))


def _one_id(name: Any) -> str:
    """A turn's name as evidence cites it; "" where it has none, and then its place is its name."""
    return next(iter(_ids(name)), name) if isinstance(name, str) else ""


def date_of(said: str) -> datetime | None:
    """The time of a sitting by the clock that the data has, as if that were in UTC; None where it
    can't be read."""
    words = " ".join(said.split())
    if "-" in words:
        try:
            return datetime.fromisoformat(words).replace(tzinfo=UTC)
        except ValueError:
            pass
    clock = _CLOCK.search(words)
    day = words if clock is None else f"{words[: clock.start()]} {words[clock.end() :]}"
    day = " ".join(_BESIDE_DAYS.sub(" ", day).split())
    for form in _DAYS:
        try:
            at = datetime.strptime(day, form).replace(tzinfo=UTC)
            return at if clock is None else _at(at, clock)
        except ValueError:
            continue
    return None


def _at(day: datetime, clock: re.Match[str]) -> datetime:
    """That day at what a clock says; ValueError where no clock says that."""
    hour, half = int(clock[1]), clock[4]
    if half is not None:
        if not 1 <= hour <= 12:
            raise ValueError(clock[0])
        hour = hour % 12 + (12 if half.lower() == "p" else 0)
    return day.replace(hour=hour, minute=int(clock[2]), second=int(clock[3] or 0))
