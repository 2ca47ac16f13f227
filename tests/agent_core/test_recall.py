"""Ranking: what a question and a statement call up, z-scores, neighbours, names, budgets."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_core.candidates import Candidate, Candidates
from agent_core.recall import (
    WEIGHTS,
    best,
    bm25,
    date_of,
    is_question,
    line_of,
    named_in,
    rank,
    signs,
    told,
    weights_of,
    z_scores,
)

DAY = datetime(2026, 5, 7, 12, tzinfo=UTC)


def said(
    no: int,
    text: str = "It was a fine day at the lake.",
    hits: Sequence[str] = (),
    likeness: float | None = None,
    speaker: str = "Ada",
) -> Candidate:
    return Candidate(
        id=no,
        text=text,
        said_at=DAY + timedelta(minutes=no),
        hits=hits,
        length=6,
        likeness=likeness,
        speaker=speaker,
        place=("s", no),
    )


def ids(candidates: Sequence[Candidate]) -> list[object]:
    return [one.id for one in candidates]


@pytest.mark.parametrize(
    "cue",
    [
        "What did I say?",
        "So, do you remember it? I don't.",
        "where was it",
        'She asked "why?"',
        "你还记得我的狗吗\uff1f",
        "Isn't it late",
    ],
)
def test_a_question(cue: str) -> None:
    assert is_question(cue)


@pytest.mark.parametrize(
    "cue",
    ["I went to the lake.", "", "What a day! We swam.", "I know what you did.", "http://a.b/?q=1"],
)
def test_no_question(cue: str) -> None:
    assert not is_question(cue)


def test_rare_words_count_more_than_frequent_ones() -> None:
    rows = [said(1, hits=["lake"]), *(said(no, hits=["day"]) for no in range(2, 6)), said(6)]

    scores = bm25(rows)

    assert scores[0] > scores[1] > 0
    assert scores[5] == 0
    assert scores[0] == pytest.approx(math.log(1 + 5.5 / 1.5))


def test_a_shorter_memory_with_the_same_words_is_better() -> None:
    short, long = said(1, hits=["lake"]), said(2, hits=["lake"])._replace(length=40)

    assert bm25([short, long])[0] > bm25([short, long])[1]


def test_z_scores() -> None:
    assert z_scores([1.0, 3.0]) == [-1.0, 1.0]
    assert z_scores([1.0, None, 3.0]) == [-1.0, 0.0, 1.0]
    assert z_scores([2.0, 2.0]) == [0.0, 0.0]
    assert z_scores([None]) == [0.0]
    assert z_scores([]) == []


def test_a_question_is_answered_by_words_and_by_likeness() -> None:
    rows = [
        said(10, hits=["dog"], likeness=0.1),
        said(20, likeness=0.9),
        said(30, hits=["dog"], likeness=0.9),
        said(40, likeness=0.1),
    ]

    ranked = ids(rank("What is my dog called?", rows))

    assert ranked[0] == 30
    assert ranked[-1] == 40


def test_a_statement_calls_up_what_is_like_it_and_hardly_what_has_its_words() -> None:
    rows = [said(10, hits=["dog", "park"], likeness=0.1), said(20, likeness=0.9), said(30)]

    assert ids(rank("I walked the dog in the park.", rows))[0] == 20


def test_without_any_vector_a_statement_goes_by_its_words() -> None:
    rows = [said(10), said(20, hits=["dog", "park"]), said(30)]

    assert ids(rank("I walked the dog in the park.", rows))[0] == 20


def test_the_turn_after_what_answers_comes_before_one_elsewhere() -> None:
    rows = [said(10, hits=["dog"]), said(11), said(50), said(51)]

    assert ids(rank("Where is the dog?", rows))[:2] == [10, 11]


def test_who_is_named_is_asked_for() -> None:
    rows = [said(10, speaker="Ada"), said(20, speaker="Ben")]

    assert ids(rank("What does Ada like?", rows)) == [10, 20]
    assert ids(rank("What does ben like?", rows)) == [20, 10]
    assert named_in("Ada and Ben", ["Ada", "Ben"]) is None
    assert named_in("Adabelle", ["Ada"]) is None
    assert named_in("what of mary ann", ["Mary Ann", ""]) == "Mary Ann"
    assert named_in("what of Ada", ["\U0001f31f", "Ada"]) == "Ada"
    assert named_in("what now", ["\U0001f31f", "Ada"]) is None


def test_a_memory_that_asks_is_no_answer() -> None:
    rows = [said(10, "Did you swim in the lake?"), said(20, "I swam across the lake.")]

    assert ids(rank("Who swam?", rows)) == [20, 10]


def test_of_equals_the_newer_one_comes_first() -> None:
    assert ids(rank("Who?", [said(10), said(30), said(20)])) == [30, 20, 10]


def test_the_best_of_a_session_lifts_the_rest_of_it() -> None:
    here = [said(no, hits=["dog"]) for no in (10, 20, 30)] + [said(40)]
    there = [said(no)._replace(place=("t", no)) for no in (110, 120)]

    assert ids(rank("Where is the dog?", [*there, *here]))[3] == 40


def test_what_was_not_said_in_so_many_words_has_no_neighbours() -> None:
    fact = said(11)._replace(place=None)
    row = signs([said(10, hits=["dog"]), fact, said(12)], None)[1]

    assert row[2:8] == (0.0,) * 6


def test_a_turn_in_several_pieces_stands_beside_others_with_its_best_piece() -> None:
    rows = [said(9), said(10), said(10, hits=["dog"])._replace(id="more", part=1), said(11)]

    words = [row[0] for row in signs(rows, None)]
    before = [row[2] for row in signs(rows, None)]
    after = [row[5] for row in signs(rows, None)]

    assert max(words) == words[2]
    assert before == [0.0, words[0], words[0], words[2]]
    assert after == [words[2], words[3], words[3], 0.0]


def found(candidates: Candidates, cue: str, hits: dict[int, str], **how: Any) -> list[int]:
    """The places of the best two, where these have a word of the cue."""
    size = len(candidates.ids)
    words = [(hits[at],) if at in hits else () for at in range(size)]
    return best(cue, candidates, hits=words, likeness=[None] * size, most=2, **how)


def test_one_object_answers_many_cues() -> None:
    kept = Candidates.of([said(no) for no in range(0, 60, 10)])

    assert found(kept, "Where is the dog?", {2: "dog"})[0] == 2
    assert found(kept, "Where is the cat?", {4: "cat"})[0] == 4
    assert found(kept, "Where is the dog?", {2: "dog"})[0] == 2


def test_the_best_without_those_that_are_not_wanted() -> None:
    kept = Candidates.of([said(no) for no in range(0, 60, 10)])
    hits = {1: "dog", 2: "dog", 3: "dog"}

    assert found(kept, "Where is the dog?", hits) == [3, 2]
    assert found(kept, "Where is the dog?", hits, without={3, 5}) == [2, 1]
    assert found(kept, "Where is the dog?", {}, without={3, 5}) == [4, 2]
    assert found(kept, "Where is the dog?", hits, without=set(range(5))) == [5]
    assert found(kept, "Where is the dog?", hits, without=set(range(6))) == []
    assert found(kept, "Where is the dog?", hits) == [3, 2]


def test_there_is_a_weight_for_each_sign() -> None:
    assert len(weights_of(WEIGHTS)) == len(signs([said(1)], None)[0])


def test_nothing_to_rank() -> None:
    assert rank("What?", []) == []


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans(), st.floats(-1, 1)), max_size=30))
def test_ranking_keeps_every_candidate_once(rows: list[tuple[int, bool, float]]) -> None:
    given_ = [said(no, hits=["dog"] if hit else (), likeness=like) for no, hit, like in rows]

    assert sorted(map(id, rank("Where?", given_))) == sorted(map(id, given_))
    assert sorted(map(id, rank("There.", given_))) == sorted(map(id, given_))


def test_a_line_says_who() -> None:
    assert line_of(said(1, "Hello\n  there")) == "Ada: Hello there"
    assert line_of(said(1, "Hello", speaker="")) == "Hello"
    assert len(line_of(said(1, "x" * 5_000))) < 730


def test_a_vector_is_made_of_who_and_when_as_well() -> None:
    assert told("Hello", "Ada", "7 May 2026") == "Ada (7 May 2026): Hello"
    assert told("Hello", "", "7 May 2026") == "(7 May 2026) Hello"


def test_a_day_is_that_of_the_readers_zone() -> None:
    late = datetime(2026, 12, 31, 23, 30, tzinfo=UTC)

    assert date_of(late) == "31 December 2026"
    assert date_of(late, ZoneInfo("Asia/Tokyo")) == "1 January 2027"
    assert date_of(datetime(2026, 3, 1, 2, tzinfo=UTC), ZoneInfo("America/New_York")) == (
        "28 February 2026"
    )
