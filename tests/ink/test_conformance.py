"""Public conformance stories, saved, rebuilt and restored before every choice."""

from pathlib import Path

import pytest

from worker.ink.compiler import compile_story
from worker.ink.engine import InkEngine, Turn

# The folder has 60 stories. Three draw random numbers of another runtime, one kills its process
# and is played in test_cell.py.
RANDOM = {"I074", "I106", "I107"}
FATAL = {"I131"}
# fmt: off
NUMBERS = (
    5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 18, 19, 24, 25, 27, 28, 29, 31, 38, 39, 40, 48, 51,
    54, 55, 56, 64, 65, 70, 71, 72, 73, 74, 75, 81, 82, 83, 88, 93, 94, 100, 102, 105,
    106, 107, 108, 110, 111, 112, 113, 114, 115, 117, 120, 121, 123, 127, 130, 131, 132,
)
# fmt: on
CASES = [f"I{number:03}" for number in NUMBERS]


@pytest.fixture
def cases(shared_data: Path) -> Path:
    return shared_data / "ink" / "cases"


def compiled(case: Path) -> str:
    return compile_story({file.name: file.read_text() for file in case.glob("*.ink")}).json


def shown(turn: Turn) -> str:
    """What a player sees of a turn, in the transcripts' way."""
    text = ""
    for line in turn.lines:
        text += f"{line.text}\n"
        if line.tags:
            text += f"# tags: {', '.join(line.tags)}\n"
    if turn.choices:
        text += "\n"
        text += "".join(f"{choice.index + 1}: {choice.text}\n" for choice in turn.choices)
        text += "?> "
    return text


def transcript(story: str, picks: list[int]) -> str:
    turn = InkEngine(story).advance()
    text = shown(turn)
    for pick in picks:
        if not turn.choices:  # I031 has an input too many
            break
        # A new engine for each choice: nothing but the save carries over.
        turn = InkEngine(story).advance(turn.save, turn.choices[pick - 1].id)
        text += shown(turn)
    return text


@pytest.mark.parametrize("name", [c for c in CASES if c not in RANDOM | FATAL])
def test_a_case_gives_its_transcript(cases: Path, name: str) -> None:
    picks = [int(pick) for pick in (cases / name / "input.txt").read_text().split()]

    told = transcript(compiled(cases / name), picks)

    assert told == (cases / name / "transcript.txt").read_text()


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_a_case_with_random_numbers_repeats_itself_with_one_seed(cases: Path, name: str) -> None:
    engine = InkEngine(compiled(cases / name))

    assert engine.advance(seed=7) == engine.advance(seed=7)


def test_no_case_is_left_out(cases: Path) -> None:
    assert sorted(case.name for case in cases.iterdir()) == CASES
