"""Which memories bear on a cue: their order, and the line that each is told as.

Pure code over candidates that a store has found, each with the words of the cue that it has and the
likeness of its vector. Nothing here knows where they come from.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from operator import mul
from typing import Any, NamedTuple, TypeAlias

Place: TypeAlias = tuple[Any, int]
"""A session and the number of a message in it."""


class Candidate(NamedTuple):
    """A memory that may be recalled; thousands are made for one cue.

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
    role: str = ""
    place: Place | None = None
    part: int = 0
    importance: float = 0.0


class Candidates(NamedTuple):
    """Candidates by column, in the order of a candidate's fields: each sign is worked out for all
    at once, and no row is made of those that are not among the best."""

    ids: Sequence[Any]
    texts: Sequence[str]
    said_at: Sequence[datetime]
    hits: Sequence[Sequence[str]]
    lengths: Sequence[int]
    likeness: Sequence[float | None]
    speakers: Sequence[str]
    roles: Sequence[str]
    places: Sequence[Place | None]
    parts: Sequence[int]
    importance: Sequence[float]

    @classmethod
    def of(cls, rows: Sequence[Candidate]) -> Candidates:
        """Put rows into columns."""
        return cls._make(zip(*rows, strict=True) if rows else [()] * len(cls._fields))

    def rows(self) -> list[Candidate]:
        """Each candidate by itself."""
        return list(map(Candidate._make, zip(*self, strict=True)))

    def row(self, at: int) -> Candidate:
        """The candidate at a place, counted from 0."""
        return Candidate._make(column[at] for column in self)


@dataclass(frozen=True, slots=True)
class Weights:
    """What each sign adds to a memory's score.

    `before` and `after` weigh the turns next to it, by words and by likeness; `before_before` the
    one ahead of those, by words. `speaker` is for who the cue names, `question` for memories that
    ask, `length` for each time that a memory is e times as long, `statement_words` for the words
    where the cue is a statement.
    """

    words: float = 1.0
    likeness: float = 1.0
    before_words: float = 0.5
    before_likeness: float = 0.5
    before_before_words: float = 0.5
    after_words: float = 0.25
    after_likeness: float = 0.5
    session: float = 1.0
    speaker: float = 4.0
    question: float = -2.0
    length: float = 2.0
    importance: float = 1.0
    statement_words: float = 0.05


WEIGHTS = Weights()
"""Round numbers on purpose: no data set's coefficients. `python -m bench.memory` shows beside them
what weights give that were fitted to the other conversations."""

LONG_ENOUGH = 400  # characters
"""From here on a longer memory is no better one."""

LINE_CHARACTERS = 700
"""The longest line of a memory that is told."""

_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July", "August", "September"),
    *("October", "November", "December"),
)

# Of Latin, Chinese and Arabic script.
_QUESTION_MARKS = frozenset("?\uff1f\u061f")

_ASKS = re.compile(
    r"[?\uff1f\u061f][\"'\u2019\u201d)\s]*(\s|$)"
    r"|^\s*(who|whom|whose|what|when|where|which|why|how|do|does|did|is|are|was|were|has|have|had"
    r"|can|could|will|would|should|shall|may|might)(n't)?\b[^.!]*$",
    re.IGNORECASE,
)


def is_question(cue: str) -> bool:
    """Whether a cue asks: it has a question mark at the end of a sentence, or begins as English
    questions do and is one sentence."""
    return _ASKS.search(cue) is not None


def rank(cue: str, candidates: Sequence[Candidate], weights: Weights = WEIGHTS) -> list[Candidate]:
    """The candidates, the one that bears most on the cue first; see `best`."""
    order = best(cue, Candidates.of(candidates), len(candidates), weights)
    return [candidates[at] for at in order]


