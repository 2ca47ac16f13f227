"""Memories as lines under their days, and as many of them as a budget takes."""

from hypothesis import given
from hypothesis import strategies as st

from agent_core.context_notes import RecalledMemory
from agent_core.recalled import LINE_TOKENS, filled, tokens_of, told_by_day
from agent_core.tokens import count_tokens


def memory(no: int, text: str, day: int = 7) -> RecalledMemory:
    return RecalledMemory(f"m{no}", text, f"2026-05-{day:02}T12:{no % 60:02}", f"{day} May 2026")


def test_a_day_stands_before_the_first_memory_of_it() -> None:
    told = told_by_day(
        [
            memory(3, "Ada: He ran away.", day=9),
            memory(2, "You: What a name!"),
            memory(1, "Ada: My dog is called Rex."),
        ]
    )

    assert [one.text for one in told] == [
        "7 May 2026:\n- Ada: My dog is called Rex.",
        "You: What a name!",
        "9 May 2026:\n- Ada: He ran away.",
    ]
    assert [one.id for one in told] == ["m1", "m2", "m3"]


def test_lines_that_name_their_day_stay_as_they_are() -> None:
    """As they stand in notes."""
    noted = [RecalledMemory("m", "Ada (7 May 2026): Hi.", "2026-05-07")]

    assert told_by_day(noted) == noted
    told = told_by_day([memory(1, "Ada: Hi.")])
    assert told_by_day(told) == told
    assert [RecalledMemory.from_dict(one.to_dict()) for one in told] == told


MEMORIES = st.lists(st.tuples(st.text(max_size=200), st.integers(1, 5)), max_size=40)


@given(MEMORIES, st.integers(0, 300))
def test_a_budget_is_never_exceeded(said: list[tuple[str, int]], budget: int) -> None:
    ranked = [memory(no, text, day) for no, (text, day) in enumerate(said)]

    taken = filled(ranked, budget)

    assert tokens_of(told_by_day(taken)) <= budget
    places = [ranked.index(one) for one in taken]
    assert places == sorted(set(places))


def test_a_day_is_paid_for_once() -> None:
    words = "Ada: word word word"
    line = count_tokens(words) + LINE_TOKENS
    day = tokens_of(told_by_day([memory(1, words)])) - line
    apart = [memory(no, f"{words}{'!' * no}", day=no) for no in (1, 2)]
    together = [memory(no, f"{words}{'!' * no}") for no in (1, 2)]
    budget = 2 * (line + 1) + day

    assert day >= 4
    assert len(filled(together, budget)) == 2
    assert len(filled(apart, budget)) == 1
    assert len(filled(apart, budget + day)) == 2


def test_a_long_line_gives_way_to_shorter_ones() -> None:
    taken = filled([memory(1, "word " * 100), memory(2, "a few words")], 20)

    assert [one.id for one in taken] == ["m2"]


def test_what_was_said_twice_is_told_once() -> None:
    taken = filled([memory(1, "Hi."), memory(2, "Hi."), memory(3, "Hi.", day=8)], 100)

    assert [one.id for one in taken] == ["m1", "m3"]
