"""What the global tags of a story mean, and that a typo in one loses nothing."""

import math

import pytest

from worker.ink.ranges import Range
from worker.story_rules import CONFIDENCE, SHRUG, StoryRules, read_rules

VARIABLES = ("mood", "trust", "wits", "oil")


def rules(*tags: str) -> StoryRules:
    return read_rules(tags, VARIABLES, ("oil", "wits"))


def test_a_story_without_tags() -> None:
    assert rules() == StoryRules(
        title="the story",
        confidence=CONFIDENCE,
        stats=("oil", "wits"),
        judged={},
        narrate_choices=False,
        shrug=SHRUG,
    )


def test_a_story_that_says_everything() -> None:
    assert rules(
        "title: The Gate",
        "confidence: 0.75",
        "stats: wits",
        "Judged: mood, trust, oil",
        "range: trust 0..10",
        "range: mood calm, cross",
        "range: oil -1.5 .. 2 by 0.5",
        "narrate: choices",
        "shrug: The guard yawns.",
    ) == StoryRules(
        title="The Gate",
        confidence=0.75,
        stats=("wits",),
        judged={
            "mood": Range(words=("calm", "cross")),
            "trust": Range(0, 10),
            "oil": Range(-1.5, 2, 0.5),
        },
        narrate_choices=True,
        shrug="The guard yawns.",
    )


@pytest.mark.parametrize("text", ["high", "", "1.5", "-0.1", "nan", "1,0"])
def test_a_confidence_that_is_none_counts_as_absent(text: str) -> None:
    assert rules(f"confidence: {text}").confidence == CONFIDENCE


@pytest.mark.parametrize(
    "bounds",
    ["low..high", "0-10", "10..0", "0..10 by 0", "0..10 by fast", "..", "", "1", "0..10..20", ","],
)
def test_a_variable_whose_range_cannot_be_read_is_not_judged(bounds: str) -> None:
    said = rules("judged: trust, mood", f"range: trust {bounds}")

    assert said.judged == {"mood": Range()}


def test_a_judge_that_is_off_judges_nothing() -> None:
    assert rules("judged: mood", "judge: off").judged == {}


def test_names_of_no_variable_are_left_out() -> None:
    said = rules("judged: mood, moood, mood", "stats: wits, brawn")

    assert (tuple(said.judged), said.stats) == (("mood",), ("wits",))


def test_how_a_range_reads_in_a_prompt() -> None:
    assert str(Range()) == "any"
    assert str(Range(0, 10)) == "0 to 10"
    assert str(Range(0, 10, 2)) == "0 to 10, changing by at most 2"
    assert str(Range(words=("calm", "cross"))) == "calm or cross"
    assert Range().low == -math.inf
