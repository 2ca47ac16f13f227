"""Recall for replays: the server's ranking over what was said so far, without a store.

Words are those that Postgres finds in a text, vectors those of the server's embedding model, and
candidates are all turns of the user, as the store gives them: so it ranks what the server would.
"""

import asyncio
import importlib
import importlib.util
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from pydantic import SecretStr
from sqlalchemy import text

from agent_core.context_notes import RecalledMemory
from agent_core.recall import Candidate, rank, told
from bench.locomo import Sitting, Turn
from shared.settings import Settings
from shared.store.database import Database
from worker.context import MOST_RECALLED
from worker.embedders import Embedder
from worker.memories import memory_of
from worker.minilm import EmbeddingsMissingError

_AT_ONCE = 256

_LEXEMES = text(
    """
    select tsvector_to_array(to_tsvector('english', said)) as words
    from unnest(cast(:texts as text[])) with ordinality as texts(said, no) order by no
    """
)


def require_numpy() -> None:
    """Raise EmbeddingsMissingError without numpy, which compares the vectors."""
    if importlib.util.find_spec("numpy") is None:
        raise EmbeddingsMissingError("numpy is not installed: pip install '.[embeddings]'")


@dataclass(frozen=True, slots=True)
class Read:
    """A text as recall reads it: its words without endings, and its vector."""

    words: frozenset[str]
    vector: Any = None


class Reader:
    """Reads texts once, before a replay."""

    def __init__(self, read: Mapping[str, Read]) -> None:
        self._read = read

    def __getitem__(self, said: str) -> Read:
        return self._read[said]

    def similarities(self, vectors: Sequence[Any], said: str) -> list[float]:
        """How like a text is to others, by their vectors."""
        numpy: Any = importlib.import_module("numpy")
        found: list[float] = (numpy.stack(vectors) @ self._read[said].vector).tolist()
        return found


async def read_all(
    words: Sequence[str], senses: Sequence[str], url: str, embedder: Embedder
) -> Reader:
    """Read texts: of all their words, of `senses` their vectors, too.

    Args:
        url: of any Postgres.
    """
    numpy: Any = importlib.import_module("numpy")
    db = Database.from_settings(Settings(database_url=SecretStr(url)))
    read: dict[str, Read] = {}
    try:
        for some in _slices(dict.fromkeys([*words, *senses])):
            rows = await db.rows(_LEXEMES, {"texts": some})
            read |= {said: Read(frozenset(row.words)) for said, row in zip(some, rows, strict=True)}
        for some in _slices(dict.fromkeys(senses)):
            for said, vector in zip(some, await embedder.embed(some), strict=True):
                numbers = numpy.array(json.loads(vector), dtype="float32")
                read[said] = replace(read[said], vector=numbers)
    finally:
        await db.close()
    return Reader(read)


def _slices(texts: Iterable[str]) -> Iterator[list[str]]:
    left = list(texts)
    for at in range(0, len(left), _AT_ONCE):
        yield left[at : at + _AT_ONCE]


def worded(turn: Turn) -> str:
    """A turn as its words are searched."""
    return f"{turn.speaker}: {turn.text}"


def sensed(turn: Turn, sitting: Sitting) -> str:
    """A turn as its vector is made."""
    at = sitting.at
    return told(turn.text, turn.speaker, f"{at.day} {at:%B} {at.year}")


@dataclass
class Remembered:
    """What one user and the agent have said to each other so far."""

    reader: Reader
    _turns: list[tuple[Turn, Sitting, int]] = field(default_factory=list)
    _words: list[frozenset[str]] = field(default_factory=list)
    _vectors: list[Any] = field(default_factory=list)
    _keys: list[str] = field(default_factory=list)
    _places: dict[int, int] = field(default_factory=dict)

    def add(self, key: str, turn: Turn, sitting: Sitting) -> None:
        """Remember a turn by a key."""
        no = self._places.get(id(sitting), 0) + 1
        self._places[id(sitting)] = no
        self._keys.append(key)
        self._turns.append((turn, sitting, no))
        self._words.append(self.reader[worded(turn)].words)
        self._vectors.append(self.reader[sensed(turn, sitting)].vector)

    def best(self, cue: str, without: frozenset[str]) -> list[RecalledMemory]:
        """What bears on a cue, the best first, without what is shown already."""
        if not self._turns:
            return []
        words = self.reader[cue].words
        likeness = self.reader.similarities(self._vectors, cue)
        candidates = [
            Candidate(
                id=key,
                text=turn.text,
                said_at=sitting.at + timedelta(seconds=no),
                hits=tuple(words & own),
                length=len(own),
                likeness=like,
                speaker=turn.speaker,
                place=(id(sitting), no),
            )
            for key, (turn, sitting, no), own, like in zip(
                self._keys, self._turns, self._words, likeness, strict=True
            )
            if key not in without
        ]
        return [memory_of(one) for one in rank(cue, candidates)[:MOST_RECALLED]]


def read_blocking(
    words: Sequence[str], senses: Sequence[str], url: str, embedder: Embedder
) -> Reader:
    """The same as `read_all`, outside of a loop."""
    return asyncio.run(read_all(words, senses, url, embedder))
