"""What a request was built from, noted on the user's message that it answered.

The note is part of the transcript. From it a later request knows where its window begins and which
memories stand in it already, and another process that takes a run over builds the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agent_core.errors import MalformedDataError
from agent_core.fields import items, json_object, maybe, optional, require
from agent_core.messages import Message, UserMessage

MOST_NAMED = 8
"""Of so many memories that were left out a note has the ids: it is stored with each message and
sent to each client, and what ranked behind those had no part in the answer."""

_KEY = "context"


@dataclass(frozen=True, slots=True)
class RecalledMemory:
    """A memory as it is shown to a model: one line, with who said it.

    `said_at` orders those that are shown together, the earliest first: RFC 3339, in one zone.
    `day` names the day under which it is to be told; in a note it stands in the text already.
    """

    id: str
    text: str
    said_at: str = ""
    day: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the memory as JSON."""
        data = {"id": self.id, "text": self.text}
        return data | ({"said_at": self.said_at} if self.said_at else {})

    @classmethod
    def from_dict(cls, data: object) -> RecalledMemory:
        """Read a memory; raises MalformedDataError."""
        fields = json_object(data, "a recalled memory")
        return cls(
            require(fields, "id", str),
            require(fields, "text", str),
            optional(fields, "said_at", str, ""),
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """What was said in a session up to its message of the number `upto`, counted from 1."""

    id: str
    text: str
    upto: int

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON."""
        return {"id": self.id, "text": self.text, "upto": self.upto}

    @classmethod
    def from_dict(cls, data: object) -> Summary:
        """Read a summary; raises MalformedDataError."""
        fields = json_object(data, "a summary")
        return cls(
            require(fields, "id", str), require(fields, "text", str), require(fields, "upto", int)
        )


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something that a request does not hold: `count` messages, memories, or tokens of a text.

    `what` is messages, memory, soul, summary or message; `why` is window, budget or shown
    (the window has it already). `ids` are those of memories, of the best of them.
    """

    what: str
    why: str
    count: int
    ids: tuple[str, ...] = ()

    @classmethod
    def of_memories(cls, why: str, ids: Sequence[str]) -> LeftOut:
        """Memories that were left out, the best first."""
        return cls("memories", why, len(ids), tuple(ids[:MOST_NAMED]))

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        told: dict[str, Any] = {"what": self.what, "why": self.why, "count": self.count}
        return told | ({"ids": list(self.ids)} if self.ids else {})

    @classmethod
    def from_dict(cls, data: object) -> LeftOut:
        """Read it; raises MalformedDataError."""
        fields = json_object(data, "what was left out")
        return cls(
            require(fields, "what", str),
            require(fields, "why", str),
            optional(fields, "count", int, 0),
            tuple(str(one) for one in optional(fields, "ids", list, [])),
        )


@dataclass(frozen=True, slots=True)
class ContextNote:
    """How the request for a message of the user was built.

    `window` counts the messages before it that were shown, `kept` those of them whose memories
    were; `cut` says that the window was cut for this message. `summary` stood before them; it is
    noted where it was taken up, and those that follow name it by `summary_id`. `tier` is the
    session's. `tokens` says by part what was put in, by estimate.
    """

    window: int = 0
    kept: int = 0
    cut: bool = False
    memories: tuple[RecalledMemory, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    summary: Summary | None = None
    summary_id: str | None = None
    tier: str | None = None
    tokens: tuple[tuple[str, int], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the note as JSON."""
        data: dict[str, Any] = {"window": self.window, "kept": self.kept}
        if self.cut:
            data["cut"] = True
        if self.memories:
            data["memories"] = [memory.to_dict() for memory in self.memories]
        if self.left_out:
            data["left_out"] = [one.to_dict() for one in self.left_out]
        if self.summary is not None:
            data["summary"] = self.summary.to_dict()
        if self.summary_id is not None:
            data["summary_id"] = self.summary_id
        if self.tier is not None:
            data["tier"] = self.tier
        return data | {"tokens": dict(self.tokens)}

    @classmethod
    def from_dict(cls, data: object) -> ContextNote:
        """Read a note; raises MalformedDataError."""
        fields = json_object(data, "a context note")
        tokens = optional(fields, "tokens", dict, {})
        return cls(
            window=max(0, optional(fields, "window", int, 0)),
            kept=max(0, optional(fields, "kept", int, 0)),
            cut=optional(fields, "cut", bool, default=False),
            memories=tuple(_read(fields, "memories", RecalledMemory.from_dict)),
            left_out=tuple(_read(fields, "left_out", LeftOut.from_dict)),
            summary=Summary.from_dict(fields["summary"]) if "summary" in fields else None,
            summary_id=maybe(fields, "summary_id", str),
            tier=maybe(fields, "tier", str),
            tokens=tuple((str(name), count) for name, count in tokens.items()),
        )


def _read(fields: Any, name: str, read: Any) -> list[Any]:
    return items(fields, name, read) if name in fields else []


def noted(message: UserMessage, note: ContextNote) -> UserMessage:
    """The message with a note on it; it is a new one."""
    details = message.details if isinstance(message.details, dict) else {}
    return UserMessage(message.content, message.timestamp, {**details, _KEY: note.to_dict()})


def note_of(message: Message) -> ContextNote | None:
    """The note on a message; None where there is none that can be read."""
    if not isinstance(message, UserMessage) or not isinstance(message.details, dict):
        return None
    if _KEY not in message.details:
        return None
    try:
        return ContextNote.from_dict(message.details[_KEY])
    except MalformedDataError:
        return None


def newest_note(messages: Sequence[Message]) -> tuple[int, ContextNote] | None:
    """Where the newest note stands, and the note."""
    for at in range(len(messages) - 1, -1, -1):
        if (note := note_of(messages[at])) is not None:
            return at, note
    return None


def summary_of(note: ContextNote, before: Sequence[Message]) -> Summary | None:
    """The summary of a note, which stands on the message itself or on one before it."""
    if note.summary is not None or note.summary_id is None:
        return note.summary
    for message in reversed(before[-note.window :] if note.window else ()):
        earlier = note_of(message)
        if earlier is not None and earlier.summary is not None:
            return earlier.summary if earlier.summary.id == note.summary_id else None
    return None
