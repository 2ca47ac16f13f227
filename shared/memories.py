"""What a memory is, and how messages become memories: pieces of text, languages, words."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Literal, NamedTuple, TypeAlias
from uuid import UUID

from shared.encoding import JsonObject, well_formed
from shared.unsegmented import index_signs, spelled

MemoryKind: TypeAlias = Literal["turn", "fact", "preference", "skill", "relationship", "summary"]

PASSAGE_CHARACTERS = 1_000
"""The longest memory. An embedding model of 256 tokens sees no more of a text."""

MOST_PASSAGES = 24
"""How many memories one message becomes at the most: a little more than the longest `say`. What is
beyond stands in the transcript alone."""

SPEAKER_CHARACTERS = 80

DEFAULT_LANGUAGE = "english"

_LANGUAGES = {
    "ar": "arabic",
    "hy": "armenian",
    "eu": "basque",
    "ca": "catalan",
    "da": "danish",
    "nl": "dutch",
    "en": "english",
    "fi": "finnish",
    "fr": "french",
    "de": "german",
    "el": "greek",
    "hi": "hindi",
    "hu": "hungarian",
    "id": "indonesian",
    "ga": "irish",
    "it": "italian",
    "lt": "lithuanian",
    "ne": "nepali",
    "no": "norwegian",
    "nb": "norwegian",
    "pt": "portuguese",
    "ro": "romanian",
    "ru": "russian",
    "sr": "serbian",
    "es": "spanish",
    "sv": "swedish",
    "ta": "tamil",
    "tr": "turkish",
    "yi": "yiddish",
}

# Where a long text is cut rather than within a word, the best place first.
_BREAKS = ("\n\n", "\n", ". ", "! ", "? ", "\u3002", "\uff01", "\uff1f", "; ", ", ", " ")


@dataclass(frozen=True, slots=True)
class NewMemory:
    """A memory to be written.

    `no` is the message that it was said in and `part` the piece of it, `sources` all messages that
    it rests on; `speaker` is a name, `role` that of the message. Beyond `valid_to` it is not true
    any more. None as `said_at` or `valid_from` is the time of the writing.
    """

    kind: MemoryKind
    text: str
    session_id: UUID | None = None
    no: int | None = None
    part: int = 0
    sources: Sequence[int] = ()
    role: str = ""
    speaker: str = ""
    language: str = DEFAULT_LANGUAGE
    importance: float = 0.0
    said_at: datetime | None = None
    valid_from: datetime | None = None
    valid_to: datetime | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """A memory as its owner may see it."""

    id: UUID
    character_id: UUID
    session_id: UUID | None
    kind: MemoryKind
    no: int | None
    part: int
    sources: Sequence[int]
    role: str
    speaker: str
    text: str
    language: str
    importance: float
    said_at: datetime
    valid_from: datetime
    valid_to: datetime | None
    on_branch: bool
    created_at: datetime


class MemoryMatch(NamedTuple):
    """How a memory matches a cue.

    `hits` are those of the cue's words, as their stems, that it has; `length` is how many different
    ones it has in all. `likeness` is the cosine of its vector and the cue's, None where either is
    not there. The session's id is text, for a UUID takes several times as long to be looked up.
    """

    id: UUID
    session_id: str | None
    kind: MemoryKind
    no: int | None
    part: int
    role: str
    speaker: str
    text: str
    importance: float
    said_at: datetime
    length: int
    hits: Sequence[str]
    likeness: float | None


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class MemoryColumns:
    """What of memories is the same for each cue, by column: a character has thousands, and hardly
    one of them is looked at by itself. One object from cue to cue as long as they are the same.

    The columns are the fields of `MemoryMatch`; a key is the 16 bytes of an id.
    """

    keys: Sequence[bytes] = ()
    session_ids: Sequence[str | None] = ()
    kinds: Sequence[MemoryKind] = ()
    nos: Sequence[int | None] = ()
    parts: Sequence[int] = ()
    roles: Sequence[str] = ()
    speakers: Sequence[str] = ()
    texts: Sequence[str] = ()
    importance: Sequence[float] = ()
    said_at: Sequence[datetime] = ()
    lengths: Sequence[int] = ()


class MemoryMatches(NamedTuple):
    """How memories match a cue, by column."""

    memories: MemoryColumns
    hits: Sequence[Sequence[str]]
    likeness: Sequence[float | None]

    @classmethod
    def of(cls, rows: Sequence[MemoryMatch]) -> "MemoryMatches":
        """Put rows into columns."""
        if not rows:
            return cls(MemoryColumns(), (), ())
        ids, *others, hits, likeness = zip(*rows, strict=True)
        return cls(MemoryColumns([one.bytes for one in ids], *others), hits, likeness)

    def rows(self) -> list[MemoryMatch]:
        """Each memory by itself."""
        keys, *others = (getattr(self.memories, field.name) for field in fields(MemoryColumns))
        ids = [UUID(bytes=key) for key in keys]
        return list(
            map(MemoryMatch._make, zip(ids, *others, self.hits, self.likeness, strict=True))
        )


NOTHING_RECALLED = MemoryMatches.of(())


def passages(text: str) -> list[str]:
    """A text in pieces of at most PASSAGE_CHARACTERS, cut between sentences where that can be."""
    # What is cut off must not be worked through first: a text may be megabytes long.
    left = " ".join(well_formed(text[: 2 * PASSAGE_CHARACTERS * MOST_PASSAGES]).split())
    left = left.replace("\0", "")
    found: list[str] = []
    while left and len(found) < MOST_PASSAGES:
        end = _end_of_passage(left)
        found.append(left[:end].strip())
        left = left[end:].lstrip()
    return found


def _end_of_passage(text: str) -> int:
    if len(text) <= PASSAGE_CHARACTERS:
        return len(text)
    for mark in _BREAKS:
        at = text.rfind(mark, PASSAGE_CHARACTERS // 2, PASSAGE_CHARACTERS)
        if at >= 0:
            return at + len(mark)
    return PASSAGE_CHARACTERS


def words_of(speaker: str, text: str) -> JsonObject:
    """What full text search reads of a memory: `spelled`, None where it may read all as it is, and
    the `signs` that stand for words without blanks."""
    # A speaker's name is a word of what they say: questions name people.
    said = f"{speaker}: {text}" if speaker else text
    words = spelled(said)
    return {"spelled": None if words == said else words, "signs": index_signs(said)}


def language_of(metadata: Mapping[str, object]) -> str:
    """The text search configuration of a session: its metadata's `language`, as `de` or `de-AT`.

    A language that Postgres has no stemmer for is taken word by word.
    """
    said = metadata.get("language")
    if not isinstance(said, str) or not said.strip():
        return DEFAULT_LANGUAGE
    name = said.strip().lower()
    if name in _LANGUAGES.values():
        return name
    return _LANGUAGES.get(re.split("[-_]", name)[0], "simple")


def speaker_of(role: str, character: JsonObject, metadata: JsonObject) -> str:
    """By which name somebody is remembered: the character's own, or the metadata's `user_name`."""
    name = character.get("name") if role == "assistant" else metadata.get("user_name")
    if not isinstance(name, str):
        return ""
    return " ".join(well_formed(name).replace("\0", "").split())[:SPEAKER_CHARACTERS]


def of_messages(
    messages: Sequence[JsonObject], character: JsonObject, metadata: JsonObject
) -> list[JsonObject]:
    """The memories of a task's new messages, as the end of the task writes them.

    `ord` counts the messages from 1: their numbers are given with the end.
    """
    language = language_of(metadata)
    return [
        {
            "ord": number,
            "part": part,
            "role": message["role"],
            "speaker": speaker,
            "text": passage,
            "language": language,
            **words_of(speaker, passage),
        }
        for number, message in enumerate(messages, start=1)
        for part, passage in enumerate(passages(said_in(message)))
        for speaker in [speaker_of(message["role"], character, metadata)]
    ]


def said_in(message: JsonObject) -> str:
    """What the user or the character says in a message; nothing of tools, thoughts and failures."""
    if message.get("role") not in {"user", "assistant"} or message.get("stop_reason") == "error":
        return ""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "\n".join(
        str(block.get("text", ""))
        for block in content
        if isinstance(block, dict) and block.get("type") == "text"
    )
