"""Which memories bear on a cue: their order, and the line that each is told as.

Pure code over candidates that a store has found, each with the words of the cue that it has and the
likeness of its vector. Nothing here knows where they come from.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from operator import mul
from typing import Any

from agent_core.candidates import Candidate, Candidates


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

LINE_CHARACTERS = 700
"""The longest line of a memory that is told."""

_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July", "August", "September"),
    *("October", "November", "December"),
)

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
    hits, likeness = _of_cue(candidates)
    order = best(
        cue,
        Candidates.of(candidates),
        hits=hits,
        likeness=likeness,
        most=len(candidates),
        weights=weights,
    )
    return [candidates[at] for at in order]


def best(
    cue: str,
    candidates: Candidates,
    *,
    hits: Sequence[Sequence[str]],
    likeness: Sequence[float | None],
    most: int,
    without: Collection[int] = (),
    weights: Weights = WEIGHTS,
) -> list[int]:
    """Where the `most` candidates are that bear most on the cue, the best first; the newer one
    where two are equal.

    A question is answered by what has its words, its sense, its people, and by what was said next
    to that. A statement calls up what is like it: its words mislead more than they help.

    Args:
        hits: the words of the cue that each has.
        likeness: the cosine of each one's vector and the cue's.
        without: the places of those that are not wanted, though others are measured by them.
    """
    scores = _scores(cue, candidates, hits, likeness, weights)
    if without:
        scores = [*scores]
        for at in without:
            scores[at] = -math.inf
    most = min(most, len(scores) - len(without))
    if most <= 0:
        return []
    least = sorted(scores)[-most]  # the rest need no order
    said_at, parts = candidates.said_at, candidates.parts
    order = [at for at, score in enumerate(scores) if score >= least]
    return sorted(order, key=lambda at: (scores[at], said_at[at], -parts[at]), reverse=True)[:most]


def _scores(
    cue: str,
    candidates: Candidates,
    hits: Sequence[Sequence[str]],
    likeness: Sequence[float | None],
    weights: Weights,
) -> Sequence[float]:
    if is_question(cue) or all(one is None for one in likeness):
        *of_cue, asks, length, importance = weights_of(weights)
        named = named_in(cue, candidates.names)
        total = candidates.worth(asks, length, importance)
        for sign, weight in zip(
            _signs_of_cue(candidates, hits, likeness, named), of_cue, strict=True
        ):
            if any(sign):  # mostly some have none
                total = [before + weight * value for before, value in zip(total, sign, strict=True)]
        return total
    words, like = z_scores(_bm25(candidates, hits)), z_scores(likeness)
    share = weights.statement_words
    return [one + share * word for word, one in zip(words, like, strict=True)]


def _of_cue(
    candidates: Sequence[Candidate],
) -> tuple[list[Sequence[str]], list[float | None]]:
    return [one.hits for one in candidates], [one.likeness for one in candidates]


def bm25(candidates: Sequence[Candidate]) -> list[float]:
    """How well each candidate's words answer the cue's, among these candidates.

    Robertson and Zaragoza, The Probabilistic Relevance Framework (2009), with k1 = 0.9 and
    b = 0.4; a word counts once, for hardly any is said twice in one turn. The rarity of words is
    Lucene's, which is never below 0.
    """
    return _bm25(Candidates.of(candidates), _of_cue(candidates)[0])


def _bm25(candidates: Candidates, hits: Sequence[Sequence[str]]) -> list[float]:
    total = len(hits)
    # Many candidates have the same few of the cue's words, often as one object.
    sets = list(map(id, hits))
    words_of = dict(zip(sets, hits, strict=True))
    rows: Counter[str] = Counter()
    for one, count in Counter(sets).items():
        for word in words_of[one]:
            rows[word] += count
    rarity = {
        word: math.log(1 + (total - count + 0.5) / (count + 0.5)) for word, count in rows.items()
    }
    worth = {one: sum([rarity[word] for word in words]) for one, words in words_of.items()}
    return list(map(mul, map(worth.__getitem__, sets), candidates.shares))


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
    columns = Candidates.of(candidates)
    of_cue = _signs_of_cue(columns, *_of_cue(candidates), named)
    return list(zip(*of_cue, *columns.own_signs(), strict=True))


def _signs_of_cue(
    candidates: Candidates,
    hits: Sequence[Sequence[str]],
    likeness: Sequence[float | None],
    named: str | None,
) -> list[Sequence[float]]:
    """Those of them that depend on the cue, by column."""
    none = [0.0] * len(hits)
    raw = _bm25(candidates, hits)
    words, like = z_scores(raw), z_scores(likeness)
    word_at, like_at = candidates.at_turns(words), candidates.at_turns(like)
    return [
        words,
        like,
        candidates.beside(-1, word_at),
        candidates.beside(-1, like_at),
        candidates.beside(-2, word_at),
        candidates.beside(1, word_at),
        candidates.beside(1, like_at),
        z_scores(_best_of_sessions(candidates, raw)) if candidates.several_sessions else none,
        none if named is None else [_SPEAKS[name == named] for name in candidates.speakers],
    ]


# By whether the one speaks whom the cue names; 0 where it names nobody.
_SPEAKS = (-0.5, 0.5)


def _best_of_sessions(candidates: Candidates, raw: Sequence[float]) -> list[float | None]:
    """For each turn the mean of the three best in its session."""
    sessions, nos = candidates.sessions, candidates.nos
    of_session: dict[Any, list[float]] = {}
    for session, no, value in zip(sessions, nos, raw, strict=True):
        if no is not None:
            of_session.setdefault(session, []).append(value)
    best = {session: sorted(values)[:-4:-1] for session, values in of_session.items()}
    means = {session: sum(three) / len(three) for session, three in best.items()}
    return [
        None if no is None else means[session] for session, no in zip(sessions, nos, strict=True)
    ]


def named_in(cue: str, speakers: Iterable[str]) -> str | None:
    """The one speaker whom a cue names; None where it names none or several."""
    said = set(re.findall(r"\w+", cue.casefold()))
    words = {name: re.findall(r"\w+", name.casefold()) for name in speakers}
    # A name of an emoji alone has no words, and all cues would have all of them.
    named = [name for name, of_name in words.items() if of_name and said.issuperset(of_name)]
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
