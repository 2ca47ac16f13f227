"""Conversations of the LoCoMo format: sessions with dates, turns, questions with their evidence.

Only what was said is read: captions, observations and summaries were written by a model.
"""

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop"}
"""The fifth has questions that can't be answered, and therefore no evidence."""

_TURN = re.compile(r"D:?(\d+):0*(\d+)")
_SESSION = re.compile(r"session_(\d+)")
_DATES = ("%I:%M %p on %d %B, %Y", "%I:%M %p %d %B %Y", "%d %B, %Y", "%d %B %Y", "%Y-%m-%d")


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

    Questions without any evidence among the turns are left out.

    Raises:
        DataError: a file can't be read, is not of this format, or has no conversations.
    """
    corrected = {} if corrections is None else _corrections(_load(corrections))
    entries = _load(data)
    if isinstance(entries, dict):
        entries = [entries]
    try:
        found = [_conversation(entry, number, corrected) for number, entry in enumerate(entries)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{data.name} is not of the LoCoMo format: {error!r}") from error
    if not found:
        raise DataError(f"{data.name} has no conversations")
    return found


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path.name} can't be read: {error}") from error


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
    entry: Mapping[str, Any], number: int, corrected: Mapping[tuple[str, str], Sequence[str]]
) -> Conversation:
    said = entry["conversation"]
    sittings = list(_sittings(said))
    known = {turn.id for sitting in sittings for turn in sitting.turns}
    questions = []
    for asked in entry.get("qa", ()):
        text, cited = str(asked["question"]), asked.get("evidence", ())
        evidence = _ids(corrected.get((text, _key(cited)), cited)) & known
        if asked.get("category") in CATEGORIES and evidence:
            questions.append(Question(text, asked["category"], frozenset(evidence)))
    return Conversation(
        str(entry.get("sample_id", f"conversation-{number}")),
        (str(said["speaker_a"]), str(said["speaker_b"])),
        sittings,
        questions,
    )


def _sittings(said: Mapping[str, Any]) -> Iterator[Sitting]:
    numbers = sorted(int(match[1]) for name in said if (match := _SESSION.fullmatch(name)))
    for number in numbers:
        turns = [
            Turn(_one_id(turn["dia_id"]), str(turn["speaker"]), str(turn.get("text") or ""))
            for turn in said[f"session_{number}"]
        ]
        if turns:
            yield Sitting(number, _date(said.get(f"session_{number}_date_time", ""), number), turns)


def _one_id(name: str) -> str:
    return next(iter(_ids(name)), name)


def _date(said: str, number: int) -> datetime:
    """The time of a sitting; without one that can be read, a day for each."""
    words = " ".join(said.split())
    for form in _DATES:
        try:
            return datetime.strptime(words, form).replace(tzinfo=UTC)
        except ValueError:
            continue
    return datetime.fromordinal(datetime(2000, 1, 1, tzinfo=UTC).toordinal() + number).replace(
        tzinfo=UTC
    )
