import json
from pathlib import Path
from typing import Any

import pytest

from bench import plots, report
from bench.__main__ import write_documents
from bench.load import failed, percentiles
from bench.targets import TARGETS
from bench.workloads import WORKLOADS


def row(target: str = "fireside", workload: str = "A", **figures: Any) -> dict[str, Any]:
    return {
        "target": target,
        "workload": workload,
        "turns": 200,
        "ok": 200,
        "errors": 0,
        "wall_s": 6.0,
        "turns_s": 33.1,
        "deltas_per_turn": 10.0,
        "roles_seen": 1200,
        "accept_ms": [3.5, 5.0, 9.1],
        "ttft_over_ms": [15.0, 23.3, 38.7],
        "total_over_ms": [15.5, 23.3, 43.1],
        "cpu_ms_turn": 22.5,
        "cpu_split": {"llm": 2.0, "pg": 2.9, "redis": 1.0, "app": 18.6, "driver": 9.0},
        "app_split": {"gateway": 4.6, "worker": 14.0},
        "peak_pss_mb": 400,
        "conc_peak": 50,
        "pg_transactions_turn": 5.4,
        "pg_wal_kb_turn": 11.5,
        "redis_commands_turn": 45.5,
        "others_cores": 0.1,
        "idle_split": {"gateway": 4.0, "worker": 16.0, "pg": 8.0, "redis": 2.0},
        "idle_pss_mb": {"gateway": 90, "worker": 100, "pg": 60, "redis": 10},
        "err_sample": [],
        "at": "2026-01-01 10:00:00",
        **figures,
    }


def test_medians_are_taken_of_each_figure() -> None:
    merged = report.medians(
        [
            row(turns_s=30.0, accept_ms=[1.0, 2.0, 3.0], app_split={"gateway": 1.0, "worker": 9.0}),
            row(turns_s=33.0, accept_ms=[3.0, 1.0, 9.0], app_split={"gateway": 2.0, "worker": 7.0}),
            row(turns_s=36.0, accept_ms=[2.0, 9.0, 6.0], app_split={"gateway": 6.0, "worker": 8.0}),
        ]
    )

    assert merged["turns_s"] == 33.0
    assert merged["accept_ms"] == [2.0, 2.0, 6.0]
    assert merged["app_split"] == {"gateway": 2.0, "worker": 8.0}
    assert (merged["turns"], merged["ok"], merged["rounds"]) == (600, 600, 3)
    assert merged["turns_s_rounds"] == [30.0, 33.0, 36.0]


def test_pieces_and_what_the_model_was_shown_are_told() -> None:
    assert "| 50 | 10.0 | 6.0 |" in report.comparison([row()])
    assert "| 50 | 10.0 | 6.0 |" in report.comparison([report.medians([row(), row(), row()])])


def test_errors_of_any_round_stay_visible() -> None:
    broken = failed(TARGETS["naive"], "A", WORKLOADS["A"], "no more memory")

    merged = report.medians([row("naive"), broken, row("naive", errors=3, err_sample=["late"])])

    assert merged["errors"] == 203
    assert merged["err_sample"] == ["late", "no more memory"]
    assert merged["turns_s"] == 33.1
    assert merged["turns_s_rounds"] == [33.1, None, 33.1]


def test_a_target_that_never_worked_has_a_line() -> None:
    broken = failed(TARGETS["naive"], "B", WORKLOADS["B"], "no | port\nleft")

    text = report.comparison([report.medians([broken])])

    assert "| B | naive | 1 | failed: no / port left | 400 |" in text


def test_percentiles() -> None:
    assert percentiles(number / 1000 for number in range(1, 101)) == [51.0, 96.0, 100.0]
    assert percentiles([0.5]) == [500.0, 500.0, 500.0]
    assert percentiles([]) == [None, None, None]


def test_rows_are_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.jsonl"
    report.write_rows(path, [row(), row("naive")])

    assert [json.loads(line)["target"] for line in path.read_text().splitlines()] == [
        "fireside",
        "naive",
    ]
    assert report.read_rows(path) == [row(), row("naive")]
    assert report.read_rows(tmp_path / "none") == []


