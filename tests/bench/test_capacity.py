from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import capacity, report
from bench.simulation import (
    GATEWAY,
    PARTS,
    POSTGRES,
    VALKEY,
    WORKER,
    Figures,
    Habits,
    Plan,
    path_of,
    simulate,
)
from tests.bench.test_report import row

CPU = {GATEWAY: 0.005, WORKER: 0.014, POSTGRES: 0.003, VALKEY: 0.001}
FIGURES = Figures(cpu=CPU, pieces=10, transactions=5.4, log_kb=12.0, commands=45.0)
HABITS = Habits()


@pytest.mark.parametrize("peak", [1.0, 2.0, 3.0, 6.5, 12.0])
def test_the_busiest_hour_is_as_busy_as_asked(peak: float) -> None:
    curve = capacity.day_curve(peak)

    assert sum(curve) / 24 == pytest.approx(1.0)
    assert max(curve) == pytest.approx(peak, abs=0.01)


@pytest.mark.parametrize("peak", [0.5, 13.0])
def test_an_impossible_day_is_refused(peak: float) -> None:
    with pytest.raises(ValueError, match="1 to 12"):
        capacity.day_curve(peak)


def test_the_load_of_users() -> None:
    load = capacity.load_of(86_400, HABITS)

    assert load.mean_rate == pytest.approx(10.0)
    assert load.rate == pytest.approx(30.0, rel=0.01)
    assert load.sockets == pytest.approx(86_400 * 30 / 1440 * 3)
    assert load.in_flight == pytest.approx(30 * 5.5, rel=0.01)


def test_a_replys_slices_are_all_of_its_time() -> None:
    path = path_of(FIGURES, HABITS)

    for part in PARTS:
        assert sum(one.seconds for one in path if one.part == part) == pytest.approx(CPU[part])


def test_processes_are_as_busy_as_the_rate_says() -> None:
    outcome = simulate(FIGURES, HABITS, 20.0, Plan(), seconds=200.0)

    assert outcome.busy[WORKER] == pytest.approx(20 * 0.014, rel=0.15)
    assert outcome.busy[POSTGRES] == pytest.approx(20 * 0.003 / 2, rel=0.15)


def test_a_full_worker_makes_replies_late_and_another_one_helps() -> None:
    full = simulate(FIGURES, HABITS, 68.0, Plan(), seconds=30.0)
    helped = simulate(FIGURES, HABITS, 68.0, Plan(worker=2), seconds=30.0)

    assert full.first_piece[-1] is not None
    assert helped.first_piece[-1] is not None
    assert full.first_piece[-1] > 2 * helped.first_piece[-1]


def test_the_same_seed_gives_the_same_figures() -> None:
    first = simulate(FIGURES, HABITS, 20.0, Plan(), seconds=5.0)

    assert first == simulate(FIGURES, HABITS, 20.0, Plan(), seconds=5.0)


def test_few_users_need_one_node() -> None:
    assert capacity.need(FIGURES, HABITS, 1_000).nodes == 1


def test_many_users_need_more_of_what_is_full() -> None:
    found = capacity.need(FIGURES, HABITS, 1_000_000)

    assert found.plan.worker > found.plan.gateway > found.plan.postgres >= 1
    assert max(found.outcome.busy.values()) < 0.8
    assert (found.outcome.first_piece[-1] or 0) <= capacity.LATEST_MS


def test_sockets_need_gateways_also_where_they_are_quiet() -> None:
    heavy = replace(FIGURES, socket_kb=400.0)
    load = capacity.load_of(100_000, HABITS)

    assert capacity.smallest(heavy, load).gateway > capacity.smallest(FIGURES, load).gateway


def test_the_first_wall_is_the_lowest() -> None:
    walls = capacity.walls(replace(FIGURES, cpu={**CPU, POSTGRES: 0.1}), HABITS)

    assert walls[0][0] == "the processors of one Postgres"
    assert [users for _, users in walls] == sorted(users for _, users in walls)


def test_figures_come_from_our_row_and_the_weights() -> None:
    rows = [row("naive"), row(deltas_per_turn=10.4), row(workload="C", deltas_per_turn=1.0)]
    weights: list[dict[str, Any]] = [
        {"kind": "cost"},
        {"kind": "idle sockets", "each_kb": 41.0},
        {"kind": "in flight", "each_kb": 180.0},
        {"kind": "in flight", "each_kb": 90.0},
    ]

    figures = capacity.figures_from(rows, weights)

    assert figures.cpu[WORKER] == pytest.approx(0.014)
    assert figures.cpu[VALKEY] == pytest.approx(0.001)
    assert (figures.pieces, figures.socket_kb, figures.task_kb) == (10, 41.0, 180.0)


@pytest.mark.parametrize("rows", [[], [row("naive")], [row(ok=0)], [row(workload="C")]])
def test_no_figures_are_made_up(rows: list[dict[str, Any]]) -> None:
    with pytest.raises(capacity.FiguresMissingError):
        capacity.figures_from(rows, [])


def test_the_document_is_written(tmp_path: Path) -> None:
    report.write_rows(tmp_path / "rows.jsonl", [row(deltas_per_turn=10.4)])
    (tmp_path / "scaling.md").write_text("<!-- capacity: begin -->\n<!-- capacity: end -->")
    files = ["--figures", str(tmp_path / "rows.jsonl"), "--weights", str(tmp_path / "none")]

    code = capacity.main(["--users", "1000,50_000", "--docs", str(tmp_path), *files])

    text = (tmp_path / "scaling.md").read_text()
    assert code == 0
    assert "| 1,000 | 1 | 1 | 1 | 1 | 1 | 18 |" in text
    assert "| 50,000 |" in text


def test_without_a_run_there_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = capacity.main(["--figures", str(tmp_path / "none")])

    assert code == 2
    assert "run `make bench`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--users", "0"], ["--users", "many"], ["--peak", "0"], ["--replies", "-1"]]
)
def test_bad_options_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        capacity.main(arguments)

    assert ended.value.code == 2
