"""Recall for replays: the server's ranking over what was said so far, without a store.

Words are those that Postgres finds in a text, vectors those of the server's embedding model, and
candidates are all turns of the user, as the store gives them: so it ranks what the server would.
"""

import asyncio
import importlib
import importlib.util
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from operator import mul
from typing import Any

from pydantic import SecretStr
from sqlalchemy import text

from agent_core.candidates import Candidate
from agent_core.context_notes import RecalledMemory
from agent_core.recall import rank, told
from bench.array_ranking import Columns
from bench.locomo import Sitting, Turn
from shared.memories import DEFAULT_LANGUAGE
from shared.settings import Settings
from shared.store.database import Database
from shared.store.recall import CUE_WORDS
from shared.unsegmented import FEW_SIGNS, asked_signs, index_signs, spelled
from worker.context import MOST_RECALLED
from worker.embedders import Embedder
from worker.memories import memory_of

_AT_ONCE = 256

_LEXEMES = text(
    """
    select tsvector_to_array(to_tsvector(cast(language as regconfig), said)) as words
    from unnest(cast(:texts as text[]), cast(:languages as text[]))
        with ordinality as texts(said, language, no)
    order by no
    """
)


@cache
def has_numpy() -> bool:
    """Whether numpy is there, which comes with the extra `embeddings`."""
    return importlib.util.find_spec("numpy") is not None


@dataclass(frozen=True, slots=True)
class Read:
    """A text as recall reads it: its words without endings, and its vector.

    `asked` are the words by which it asks where it is a cue; None where they are the same.
    """

    words: frozenset[str]
    vector: Any = None
    asked: frozenset[str] | None = None


class Reader:
    """Reads texts once, before a replay."""

    def __init__(self, read: Mapping[str, Read]) -> None:
        self._read = read

    def __getitem__(self, said: str) -> Read:
        return self._read[said]

    def similarities(self, vectors: "Vectors", said: str) -> Sequence[float]:
        """How like a text is to others, by their vectors."""
        found: Sequence[float] = vectors.similarities(self._read[said].vector)
        return found


async def read_all(
    words: Sequence[str],
    senses: Sequence[str],
    url: str,
    embedder: Embedder,
    languages: Mapping[str, str],
) -> Reader:
    """Read texts: of all their words, of `senses` their vectors, too.

    Args:
        url: of any Postgres.
        languages: of texts that are not English.
    """
    db = Database.from_settings(Settings(database_url=SecretStr(url)))
    read: dict[str, Read] = {}
    try:
        for some in _slices(dict.fromkeys([*words, *senses])):
            parameters = {
                "texts": [spelled(said) for said in some],
                "languages": [languages.get(said, DEFAULT_LANGUAGE) for said in some],
            }
            rows = await db.rows(_LEXEMES, parameters)
            read |= {said: _read(said, row.words) for said, row in zip(some, rows, strict=True)}
        for some in _slices(dict.fromkeys(senses)):
            for said, vector in zip(some, await embedder.embed(some), strict=True):
                read[said] = replace(read[said], vector=_numbers(vector))
    finally:
        await db.close()
    return Reader(read)


def _read(said: str, words: Sequence[str]) -> Read:
    """A text with these words that are written with blanks, and what stands for the others."""
    signs = index_signs(said)
    if not signs:
        return Read(frozenset(words))
    asked = list(dict.fromkeys([*words, *asked_signs(said, FEW_SIGNS)]))
    return Read(frozenset([*words, *signs]), asked=frozenset(asked[:CUE_WORDS]))


def _numbers(vector: str) -> Any:
    numbers: list[float] = json.loads(vector)
    if not has_numpy():
        return numbers
    numpy: Any = importlib.import_module("numpy")
    return numpy.array(numbers, dtype="float32")


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