def test_a_part_is_replaced_again_and_again() -> None:
    text = "# One\n\n<!-- x: begin -->\nold\n<!-- x: end -->\n\nafter\n"

    once = report.replace_part(text, "x", "new\n")

    assert once == "# One\n\n<!-- x: begin -->\n\nnew\n\n<!-- x: end -->\n\nafter\n"
    assert report.replace_part(once, "x", "new\n") == once


@pytest.mark.parametrize(
    "text", ["", "<!-- x: begin -->\n", "<!-- x: end -->\n<!-- x: begin -->\n"]
)
def test_a_document_without_markers_is_refused(text: str) -> None:
    with pytest.raises(report.MarkersMissingError):
        report.replace_part(text, "x", "new")


def test_the_documents_have_the_markers() -> None:
    docs = Path(__file__).parents[2] / "docs"

    for name, part in (
        ("performance.md", "comparison"),
        ("performance.md", "goals"),
        ("performance.md", "growth"),
        ("scaling.md", "capacity"),
    ):
        report.replace_part((docs / name).read_text(), part, "new")


def test_documents_are_written(tmp_path: Path) -> None:
    (tmp_path / "performance.md").write_text("<!-- comparison: begin -->\n<!-- comparison: end -->")
    rows = [report.medians([row(target)]) for target in ("direct", "fireside", "naive")]

    write_documents(tmp_path, rows)
    write_documents(tmp_path, rows)

    text = (tmp_path / "performance.md").read_text()
    assert text.count("| A | naive | 1 | **33.1** | 0 of 200 | 3.5 / 9.1 |") == 1
    assert "gateway 4.6, worker 14.0, pg 2.9, redis 1.0" in text
    assert (tmp_path / "images" / "throughput.svg").read_text().count(">33.1<") == 3
    assert (tmp_path / "images" / "cpu.svg").read_text().count(">22.5<") == 2


def test_rows_of_fewer_rounds_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "performance.md").write_text("<!-- comparison: begin -->\n<!-- comparison: end -->")
    rows = [report.medians([row()] * 3), report.medians([row("naive", "B")])]

    write_documents(tmp_path, rows)

    text = (tmp_path / "performance.md").read_text()
    assert "Medians of 3 interleaved rounds, of fewer where a round took too long" in text
    assert "| A | fireside | 3 | **33.1** |" in text
    assert "| B | naive | 1 | **33.1** |" in text


def test_bars_are_as_long_as_their_values() -> None:
    bars = [plots.Bar("fireside", 10.0), plots.Bar("<naive>", 5.0)]

    svg = plots.grouped("CPU", "ms", {"A": bars})

    widths = [float(part.split('"', 1)[0]) for part in svg.split(' width="')[1:]]
    assert widths[0] == 2 * widths[1]
    assert "&lt;naive&gt;" in svg


def test_a_logarithmic_chart_has_a_tick_for_each_power() -> None:
    svg = plots.grouped("T", "1/s", {"C": [plots.Bar("direct", 2896.0)]}, logarithmic=True)

    assert [f">{tick}<" in svg for tick in ("1", "10", "100", "1,000", "10,000")] == [True] * 5
    assert ">2,896<" in svg


def test_a_chart_of_nothing_is_a_chart() -> None:
    assert plots.throughput([]).startswith("<svg")
    assert plots.cpu([row(cpu_ms_turn=0.0)]).startswith("<svg")


def test_new_rows_take_the_place_of_their_forerunners() -> None:
    old: list[dict[str, Any]] = [
        {"kind": "cost", "workers": 1},
        {"kind": "cost", "workers": 2},
        {"kind": "sockets"},
    ]
    new = [{"kind": "cost", "workers": 2, "cpu": 1}, {"kind": "sockets", "cpu": 2}]

    assert report.keep_others(old, new, "kind", "workers") == [old[0], *new]
