"""Memories that may be recalled: one by itself, and thousands by column."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from operator import mul
from typing import Any, NamedTuple, TypeAlias

Place: TypeAlias = tuple[Any, int]
"""A session and the number of a message in it."""

LONG_ENOUGH = 400  # characters
"""From here on a longer memory is no better one."""

_LENGTHS = [math.log(1 + length) for length in range(LONG_ENOUGH + 1)]

# Of Latin, Chinese and Arabic script.
_QUESTION_MARKS = frozenset("?\uff1f\u061f")

_NOBODY = -1


class Candidate(NamedTuple):
    """A memory that may be recalled.

    `hits` are the words of the cue that it has, `length` is how many different words it has in all.
    `likeness` is the cosine of its vector and the cue's, None where either is not there. `place` is
    where a turn was said, None for what was not said in so many words.
    """

    id: Any
    text: str
    said_at: datetime
    hits: Sequence[str] = ()
    length: int = 1
    likeness: float | None = None
    speaker: str = ""
    place: Place | None = None
    part: int = 0
    importance: float = 0.0


@dataclass(frozen=True, eq=False)
class Candidates:
    """Candidates by column, without what depends on a cue: no row is made of thousands.

    What each says for itself and which turns stand next to each other is worked out with the first
    cue; who keeps the object for the next cue saves two fifths of the ranking. A turn was said in a
    session under a number, which is None for what was not said in so many words.
    """

    # What is worked out is kept in tuples: the garbage collector learns that they hold nothing that
    # it would have to look at, and looks at lists each time.

    ids: Sequence[Any]
    texts: Sequence[str]
    said_at: Sequence[datetime]
    lengths: Sequence[int]
    speakers: Sequence[str]
    sessions: Sequence[Any]
    nos: Sequence[int | None]
    parts: Sequence[int]
    importance: Sequence[float]
    _worth: dict[tuple[float, ...], Sequence[float]] = field(default_factory=dict, init=False)

    @classmethod
    def of(cls, rows: Sequence[Candidate]) -> Candidates:
        """Put rows into columns."""
        places = [row.place or (None, None) for row in rows]
        return cls(
            ids=[row.id for row in rows],
            texts=[row.text for row in rows],
            said_at=[row.said_at for row in rows],
            lengths=[row.length for row in rows],
            speakers=[row.speaker for row in rows],
            sessions=[session for session, _ in places],
            nos=[no for _, no in places],
            parts=[row.part for row in rows],
            importance=[row.importance for row in rows],
        )

    def row(self, at: int) -> Candidate:
        """The candidate at a place, counted from 0, as it is without a cue."""
        no = self.nos[at]
        return Candidate(
            id=self.ids[at],
            text=self.texts[at],
            said_at=self.said_at[at],
            length=self.lengths[at],
            speaker=self.speakers[at],
            place=None if no is None else (self.sessions[at], no),
            part=self.parts[at],
            importance=self.importance[at],
        )

    @cached_property
    def names(self) -> frozenset[str]:
        """Who speaks in them."""
        return frozenset(self.speakers)

    @cached_property
    def shares(self) -> Sequence[float]:
        """What a word is worth in each of them: less in a long one (`recall.bm25`)."""
        usual = sum(self.lengths) / len(self.lengths) if self.lengths else 1.0
        share = {
            length: 1.9 / (1 + 0.9 * (0.6 + 0.4 * length / (usual or 1.0)))
            for length in set(self.lengths)
        }
        return tuple([share[length] for length in self.lengths])

    def own_signs(self) -> tuple[Sequence[float], ...]:
        """What speaks for each whatever the cue is: that it asks, how long it is, its weight."""
        asks = [1.0 if text.rstrip()[-1:] in _QUESTION_MARKS else 0.0 for text in self.texts]
        long = [_LENGTHS[min(len(text), LONG_ENOUGH)] for text in self.texts]
        return asks, long, self.importance

    def worth(self, *weights: float) -> Sequence[float]:
        """The sum of these signs by their weights."""
        if weights not in self._worth:
            self._worth[weights] = tuple(
                [sum(map(mul, weights, signs)) for signs in zip(*self.own_signs(), strict=True)]
            )
        return self._worth[weights]

    @cached_property
    def several_sessions(self) -> bool:
        """Whether turns of more than one session are among them."""
        said_in = (
            session for session, no in zip(self.sessions, self.nos, strict=True) if no is not None
        )
        return len(set(said_in)) > 1

    def at_turns(self, values: Sequence[float]) -> list[float]:
        """What `beside` takes: the values, that of a turn in several pieces the best of them;
        nothing where all are 0."""
        if not any(values):
            return []
        best = [*values, 0.0]
        for at, first in self._turns.pieces:
            best[first] = max(best[first], best[at])
        return best

    def beside(self, by: int, at_turns: Sequence[float]) -> list[float]:
        """What stands so many turns behind each (or ahead: from -2 to 1); 0 where nothing does."""
        if not at_turns:
            return [0.0] * len(self.ids)
        return list(map(at_turns.__getitem__, self._turns.beside[by]))

    @cached_property
    def _turns(self) -> _Turns:
        first: dict[Place, int] = {}
        pieces = []
        places = [
            None if no is None else (session, no)
            for session, no in zip(self.sessions, self.nos, strict=True)
        ]
        for at, place in enumerate(places):
            if place is not None and first.setdefault(place, at) != at:
                pieces.append((at, first[place]))
        beside = {
            by: tuple(
                [
                    _NOBODY if place is None else first.get((place[0], place[1] + by), _NOBODY)
                    for place in places
                ]
            )
            for by in (-2, -1, 1)
        }
        return _Turns(pieces, beside)


class _Turns(NamedTuple):
    """Which pieces go with the first one of their turn, and where the first one is of the turn that
    stands so many behind or ahead of each."""

    pieces: list[tuple[int, int]]
    beside: dict[int, tuple[int, ...]]
