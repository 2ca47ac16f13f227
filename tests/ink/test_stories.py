"""Our own stories are offered, so they must be sound."""

import re
from pathlib import Path

import pytest

from worker.ink.check import StoryReport, check_story
from worker.ink.compiler import compile_story
from worker.ink.engine import InkEngine
from worker.ink.library import StoryLibrary, StorySource

STORIES = Path(__file__).parents[2] / "stories"


@pytest.fixture(scope="module")
def lamp() -> StorySource:
    return StoryLibrary([STORIES]).sources()["last-lamp"]


@pytest.fixture(scope="module")
def report(lamp: StorySource) -> StoryReport:
    return check_story(lamp.files, lamp.main, paths=300)


def test_the_check_finds_nothing_to_say(report: StoryReport) -> None:
    assert [str(problem) for problem in report.problems] == []
    assert report.met.played == 300


def test_it_has_three_endings(report: StoryReport) -> None:
    assert set(report.met.endings) == {"the harbour lit", "the marchpane home", "a dark quay"}


def test_one_reading_takes_ten_to_fifteen_minutes(report: StoryReport) -> None:
    words_per_minute = 200

    assert 10 <= report.met.words_per_path / words_per_minute <= 15


def test_what_it_declares(lamp: StorySource) -> None:
    engine = InkEngine(compile_story(lamp.files, lamp.main).json)
    text = "\n".join(lamp.files.values())

    assert engine.metadata["title"] == "The Last Lamp on Harrow Quay"
    assert engine.public_names == ("place", "lit", "oil", "fog", "nerve", "wits", "hands")
    assert engine.external_names == {"roll"}
    assert not engine.externals_without_fallback
    assert len(re.findall(r"^=== (?!function)", text, re.MULTILINE)) >= 25
    assert len(re.findall(r"# dc:\S+ # stat:\w+\]", text)) >= 4


def test_a_throw_decides(lamp: StorySource) -> None:
    engine = InkEngine(compile_story(lamp.files, lamp.main).json)

    def on_the_stair(thrown: int) -> str:
        turn = engine.advance(path="stair_climb", functions={"roll": lambda _: thrown})
        gusts = turn.choices[1]
        assert gusts.tags == ("dc:12", "stat:wits")
        turn = engine.advance(turn.save, gusts.id, functions={"roll": lambda _: thrown})
        return turn.text

    assert on_the_stair(10).startswith("It comes in threes.")
    assert on_the_stair(9).startswith("The wind does not blow at the flame.")
