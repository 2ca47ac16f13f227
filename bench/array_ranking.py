"""The ranking of `agent_core.recall` in whole columns, for replays that rank thousands of turns for
thousands of cues.

Every score is summed up in the order in which `rank` does it, so that what is equal there is equal
here, and the order is the same; the tests hold the two side by side. numpy is needed.
"""

import importlib
import math
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent_core.candidates import LONG_ENOUGH, Candidate
from agent_core.recall import (
    WEIGHTS,
    is_question,
    named_in,
    signs,
    weights_of,
)

_QUESTION = 9
"""Where `signs` says whether a memory asks."""

_NO_SPREAD = 1e-9
_NONE = -1


def _numbers() -> "array[float]":
    return array("d")


def _places() -> "array[int]":
    return array("q")


@dataclass
class Columns:
    """Turns by column, each in one piece, and which words are in which.

    The turns of a session are added in their order, without gaps.
    """

    _said_at: "array[float]" = field(default_factory=_numbers)
    _length: "array[float]" = field(default_factory=_numbers)
    _asks: "array[float]" = field(default_factory=_numbers)
    _log_length: "array[float]" = field(default_factory=_numbers)
    _speaker: "array[int]" = field(default_factory=_places)
    _session: "array[int]" = field(default_factory=_places)
    _before: "array[int]" = field(default_factory=_places)
    _after: "array[int]" = field(default_factory=_places)
    _speakers: dict[str, int] = field(default_factory=dict)
    _sessions: dict[Any, int] = field(default_factory=dict)
    _newest: dict[int, int] = field(default_factory=dict)
    _having: dict[str, "array[int]"] = field(default_factory=lambda: defaultdict(_places))

    def add(self, turn: Candidate, words: Iterable[str]) -> None:
        """Add a turn with all its words; its hits and likeness are those of no cue yet."""
        at = len(self._said_at)
        there = turn.place[0] if turn.place is not None else ("alone", at)
        session = self._sessions.setdefault(there, len(self._sessions))
        before = self._newest.get(session, _NONE)
        if before != _NONE:
            self._after[before] = at
        self._newest[session] = at
        self._said_at.append(turn.said_at.timestamp())
        self._length.append(turn.length)
        self._asks.append(signs([turn], None)[0][_QUESTION])
        self._log_length.append(math.log(1 + min(len(turn.text), LONG_ENOUGH)))
        self._speaker.append(self._speakers.setdefault(turn.speaker, len(self._speakers)))
        self._session.append(session)
        self._before.append(before)
        self._after.append(_NONE)
        for word in words:
            self._having[word].append(at)

    def best(
        self,
        cue: str,
        words: Iterable[str],
        likeness: Sequence[float],
        without: Sequence[int],
        most: int,
    ) -> list[int]:
        """The turns that bear most on a cue, the best first, by their numbers.

        Args:
            words: the cue's.
            likeness: of every turn.
            without: numbers of turns that are no candidates.
        """
        np: Any = importlib.import_module("numpy")
        open_ = np.ones(len(self._said_at), bool)
        open_[np.array(without, np.int64)] = False
        rows = np.flatnonzero(open_)
        if not len(rows):
            return []
        raw = self._bm25(words, open_, rows)
        word, like = _z(raw), _z(np.asarray(likeness, np.float64)[rows])
        if is_question(cue):
            scores = self._answering(cue, rows, raw, word, like)
        else:
            scores = like + WEIGHTS.statement_words * word
        if len(rows) > most:
            # Most turns are not among the best, so they need no order.
            near = np.flatnonzero(scores >= np.partition(scores, -most)[-most])
            rows, scores = rows[near], scores[near]
        order = np.lexsort((-np.array(self._said_at)[rows], -scores))[:most]
        found: list[int] = rows[order].tolist()
        return found

    def _bm25(self, words: Iterable[str], open_: Any, rows: Any) -> Any:
        np: Any = importlib.import_module("numpy")
        total, sums = len(rows), np.zeros(len(open_))
        for word in words:
            if word not in self._having:
                continue
            having = np.array(self._having[word])
            count = int(np.count_nonzero(open_[having]))
            if count:
                sums[having] += math.log(1 + (total - count + 0.5) / (count + 0.5))
        length = np.array(self._length)[rows]
        usual = float(length.sum()) / total  # whole numbers: exact in any order
        return sums[rows] * (1.9 / (1 + 0.9 * (0.6 + 0.4 * length / (usual or 1.0))))

    def _answering(self, cue: str, rows: Any, raw: Any, word: Any, like: Any) -> Any:
        """The score of each row for a question."""
        np: Any = importlib.import_module("numpy")
        # One place more, which stands for turns that are not there.
        words, likes = np.zeros((2, len(self._said_at) + 1))
        words[rows], likes[rows] = word, like
        before, after = np.array(self._before), np.array(self._after)
        first, last = before[rows], after[rows]
        earlier = np.where(first == _NONE, _NONE, before[first])
        of_cue = (
            word,
            like,
            words[first],
            likes[first],
            words[earlier],
            words[last],
            likes[last],
            _z(self._best_of_sessions(rows, raw)),
            self._named(cue, rows),
        )
        *weights, asks, length, _ = weights_of(WEIGHTS)  # turns have no importance
        scores = np.array(self._asks)[rows] * asks + np.array(self._log_length)[rows] * length
        for weight, column in zip(weights, of_cue, strict=True):
            scores += column * weight
        return scores

    def _best_of_sessions(self, rows: Any, raw: Any) -> Any:
        """For each row the mean of the three best in its session."""
        np: Any = importlib.import_module("numpy")
        session = np.array(self._session)[rows]
        counts = np.bincount(session, minlength=len(self._sessions))
        hit = np.flatnonzero(raw)
        hit = hit[np.lexsort((-raw[hit], session[hit]))]
        sessions = session[hit]
        rank_in = np.arange(len(hit)) - np.searchsorted(sessions, sessions)
        three = np.zeros((len(self._sessions), 3))
        top = rank_in < 3
        three[sessions[top], rank_in[top]] = raw[hit[top]]
        sums = three[:, 0] + three[:, 1] + three[:, 2]
        return (sums / np.clip(counts, 1, 3))[session]

    def _named(self, cue: str, rows: Any) -> Any:
        np: Any = importlib.import_module("numpy")
        speaker = np.array(self._speaker)[rows]
        there = np.bincount(speaker, minlength=len(self._speakers))
        named = named_in(cue, {name for name, no in self._speakers.items() if there[no]})
        if named is None:
            return np.zeros(len(rows))
        return (speaker == self._speakers[named]) - 0.5


def _z(values: Any) -> Any:
    """As `z_scores`."""
    mean = math.fsum(values.tolist()) / len(values)
    apart = values - mean
    spread = math.sqrt(math.fsum((apart * apart).tolist()) / len(values))
    return values * 0.0 if spread < _NO_SPREAD else apart / spread
