"""Long conversations in the format of LoCoMo: sessions of dated turns, and questions about them.

A question names the turns that hold its answer. Corrections of those labels are taken from a file
`audit_errors.json` that lies beside the conversations.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CATEGORIES = (1, 2, 3, 4)
"""Multi-hop, temporal, open-domain, single-hop; the fifth has no evidence."""

_TURN = re.compile(r"D(\d+):(\d+)")
_SESSION = re.compile(r"session_(\d+)")
_AUDIT = "audit_errors.json"


class ConversationsError(Exception):
    """The file holds no conversations of this format."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker said; `id` is unique in its conversation."""

    id: str
    speaker: str
    text: str
    date: str
    session: int


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the ids of the turns that answer it."""

    text: str
    category: int
    evidence: frozenset[str]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Two speakers' turns in order; the second one is taken for the agent."""

    id: str
    user: str
    agent: str
    turns: Sequence[Turn]
    questions: Sequence[Question]


def read_conversations(path: Path) -> list[Conversation]:
    """Read a file of conversations.

    Raises:
        ConversationsError: it can't be read, or is of another format.
    """
    try:
        found = json.loads(path.read_bytes())
        corrected = _corrections(path.with_name(_AUDIT))
        return [_conversation(number, one, corrected) for number, one in enumerate(found)]
    except OSError as error:
        raise ConversationsError(f"{path}: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConversationsError(f"{path}: no conversations in LoCoMo's format: {error}") from error


def _conversation(
    number: int, data: Mapping[str, Any], corrected: Mapping[tuple[str, tuple[str, ...]], list[str]]
) -> Conversation:
    said = data["conversation"]
    sessions = sorted(
        int(match[1])
        for name, turns in said.items()
        if (match := _SESSION.fullmatch(name)) and isinstance(turns, list)
    )
    turns = [
        Turn(one["dia_id"], one["speaker"], one["text"], said[f"session_{no}_date_time"], no)
        for no in sessions
        for one in said[f"session_{no}"]
    ]
    known = {turn.id for turn in turns}
    questions = []
    for one in data["qa"]:
        cited = list(one.get("evidence") or ())
        cited = corrected.get((one["question"], tuple(cited)), cited)
        evidence = frozenset(turn for text in cited for turn in _turns_in(text)) & known
        if one["category"] in CATEGORIES and evidence:
            questions.append(Question(one["question"], one["category"], evidence))
    name = str(data.get("sample_id", number))
    return Conversation(name, said["speaker_a"], said["speaker_b"], turns, questions)


def _turns_in(text: str) -> list[str]:
    """Labels are written by hand: several in one text, or with zeros before their numbers."""
    return [f"D{int(session)}:{int(turn)}" for session, turn in _TURN.findall(text)]


def _corrections(path: Path) -> dict[tuple[str, tuple[str, ...]], list[str]]:
    """Corrected evidence by question and the evidence that was cited before."""
    if not path.is_file():
        return {}
    return {
        (one["question"], tuple(one["cited_evidence"])): one["correct_evidence"]
        for one in json.loads(path.read_bytes())
        if one.get("correct_evidence")
    }
