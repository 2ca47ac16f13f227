"""What a consolidation starts from and what it gives: the words for store and worker."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, Self, TypeAlias
from uuid import UUID

from shared.encoding import JsonObject

KEEPER = "memory-keeper"
"""The agent of the sessions in which consolidations run; no client can make one."""

MESSAGES = 16
"""So many messages that were not read yet are read at once: fewer than a window loses when it is
cut. Summaries reach up to multiples of it."""

MOST_MESSAGES = 64
"""How many messages one consolidation reads at the most."""

MOST_KNOWN = 60
"""How many of what is known already it is shown."""

FindingKind: TypeAlias = Literal["fact", "preference", "skill", "relationship"]


@dataclass(frozen=True, slots=True)
class Said:
    """A message of the range; `role` is user or assistant."""

    no: int
    role: str
    text: str
    at: datetime


@dataclass(frozen=True, slots=True)
class KnownMemory:
    """Something that the character knows already."""

    id: UUID
    kind: FindingKind
    text: str


@dataclass(frozen=True, slots=True)
class Remembered:
    """What was known when a model was asked: it changes meanwhile, and the answer is about it."""

    known: Sequence[KnownMemory]
    summary: str
    summary_upto: int

    def as_json(self) -> JsonObject:
        """For the journal, or a table."""
        known = [{"id": str(one.id), "kind": one.kind, "text": one.text} for one in self.known]
        return {"known": known, "summary": self.summary, "summary_upto": self.summary_upto}

    @classmethod
    def of_json(cls, kept: JsonObject) -> Self:
        """What `as_json` gave."""
        known = [KnownMemory(UUID(one["id"]), one["kind"], one["text"]) for one in kept["known"]]
        return cls(known, kept["summary"], kept["summary_upto"])


@dataclass(frozen=True, slots=True)
class Material:
    """What a consolidation reads.

    `said` begins where the last summary ended, or with the range, whichever is first.
    """

    said: Sequence[Said]
    known: Sequence[KnownMemory]
    summary: str
    summary_upto: int
    character: JsonObject
    metadata: JsonObject

    @property
    def remembered(self) -> Remembered:
        """What of it may be different the next time."""
        return Remembered(self.known, self.summary, self.summary_upto)

    def as_of(self, then: Remembered) -> "Material":
        """The same with what was known at another time. Messages never change."""
        return replace(self, known=then.known, summary=then.summary, summary_upto=then.summary_upto)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something worth knowing for good, with the messages that it rests on.

    `replaces` is what it contradicts of what was known; `at` is when the user said it.
    """

    kind: FindingKind
    text: str
    sources: Sequence[int]
    importance: float
    at: datetime
    replaces: Sequence[UUID] = ()


@dataclass(frozen=True, slots=True)
class Summary:
    """What was said in a session up to its message of the number `upto`."""

    text: str
    upto: int


@dataclass(frozen=True, slots=True)
class Consolidated:
    """What came of reading a session's messages from `first` to `last`, both included."""

    session_id: UUID
    first: int
    last: int
    findings: Sequence[Finding] = ()
    summary: Summary | None = None
    speaker: str = ""
    language: str = "english"


def upto_of(last: int) -> int:
    """How far a summary goes when messages were read up to `last`."""
    return last // MESSAGES * MESSAGES
