"""Which memories bear on a cue: their order, and the line that each is told as.

Pure code over candidates that a store has found, each with the words of the cue that it has and the
likeness of its vector. Nothing here knows where they come from.
"""

from __future__ import annotations

import heapq
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
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
    statement_words: float = 0.15


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
_QUESTION_MARKS = ("?", "\uff1f", "\u061f")

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
    """The candidates, the one that bears most on the cue first; the newer one where two are equal.

    A question is answered by what has its words, its sense, its people, and by what was said next
    to that. A statement calls up what is like it: its words mislead more than they help.
    """
    if is_question(cue) or all(one.likeness is None for one in candidates):
        given = weights_of(weights)
        named = named_in(cue, {one.speaker for one in candidates})
        scores = [sum(map(mul, row, given)) for row in signs(candidates, named)]
    else:
        scores = [
            like + weights.statement_words * word
            for word, like in zip(
                z_scores(bm25(candidates)),
                z_scores([one.likeness for one in candidates]),
                strict=True,
            )
        ]
    order = sorted(
        zip(scores, candidates, strict=True),
        key=lambda scored: (scored[0], scored[1].said_at, -scored[1].part),
        reverse=True,
    )
    return [one for _, one in order]


def bm25(candidates: Sequence[Candidate]) -> list[float]:
    """How well each candidate's words answer the cue's, among these candidates.

    Robertson and Zaragoza, The Probabilistic Relevance Framework (2009), with k1 = 0.9 and
    b = 0.4; a word counts once, for hardly any is said twice in one turn. The rarity of words is
    Lucene's, which is never below 0.
    """
    total = len(candidates)
    rows = Counter(word for one in candidates for word in one.hits)
    rarity = {
        word: math.log(1 + (total - count + 0.5) / (count + 0.5)) for word, count in rows.items()
    }
    usual = sum(one.length for one in candidates) / total if total else 1.0
    return [
        sum(rarity[word] for word in one.hits)
        * (1.9 / (1 + 0.9 * (0.6 + 0.4 * one.length / (usual or 1.0))))
        if one.hits
        else 0.0
        for one in candidates
    ]


def z_scores(values: Sequence[float | None]) -> list[float]:
    """How many standard deviations each value lies above their mean; 0 for what is None."""
    known = [value for value in values if value is not None]
    if not known:
        return [0.0] * len(values)
    mean = math.fsum(known) / len(known)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / len(known))
    if spread < _NO_SPREAD:
        return [0.0] * len(values)
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
    raw = bm25(candidates)
    words, likeness = z_scores(raw), z_scores([one.likeness for one in candidates])
    sessions = z_scores(_best_of_sessions(candidates, raw))
    standing = _by_place(candidates, words, likeness)
    rows: list[tuple[float, ...]] = []
    for one, word, like, session in zip(candidates, words, likeness, sessions, strict=True):
        before = before_before = after = _NOTHING
        if one.place is not None:
            there, no = one.place
            before = standing.get((there, no - 1), _NOTHING)
            before_before = standing.get((there, no - 2), _NOTHING)
            after = standing.get((there, no + 1), _NOTHING)
        row = (
            word,
            like,
            before[0],
            before[1],
            before_before[0],
            after[0],
            after[1],
            session,
            0.5 if named is None else float(one.speaker == named),
            float(one.text.rstrip().endswith(_QUESTION_MARKS)),
            _LENGTHS[min(len(one.text), LONG_ENOUGH)],
            one.importance,
        )
        rows.append(row)
    return rows


_LENGTHS = [math.log(1 + length) for length in range(LONG_ENOUGH + 1)]

_NOTHING = (0.0, 0.0)


def _best_of_sessions(candidates: Sequence[Candidate], raw: Sequence[float]) -> list[float | None]:
    """For each turn the mean of the three best in its session."""
    of_session: dict[Any, list[float]] = {}
    for one, value in zip(candidates, raw, strict=True):
        if one.place is not None:
            of_session.setdefault(one.place[0], []).append(value)
    best = {session: heapq.nlargest(3, values) for session, values in of_session.items()}
    means = {session: sum(three) / len(three) for session, three in best.items()}
    return [None if one.place is None else means[one.place[0]] for one in candidates]


def _by_place(
    candidates: Sequence[Candidate], words: Sequence[float], likeness: Sequence[float]
) -> dict[Place, tuple[float, float]]:
    """Words and likeness of each turn; of one in several pieces the best of each."""
    found: dict[Place, tuple[float, float]] = {}
    for one, word, like in zip(candidates, words, likeness, strict=True):
        if one.place is None:
            continue
        best = found.get(one.place)
        found[one.place] = (
            (word, like) if best is None else (max(best[0], word), max(best[1], like))
        )
    return found


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
