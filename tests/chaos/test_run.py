"""Short runs of the driver itself: without a fault, and with one of each important kind."""

from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.checker import KINDS
from tests.chaos.plan import FAULTS, FIRST, MODES, make_plan
from tests.chaos.report import draw, write_report
from tests.chaos.run import Result, run, summary
from tests.chaos.storm import last_words

UNHURRIED = {
    "lease_seconds": "30",
    "model_first_token_seconds": "60",
    "model_stall_seconds": "60",
}
"""Nothing is lost, or asked for again, on a machine that stands still for some seconds."""

WARY = {"model_first_token_seconds": "6", "model_stall_seconds": "6", "max_attempts": "20"}
"""Such a machine is not taken for a model that hangs, nor its pauses for the fault of a task."""


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder that Postgres may enter also where it runs as another account."""
    return tmp_path_factory.mktemp("chaos")


def explain(result: Result) -> str:
    return "\n".join([*map(str, result.defects), *map(str, result.crashes), *result.left])


@pytest.mark.long
async def test_without_faults_each_call_is_paid_once(folder: Path) -> None:
    plan = make_plan(11, actions=24, faults=0, model_faults=0)
    result = await run(plan, folder, settings=UNHURRIED)

    assert not result.defects, explain(result)
    assert result.paid.ratio == 1.0
    assert result.paid.needed > 20
    assert result.left == []


@pytest.mark.long
async def test_a_short_storm_breaks_no_promise(folder: Path) -> None:
    plan = make_plan(5, actions=40, faults=8)
    assert {fault.kind for lane in plan.lanes.values() for fault in lane} >= set(FIRST)
    result = await run(plan, folder, settings=WARY)

    assert not result.defects, explain(result)
    assert not result.left, explain(result)
    assert len(result.history.strikes) >= plan.faults
    assert summary([result.row()]).startswith(" ".join(f"{kind}=0" for kind in KINDS))


def test_the_same_seed_makes_the_same_plan() -> None:
    plans = [make_plan(seed, actions=240, faults=40) for seed in (3, 3, 4)]
    assert plans[0] == plans[1] != plans[2]
    assert [(len(plan.actions), plan.faults) for plan in plans] == [(240, 40)] * 3


def test_a_plan_has_faults_of_every_kind_and_actions_of_every_mode() -> None:
    plans = [make_plan(seed, actions=240, faults=40) for seed in range(20)]
    for plan in plans:
        assert {action.on_busy for action in plan.actions} == set(MODES)
        kinds = Counter(fault.kind for lane in plan.lanes.values() for fault in lane)
        assert kinds == {kind: count for kind, (_, count) in FAULTS.items()}
        assert any(action.letters and action.notes for action in plan.actions)
        assert len({action.key for action in plan.actions}) == len(plan.actions)


def test_the_report_has_a_table_and_a_picture(tmp_path: Path) -> None:
    row = {
        **dict.fromkeys((*KINDS, "false_dead", "crashes"), 0),
        **dict.fromkeys(("tasks", "faults", "model_faults", "drops", "double_sends"), 7),
        "seed": 1,
        "letters": 3,
        "by_kind": {"kill": 7},
        "recovery": {"n": 1, "p50": 2.5, "p95": 2.5, "max": 2.5},
        "recovery_overlapped": {"n": 0, "p50": 0, "p95": 0, "max": 0},
        "recoveries": [["kill", 2.5, True], ["freeze", 9.0, False]],
        "hinted_again": [[3, 1.5]],
        "calls_needed": 100,
        "calls_completed": 103,
        "calls_unread": 2,
        "paid_ratio": 1.03,
        "wasted": {"freeze": 2, "postgres_stop": 1},
        "seconds": 60.0,
    }
    write_report([row, row], tmp_path / "chaos.md")
    text = (tmp_path / "chaos.md").read_text()
    assert "| model calls paid over needed (206 / 200) | 1.030 |" in text
    assert "by what lost them | freeze 4, postgres stop 2 |" in text
    assert "| 1 | 7 | 7 | 7 | 7 | 7 | 0 | 0 | 0 | 0 | 0 | 1.030 | 2 | 60.0 |" in text
    assert (tmp_path / "images" / "chaos-recovery.svg").read_text().count("<circle") == 2
    assert draw([]).startswith("<svg")


def test_what_a_process_said_last_begins_with_its_first_error() -> None:
    said = ["[info     ] begun", "[error    ] a service ended", "Traceback", "[warning  ] drained"]
    assert last_words(said) == "[error    ] a service ended | Traceback | [warning  ] drained"
    assert last_words(said[:1] * 5) == " | ".join(said[:1] * 3)
    many = last_words([said[1], *map(str, range(100))]).split(" | ")
    assert (many[0], many[1], many[-1], len(many)) == (said[1], "0", "99", 63)
