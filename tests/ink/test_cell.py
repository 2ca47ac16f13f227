"""A story may kill its process: that one, and never ours."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from worker.ink.cell import CellLimits
from worker.ink.compiler import compile_story
from worker.ink.engine import InkEngine, Turn
from worker.ink.errors import (
    BudgetExceededError,
    ChoiceNotFoundError,
    EngineCrashedError,
    ExternalFailedError,
    StoryInvalidError,
)
from worker.ink.machine import Budget

DICE = """EXTERNAL roll(sides)
VAR n = 1
LIST l = (a), b
Hello {n}.
* [Throw # dc:3] You throw {roll(6)}.
-> END
"""
# A ref parameter that points at a variable of its own name follows itself for ever.
FATAL = "~ temp n = 0\n-> k(n)\n=== k(ref n)\n~ n++\nNever seen.\n-> END\n"


PATIENT = CellLimits(seconds=120, cpu_seconds=120)
"""For turns of which nothing takes long but the machine."""


def compiled(text: str) -> str:
    return compile_story({"story.ink": text}).json


def play_contained(
    story: str,
    save: str | None = None,
    choice_id: str | None = None,
    *,
    limits: CellLimits = PATIENT,
    budget: Budget | None = None,
    **how: Any,
) -> Turn:
    engine = InkEngine(story, budget=budget, contained=True, limits=limits)
    return engine.advance(save, choice_id, **how)


def test_a_turn_in_a_cell_is_the_turn_of_an_engine() -> None:
    story = compiled(DICE)

    def roll(sides: int) -> int:
        return sides - 2

    first = play_contained(story, functions={"roll": roll}, variables={"n": 5}, seed=3)
    second = play_contained(story, first.save, first.choices[0].id, functions={"roll": roll})

    engine = InkEngine(story)
    expected = engine.advance(functions={"roll": roll}, variables={"n": 5}, seed=3)
    assert first == expected
    assert second == engine.advance(first.save, "0.c-0", functions={"roll": roll})
    assert second.text == "You throw 4."


def test_a_list_can_be_set_in_a_cell() -> None:
    story = compiled("LIST l = (a), b\nHas {l}.\n-> END\n")

    turn = play_contained(story, variables={"l": ("l.a", "l.b")})
    assert turn.text == "Has a, b."


def test_what_a_function_raises_comes_out_of_the_cell() -> None:
    story = compiled(DICE)
    error = LookupError("no dice")

    def roll(_: int) -> int:
        raise error

    first = play_contained(story, functions={"roll": roll})
    with pytest.raises(ExternalFailedError, match="no dice") as caught:
        play_contained(story, first.save, "0.c-0", functions={"roll": roll})

    assert caught.value.__cause__ is error


def test_an_error_of_the_engine_keeps_its_type() -> None:
    with pytest.raises(ChoiceNotFoundError, match="nowhere"):
        play_contained(compiled("* a\n- -> END\n"), choice_id="nowhere")
    with pytest.raises(StoryInvalidError):
        play_contained("{}")
    with pytest.raises(BudgetExceededError, match="20 ms"):
        play_contained(
            compiled("-> k\n=== k\n{true: -> k}\n-> END\n"), budget=Budget(milliseconds=20)
        )


def test_a_story_that_kills_its_process_kills_only_that() -> None:
    with pytest.raises(EngineCrashedError, match="died"):
        InkEngine(compiled(FATAL), limits=PATIENT).advance()


KNOTS = """
=== k(ref n)
{n}
-> END
=== t(ref n)
->->
=== function f(ref n)
~ return n
=== two(ref n, text, other)
-> END
"""


@pytest.mark.parametrize(
    ("line", "contained"),
    [
        ("-> k(x)", True),
        ("<- k(x)", True),
        ("* [Go] -> k(x)", True),
        ('{g: -> two(x, "{g}", f(g))}', True),
        ("-> k(g)", False),
        ("-> t(x) ->", False),
        ("~ f(x)", False),
        ("{g: {f(x)} | -> t(x) ->}", False),
        ("{f(x): -> t(g) ->}", False),
    ],
)
def test_a_story_is_contained_if_a_variable_may_point_at_itself(line: str, contained: bool) -> None:
    story = compiled(f"VAR g = 1\n~ temp x = 0\n{line}\n-> END\n{KNOTS}")

    assert InkEngine(story).contained is contained


def test_a_contained_story_plays_as_another() -> None:
    story = compiled("~ temp n = 2\n-> k(n)\n=== k(ref m)\n* [Go] {m} left.\n- -> END\n")
    engine, free = InkEngine(story, limits=PATIENT), InkEngine(story, contained=False)

    first = engine.advance(seed=1)
    assert engine.contained
    assert first == free.advance(seed=1)
    (choice,) = first.choices
    assert engine.advance(first.save, choice.id) == free.advance(first.save, choice.id)


def test_the_conformance_story_that_kills_its_process_is_contained(shared_data: Path) -> None:
    story = (shared_data / "ink" / "cases" / "I131" / "story.ink").read_text()

    with pytest.raises(EngineCrashedError, match="died"):
        InkEngine(compiled(story), limits=PATIENT).advance()


def test_a_turn_that_never_ends_is_ended() -> None:
    story = compiled("-> k\n=== k\n{true: -> k}\n-> END\n")
    patient = Budget(milliseconds=60_000)

    with pytest.raises(EngineCrashedError, match=r"ended after 0\.6 s"):
        play_contained(story, budget=patient, limits=CellLimits(seconds=0.6))
    with pytest.raises(EngineCrashedError, match="1 s of CPU time"):
        play_contained(story, budget=patient, limits=CellLimits(seconds=120, cpu_seconds=1))


def test_a_turn_that_eats_memory_is_ended() -> None:
    story = compiled('VAR s = "abcdefgh"\n-> k\n=== k\n~ s = s + s\n-> k\n')

    with pytest.raises(EngineCrashedError, match="96 MiB of memory"):
        play_contained(
            story,
            budget=Budget(milliseconds=60_000),
            limits=replace(PATIENT, memory_bytes=96 << 20),
        )
