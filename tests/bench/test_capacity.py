from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import capacity, report
from bench.growth import KEPT
from bench.simulation import (
    GATEWAY,
    PARTS,
    POSTGRES,
    VALKEY,
    WORKER,
    Cost,
    Figures,
    Habits,
    Plan,
    path_of,
    simulate,
)
from tests.bench.test_report import row

CPU = {
    GATEWAY: Cost(0.003, 0.00004),
    WORKER: Cost(0.010, 0.00008),
    POSTGRES: Cost(0.002, 0.00002),
    VALKEY: Cost(0.0005, 0.00001),
}
FIGURES = Figures(
    cpu=CPU,
    transactions=Cost(5.0, 0.0),
    log_kb=Cost(10.0, 0.1),
    commands=Cost(12.0, 3.0),
    gap=0.1,
    idle={GATEWAY: 0.004, WORKER: 0.016, POSTGRES: 0.008, VALKEY: 0.002},
    empty_mb={GATEWAY: 90.0, WORKER: 100.0, POSTGRES: 60.0, VALKEY: 10.0},
    socket_kb=40.0,
    socket_cpu=0.00001,
    task_kb=50.0,
    kept_kb={"sessions": 0.1, "tasks": 0.5, "events": 3.0, "messages": 1.0, "steps": 2.0},
)
HABITS = Habits()
PIECES = 50


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
        all_of_it = sum(one.seconds for one in path if one.part == part)
        assert all_of_it == pytest.approx(CPU[part].of(PIECES))


def test_processes_are_as_busy_as_the_rate_says() -> None:
    outcome = simulate(FIGURES, HABITS, 20.0, Plan(), seconds=200.0)

    assert outcome.busy[WORKER] == pytest.approx(20 * 0.014 + 0.016, rel=0.15)
    assert outcome.busy[POSTGRES] == pytest.approx(20 * 0.003 / 2 + 0.004, rel=0.15)


def test_idle_sockets_keep_a_gateway_busy() -> None:
    outcome = simulate(FIGURES, HABITS, 1.0, Plan(gateway=2), seconds=20.0, sockets=50_000)

    assert outcome.busy[GATEWAY] == pytest.approx(0.25 + 0.004, abs=0.01)


def test_a_full_worker_makes_replies_late_and_another_one_helps() -> None:
    full = simulate(FIGURES, HABITS, 68.0, Plan(), seconds=15.0)
    helped = simulate(FIGURES, HABITS, 68.0, Plan(worker=2), seconds=15.0)

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

    light = capacity.smallest(FIGURES, HABITS, load)

    assert capacity.smallest(heavy, HABITS, load).gateway > light.gateway


def test_the_first_wall_is_the_lowest() -> None:
    walls = capacity.walls(replace(FIGURES, cpu={**CPU, POSTGRES: Cost(5.0, 0.0)}), HABITS)

    assert walls[0][0] == "the 2 processors of one Postgres"
    assert [users for _, users in walls] == sorted(users for _, users in walls)


def test_what_is_pruned_does_not_fill_the_disk_for_a_year() -> None:
    # 10 replies a day: 30 days of 3 KB, 7 of 2, and 365 of 1.6.
    assert capacity.disk_gb(FIGURES, HABITS, 1000) == pytest.approx(10 * (90 + 14 + 584) / 1e3)


def test_a_year_of_replies_is_paid_for() -> None:
    found = replace(capacity.need(FIGURES, HABITS, 1_000), disk_gb=160.0)

    assert found.price(18.0, 0.1) == pytest.approx(18.0 + 10.0)


PUSHED: dict[str, Any] = {
    "workload": "C",
    "ok": 400,
    "wall_s": 2.5,
    "deltas_per_turn": 1.0,
    "app_split": {"gateway": 3.0, "worker": 8.0},
    "cpu_split": {"pg": 2.5, "redis": 0.4},
    "pg_transactions_turn": 5.4,
    "redis_commands_turn": 18.5,
}
MAKING = row(
    "fireside-vectors",
    app_split={"gateway": 4.6, "worker": 14.0, "embed": 20.0},
    idle_split={"gateway": 4.0, "worker": 16.0, "embed": 2.0, "pg": 8.0, "redis": 2.0},
    idle_pss_mb={"gateway": 90, "worker": 100, "embed": 260, "pg": 60, "redis": 10},
)
WEIGHTS: list[dict[str, Any]] = [
    {"kind": "cost", "kept_kb_turn": dict.fromkeys(KEPT, 0.5) | {"events": 3.0}},
    {"kind": "idle sockets", "each_kb": 41.0, "idle_cpu_ms_s": 54.0, "count": 5000},
    {"kind": "in flight", "each_kb": 48.0},
    {"kind": "in flight", "each_kb": 90.0},
]