def best(cue: str, candidates: Candidates, most: int, weights: Weights = WEIGHTS) -> list[int]:
    """Where the `most` candidates are that bear most on the cue, the best first; the newer one
    where two are equal.

    A question is answered by what has its words, its sense, its people, and by what was said next
    to that. A statement calls up what is like it: its words mislead more than they help.
    """
    scores = _scores(cue, candidates, weights)
    order: Iterable[int] = range(len(scores))
    if 0 < most < len(scores):
        least = sorted(scores)[-most]  # the rest need no order
        order = [at for at in order if scores[at] >= least]
    said_at, parts = candidates.said_at, candidates.parts
    return sorted(order, key=lambda at: (scores[at], said_at[at], -parts[at]), reverse=True)[:most]


def _scores(cue: str, candidates: Candidates, weights: Weights) -> list[float]:
    if is_question(cue) or all(one is None for one in candidates.likeness):
        named = named_in(cue, set(candidates.speakers))
        return _sums(_signs(candidates, named), weights_of(weights))
    words, likeness = z_scores(_bm25(candidates)), z_scores(candidates.likeness)
    share = weights.statement_words
    return [like + share * word for word, like in zip(words, likeness, strict=True)]


def _sums(columns: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    """Each candidate's signs by their weights; a sign that nobody has is passed over."""
    total = [0.0] * len(columns[0])
    for column, weight in zip(columns, weights, strict=True):
        if any(column):
            total = [before + weight * sign for before, sign in zip(total, column, strict=True)]
    return total


def bm25(candidates: Sequence[Candidate]) -> list[float]:
    """How well each candidate's words answer the cue's, among these candidates.

    Robertson and Zaragoza, The Probabilistic Relevance Framework (2009), with k1 = 0.9 and
    b = 0.4; a word counts once, for hardly any is said twice in one turn. The rarity of words is
    Lucene's, which is never below 0.
    """
    return _bm25(Candidates.of(candidates))


def _bm25(candidates: Candidates) -> list[float]:
    total = len(candidates.hits)
    # Many candidates have the same few of the cue's words, often as one object.
    sets = list(map(id, candidates.hits))
    words_of = dict(zip(sets, candidates.hits, strict=True))
    rows: Counter[str] = Counter()
    for one, count in Counter(sets).items():
        for word in words_of[one]:
            rows[word] += count
    rarity = {
        word: math.log(1 + (total - count + 0.5) / (count + 0.5)) for word, count in rows.items()
    }
    worth = {one: sum([rarity[word] for word in hits]) for one, hits in words_of.items()}
    usual = sum(candidates.lengths) / total if total else 1.0
    share = {
        length: 1.9 / (1 + 0.9 * (0.6 + 0.4 * length / (usual or 1.0)))
        for length in set(candidates.lengths)
    }
    return list(map(mul, map(worth.__getitem__, sets), map(share.__getitem__, candidates.lengths)))


def z_scores(values: Sequence[float | None]) -> list[float]:
    """How many standard deviations each value lies above their mean; 0 for what is None."""
    known = [value for value in values if value is not None]
    if not known:
        return [0.0] * len(values)
    mean = math.fsum(known) / len(known)
    above = [value - mean for value in known]
    spread = math.sqrt(math.fsum(map(mul, above, above)) / len(known))
    if spread < _NO_SPREAD:
        return [0.0] * len(values)
    if len(known) == len(values):
        return [value / spread for value in above]
    return [0.0 if value is None else (value - mean) / spread for value in values]


_NO_SPREAD = 1e-9


def weights_of(weights: Weights) -> tuple[float, ...]:
    """The weights in the order of `signs`."""
    return (
        weights.words,
        weights.likeness,
        weights.before_words,
        weights.before_likeness,
        weights.before_before_words,
        weights.after_words,
        weights.after_likeness,
        weights.session,
        weights.speaker,
        weights.question,
        weights.length,
        weights.importance,
    )


def signs(candidates: Sequence[Candidate], named: str | None) -> list[tuple[float, ...]]:
    """What speaks for each candidate as an answer, in the order of `weights_of`.

    Args:
        named: the one speaker whom the question names.
    """
    return list(zip(*_signs(Candidates.of(candidates), named), strict=True))


def _signs(candidates: Candidates, named: str | None) -> list[Sequence[float]]:
    """The same by column."""
    raw = _bm25(candidates)
    words, likeness = z_scores(raw), z_scores(candidates.likeness)
    sessions = {place[0] for place in candidates.places if place is not None}
    keys = _keys(candidates.places, sessions)
    word_at = _best_at(keys, words)
    like_at = _best_at(keys, likeness) if any(likeness) else {}
    none = [0.0] * len(keys)
    return [
        words,
        likeness,
        _beside(keys, -1, word_at),
        _beside(keys, -1, like_at),
        _beside(keys, -2, word_at),
        _beside(keys, 1, word_at),
        _beside(keys, 1, like_at),
        z_scores(_best_of_sessions(candidates.places, raw)) if len(sessions) > 1 else none,
        [0.5 if named is None else float(speaker == named) for speaker in candidates.speakers],
        [1.0 if text.rstrip()[-1:] in _QUESTION_MARKS else 0.0 for text in candidates.texts],
        [_LENGTHS[size] if size < LONG_ENOUGH else _LONGEST for size in map(len, candidates.texts)],
        candidates.importance,
    ]


_LENGTHS = [math.log(1 + length) for length in range(LONG_ENOUGH + 1)]
_LONGEST = _LENGTHS[LONG_ENOUGH]

_LONGEST_SESSION = 1 << 40  # messages
_NOWHERE = -_LONGEST_SESSION


def _keys(places: Sequence[Place | None], sessions: Iterable[Any]) -> list[int]:
    """A number for each place: those of neighbours follow each other, and nothing stands next to
    what was not said in so many words."""
    first = {session: at * _LONGEST_SESSION for at, session in enumerate(sessions)}
    return [_NOWHERE if place is None else first[place[0]] + place[1] for place in places]


def _best_at(keys: Sequence[int], values: Sequence[float]) -> dict[int, float]:
    """The value at each place; of a turn in several pieces the best."""
    found = dict(zip(keys, values, strict=True))
    if len(found) < len(keys):
        for key, value in zip(keys, values, strict=True):
            found[key] = max(found[key], value)
    return found


def _beside(keys: Sequence[int], by: int, found: Mapping[int, float]) -> list[float]:
    """What stands so many places behind (or ahead of) each place; 0 where nothing does."""
    if not found:
        return [0.0] * len(keys)
    return [found.get(key + by, 0.0) for key in keys]


def _best_of_sessions(places: Sequence[Place | None], raw: Sequence[float]) -> list[float | None]:
    """For each turn the mean of the three best in its session."""
    of_session: dict[Any, list[float]] = {}
    for place, value in zip(places, raw, strict=True):
        if place is not None:
            of_session.setdefault(place[0], []).append(value)
    best = {session: sorted(values)[:-4:-1] for session, values in of_session.items()}
    means = {session: sum(three) / len(three) for session, three in best.items()}
    return [None if place is None else means[place[0]] for place in places]


def named_in(cue: str, speakers: Iterable[str]) -> str | None:
    """The one speaker whom a cue names; None where it names none or several."""
    said = set(re.findall(r"\w+", cue.casefold()))
    named = [
        name for name in speakers if name and said.issuperset(re.findall(r"\w+", name.casefold()))
    ]
    return named[0] if len(named) == 1 else None


def date_of(at: datetime, zone: tzinfo = UTC) -> str:
    """The day of a time as people write it: `7 May 2023`."""
    local = at.astimezone(zone)
    return f"{local.day} {_MONTHS[local.month - 1]} {local.year}"


def told(text: str, speaker: str, date: str) -> str:
    """A memory with who said it and when: the words that its vector is made of, for what is short
    says little by itself."""
    return f"{speaker} ({date}): {text}" if speaker else f"({date}) {text}"


def line_of(one: Candidate) -> str:
    """How a memory is shown to a model, on one line; its day is told above it (`recalled`)."""
    text = " ".join(one.text.split())
    if len(text) > LINE_CHARACTERS:
        text = f"{text[: LINE_CHARACTERS - 6]} [...]"
    return f"{one.speaker}: {text}" if one.speaker else text
