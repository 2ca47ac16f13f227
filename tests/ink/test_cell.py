"""A story may kill its process: that one, and never ours."""

from dataclasses import replace
from pathlib import Path

import pytest

from worker.ink.cell import CellLimits, play_contained
from worker.ink.compiler import compile_story
from worker.ink.engine import InkEngine
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


def test_a_turn_in_a_cell_is_the_turn_of_an_engine() -> None:
    story = compiled(DICE)

    def roll(sides: int) -> int:
        return sides - 2

    first = play_contained(
        story, functions={"roll": roll}, variables={"n": 5}, seed=3, limits=PATIENT
    )
    second = play_contained(
        story, first.save, first.choices[0].id, functions={"roll": roll}, limits=PATIENT
    )

    engine = InkEngine(story)
    expected = engine.advance(functions={"roll": roll}, variables={"n": 5}, seed=3)
    assert first == expected
    assert second == engine.advance(first.save, "0.c-0", functions={"roll": roll})
    assert second.text == "You throw 4."


def test_a_list_can_be_set_in_a_cell() -> None:
    story = compiled("LIST l = (a), b\nHas {l}.\n-> END\n")

    turn = play_contained(story, variables={"l": ("l.a", "l.b")}, limits=PATIENT)
    assert turn.text == "Has a, b."


def test_what_a_function_raises_comes_out_of_the_cell() -> None:
    story = compiled(DICE)
    error = LookupError("no dice")

    def roll(_: int) -> int:
        raise error

    first = play_contained(story, functions={"roll": roll}, limits=PATIENT)
    with pytest.raises(ExternalFailedError, match="no dice") as caught:
        play_contained(story, first.save, "0.c-0", functions={"roll": roll}, limits=PATIENT)

    assert caught.value.__cause__ is error


def test_an_error_of_the_engine_keeps_its_type() -> None:
    with pytest.raises(ChoiceNotFoundError, match="nowhere"):
        play_contained(compiled("* a\n- -> END\n"), choice_id="nowhere", limits=PATIENT)
    with pytest.raises(StoryInvalidError):
        play_contained("{}", limits=PATIENT)
    with pytest.raises(BudgetExceededError, match="20 ms"):
        play_contained(
            compiled("-> k\n=== k\n{true: -> k}\n-> END\n"),
            budget=Budget(milliseconds=20),
            limits=PATIENT,
        )


def test_a_story_that_kills_its_process_kills_only_that() -> None:
    with pytest.raises(EngineCrashedError, match="died"):
        play_contained(compiled(FATAL), limits=PATIENT)


def test_the_conformance_story_that_kills_its_process_is_contained(shared_data: Path) -> None:
    story = (shared_data / "ink" / "cases" / "I131" / "story.ink").read_text()

    with pytest.raises(EngineCrashedError, match="died"):
        play_contained(compiled(story), limits=PATIENT)


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