def test_figures_come_from_our_rows_and_the_weights() -> None:
    rows = [row("naive"), row(), row(**PUSHED), MAKING]

    figures = capacity.figures_from(rows, WEIGHTS)

    # Paced 14.0 - 16 * 7.5 / 200 = 13.4 ms of 10 pieces, pushed 8.0 - 16 * 4 / 400 = 7.84 of one.
    assert figures.cpu[WORKER].each == pytest.approx((13.4 - 7.84) / 9 / 1e3)
    assert figures.cpu[WORKER].of(10) == pytest.approx(0.0134)
    assert figures.commands.of(1) == pytest.approx(18.5)
    assert figures.transactions == Cost(5.4, 0.0)
    assert (figures.gap, figures.socket_kb, figures.task_kb) == (0.1, 41.0, 48.0)
    assert figures.socket_cpu == pytest.approx(0.00001)
    assert set(figures.kept_kb) == {*KEPT, "vectors"}
    assert figures.kept_kb["vectors"] == pytest.approx(1.552)
    # 20.0 - 2 * 7.5 / 200 ms.
    assert figures.vectors == pytest.approx(0.019925)
    assert (figures.vectors_idle, figures.vectors_mb) == (0.002, 260)


def test_vectors_need_processes_connections_and_memory() -> None:
    figures = replace(FIGURES, vectors=0.1, vectors_idle=0.002, vectors_mb=260.0)

    small, large = (capacity.need(figures, HABITS, users) for users in (1_000, 200_000))

    assert (small.vectors, small.connections) == (1, 3 * capacity.POOL)
    # 69 replies a second of 100 ms each, none busier than 70 %.
    assert large.vectors == 10
    plan = large.plan
    assert large.connections == (plan.gateway + plan.worker + 10) * capacity.POOL
    without = capacity.need(FIGURES, HABITS, 200_000)
    assert large.nodes - without.nodes == 5
    assert without.vectors == 0


def test_what_a_reply_leaves_is_told_of_every_table() -> None:
    weights = [{"kind": "cost", "kept_kb_turn": {"events": 3.0}}, *WEIGHTS[1:]]

    with pytest.raises(capacity.FiguresMissingError, match="have no size of sessions"):
        capacity.figures_from([row(), row(**PUSHED), MAKING], weights)


def test_a_longer_reply_never_costs_less() -> None:
    rows = [MAKING, row(), row(**PUSHED | {"cpu_split": {"pg": 9.0, "redis": 9.0}})]

    figures = capacity.figures_from(rows, WEIGHTS)

    assert figures.cpu[POSTGRES].each == 0.0
    assert figures.cpu[POSTGRES].fixed == pytest.approx(0.0029 - 0.0003)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row("naive"), row("naive", **PUSHED)],
        [row(ok=0), row(**PUSHED)],
        [row()],
        [row(), row(**PUSHED)],
        [{name: one for name, one in row().items() if name != "idle_split"}, row(**PUSHED)],
    ],
)
def test_no_costs_are_made_up(rows: list[dict[str, Any]]) -> None:
    with pytest.raises(capacity.FiguresMissingError, match="make bench"):
        capacity.figures_from(rows, WEIGHTS)


@pytest.mark.parametrize("left_out", ["cost", "idle sockets", "in flight"])
def test_no_weights_are_made_up(left_out: str) -> None:
    weights = [one for one in WEIGHTS if one["kind"] != left_out]

    with pytest.raises(capacity.FiguresMissingError, match=left_out):
        capacity.figures_from([row(), row(**PUSHED), MAKING], weights)


def test_the_document_is_written(tmp_path: Path) -> None:
    report.write_rows(tmp_path / "rows.jsonl", [row(), row(**PUSHED), MAKING])
    report.write_rows(tmp_path / "weights.jsonl", WEIGHTS)
    (tmp_path / "scaling.md").write_text("<!-- capacity: begin -->\n<!-- capacity: end -->")
    files = ["--figures", str(tmp_path / "rows.jsonl")]
    files += ["--weights", str(tmp_path / "weights.jsonl")]

    code = capacity.main(["--users", "1000,50_000", "--docs", str(tmp_path), *files])

    text = (tmp_path / "scaling.md").read_text()
    assert code == 0
    assert "| 1,000 | 1 | 1 | 1 | 1 | 1 | 60 | 1 | 18 |" in text
    assert "| 50,000 |" in text
    assert "(50 pieces)" in text


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
