"""Whatever a model answers, reading it never fails and never gives more than is allowed."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.story.playing import scene_of
from worker.judge import read as read_verdict
from worker.referee import HIGHEST_DC, LOWEST_DC
from worker.referee import read as read_ruling
from worker.story_replies import json_in, number_in
from worker.story_scene import Scene

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
RULINGS = st.fixed_dictionaries(
    {"choice": VALUES | st.integers(-2, 5)},
    optional={
        "confidence": VALUES | st.floats(0, 1),
        "check": VALUES | st.fixed_dictionaries({"stat": VALUES | st.just("wits"), "dc": VALUES}),
        "reason": VALUES,
    },
)
VERDICTS = st.fixed_dictionaries(
    {
        "changes": VALUES
        | st.fixed_dictionaries(
            {},
            optional={
                "trust": VALUES | st.integers(-5, 15),
                "mood": VALUES | st.sampled_from(["calm", "cross", "furious"]),
                "met": VALUES,
                "secret": VALUES,
            },
        )
    },
    optional={"contradictions": VALUES},
)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return asyncio.run(scene_of())


@given(RULINGS)
def test_a_ruling_points_at_an_open_choice_or_at_none(scene: Scene, said: object) -> None:
    ruling = read_ruling(json.dumps(said), scene)

    if ruling is not None:
        assert ruling.choice is None or ruling.choice in scene.turn.choices
        assert ruling.choice is None or ruling.confidence >= scene.rules.confidence
        assert 0 <= ruling.confidence <= 1
        assert ruling.choice is None or ruling.check is None
        if ruling.check is not None:
            assert LOWEST_DC <= ruling.check.dc <= HIGHEST_DC
            assert ruling.check.stat in {None, "wits"}


@given(VERDICTS)
def test_a_verdict_stays_within_the_storys_ranges(scene: Scene, said: object) -> None:
    changes = dict(read_verdict(json.dumps(said), scene).changes)

    trust, mood = changes.pop("trust", 4), changes.pop("mood", "cross")
    assert isinstance(trust, int)
    assert not isinstance(trust, bool)
    assert 1 <= trust <= 5
    assert mood == "cross"
    assert set(changes) <= {"secret"}


TENTHS = """
# judged: warmth
# range: warmth 0..1 by 0.1
VAR warmth = 0.0
{warmth} -> DONE
"""


@pytest.mark.parametrize("tenth", range(10))
def test_a_step_of_a_tenth_is_one_wherever_it_begins(tenth: int) -> None:
    story = asyncio.run(scene_of(TENTHS.replace("0.0", f"{tenth / 10}")))

    for to, reached in ((tenth + 1, True), (tenth + 2, False), (tenth - 1, tenth > 0)):
        changes = read_verdict(json.dumps({"changes": {"warmth": to / 10}}), story).changes
        assert dict(changes) == ({"warmth": to / 10} if reached else {})


@given(st.text())
def test_any_text_may_hold_json_or_none(text: str) -> None:
    found = json_in(text, "choice")

    assert found is None or "choice" in found


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1, 1.0),
        ("1.5", 1.5),
        (True, None),
        ("inf", None),
        (float("nan"), None),
        (10**400, None),
        (None, None),
        ([1], None),
    ],
)
def test_what_counts_as_a_number(value: object, number: float | None) -> None:
    assert number_in(value) == number