class Vectors:
    """Vectors in one matrix that grows; without numpy, a list of them."""

    def __init__(self, *, in_matrix: bool) -> None:
        self._in_matrix = in_matrix
        self._all: list[Any] = []
        self._stacked = 0
        self._matrix: Any = None

    def __len__(self) -> int:
        return len(self._all)

    def append(self, vector: Any) -> None:
        self._all.append(vector)

    def similarities(self, vector: Any) -> Any:
        """How like each is to another."""
        if not self._in_matrix:
            return [sum(map(mul, one, vector)) for one in self._all]
        return self._rows() @ vector

    def _rows(self) -> Any:
        numpy: Any = importlib.import_module("numpy")
        count = len(self._all)
        if self._matrix is None or count > len(self._matrix):
            shape = (max(_AT_ONCE, 2 * count), len(self._all[0]))
            larger = numpy.empty(shape, "float32")
            if self._stacked:
                larger[: self._stacked] = self._matrix[: self._stacked]
            self._matrix = larger
        if count > self._stacked:
            self._matrix[self._stacked : count] = self._all[self._stacked :]
            self._stacked = count
        return self._matrix[:count]


class Remembered:
    """What one user and the agent have said to each other so far."""

    def __init__(self, reader: Reader, *, in_columns: bool | None = None) -> None:
        """
        Args:
            in_columns: rank by columns and not one by one, which is much quicker and gives the
                same order; where numpy is, if nothing is said.
        """
        self._reader = reader
        self._turns: list[Candidate] = []
        self._words: list[frozenset[str]] = []
        self._told: list[RecalledMemory] = []
        self._vectors = Vectors(in_matrix=has_numpy())
        self._numbers: dict[str, int] = {}
        self._last_in: dict[int, int] = {}
        by_columns = has_numpy() if in_columns is None else in_columns
        self._columns = Columns() if by_columns else None

    def add(self, key: str, turn: Turn, sitting: Sitting) -> None:
        """Remember a turn by a key."""
        no = self._last_in.get(id(sitting), 0) + 1
        self._last_in[id(sitting)] = no
        words = self._reader[worded(turn)].words
        one = Candidate(
            id=key,
            text=turn.text,
            said_at=sitting.at + timedelta(seconds=no),
            length=len(words),
            speaker=turn.speaker,
            place=(id(sitting), no),
        )
        self._numbers[key] = len(self._turns)
        self._turns.append(one)
        self._words.append(words)
        self._told.append(memory_of(one))
        self._vectors.append(self._reader[sensed(turn, sitting)].vector)
        if self._columns is not None:
            self._columns.add(one, words)

    def best(self, cue: str, without: frozenset[str]) -> list[RecalledMemory]:
        """What bears on a cue, the best first, without what is shown already."""
        if not self._turns:
            return []
        read = self._reader[cue]
        words = read.words if read.asked is None else read.asked
        likeness = self._reader.similarities(self._vectors, cue)
        if self._columns is None:
            return self._one_by_one(cue, words, likeness, without)
        shown = [self._numbers[key] for key in without if key in self._numbers]
        best = self._columns.best(cue, words, likeness, shown, MOST_RECALLED)
        return [self._told[no] for no in best]

    def _one_by_one(
        self, cue: str, words: frozenset[str], likeness: Sequence[float], without: frozenset[str]
    ) -> list[RecalledMemory]:
        candidates = [
            one._replace(hits=tuple(word for word in words if word in own), likeness=float(like))
            for one, own, like in zip(self._turns, self._words, likeness, strict=True)
            if one.id not in without
        ]
        return [self._told[self._numbers[one.id]] for one in rank(cue, candidates)[:MOST_RECALLED]]


def read_blocking(
    words: Sequence[str],
    senses: Sequence[str],
    url: str,
    embedder: Embedder,
    languages: Mapping[str, str],
) -> Reader:
    """The same as `read_all`, outside of a loop."""
    return asyncio.run(read_all(words, senses, url, embedder, languages))
