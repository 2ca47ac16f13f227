import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import figures, goals, report
from bench.goals import GOALS, Measured
from deploy.local.server import ROOT
from tests.bench.test_report import row


def cell(
    ratio: float, *, sessions: int = 100, history: int = 10, workers: int = 1
) -> dict[str, Any]:
    return {
        "kind": "cost",
        "workers": workers,
        "sessions": sessions,
        "history": history,
        "against_base": ratio,
    }


ROWS = [
    row("direct", turns_s=33.5),
    row("direct", "B", turns_s=111.0),
    row(turns_s=33.0, longest_stall_ms={"gateway": 8.0, "worker": 61.0}),
    row("fireside", "B", turns_s=70.0, turns=1200, rounds=3, llm_requests=400),
    row("fireside-litellm", "B", turns=400, rounds=1, llm_requests=604),
    row("naive", turns_s=3.3, cpu_ms_turn=90.0, peak_pss_mb=1200),
]
WEIGHTS = [
    cell(1.0),
    cell(1.05, sessions=1000),
    cell(1.2, sessions=10_000),
    cell(1.1, history=100),
    cell(3.0, workers=4),
    {"kind": "idle sockets", "count": 5000, "each_kb": 35.0},
    {"kind": "in flight", "model_path": "direct", "count": 1000, "total_mb": 160},
]


def lines(
    rows: list[dict[str, Any]],
    weights: list[dict[str, Any]],
    found: dict[str, dict[str, Any]] | None = None,
) -> dict[str, list[object]]:
    measured = Measured(rows, weights, found or {})
    return {goal.what: goal.line(measured)[1:] for goal in GOALS}


def test_each_goal_is_compared_with_what_was_measured() -> None:
    found = lines(ROWS, WEIGHTS)

    assert found["A: turns/s, of the model alone"] == [">= 0.9", "0.985", "yes"]
    assert found["B: turns/s, of the model alone"] == [">= 0.75", "0.631", "**no**"]
    assert found["B: calls of the model a turn"] == ["<= 1", "1", "yes"]
    doubled = found["the same by way of litellm, its worker overloaded"]
    assert doubled == ["<= 1", "1.51", "**no**"]
    assert found["A: accept, p50, ms"] == ["<= 8", "3.5", "yes"]
    assert found["A: longest stall of the worker, ms"] == ["<= 50", "61", "**no**"]
    assert found["A: turns/s, times the textbook server"] == [">= 1", "10", "yes"]
    assert found["A: CPU, times less than the textbook server"] == [">= 5.33", "4", "**no**"]
    assert found["CPU a turn, most sessions against fewest"] == ["<= 1.15", "1.2", "**no**"]
    assert found["CPU a turn, longest history against shortest"] == ["<= 1.15", "1.1", "yes"]
    assert found["each of them, KB (PSS)"] == ["<= 40", "35", "yes"]
    assert found["the same, the direct way, MB (PSS)"] == ["-", "160", "-"]
    memory = "A: memory with Postgres and Valkey, MB (PSS); LangGraph, no stores"
    assert found[memory] == ["<= 240", "400", "**no**"]
    assert found["the same; ADK"] == ["<= 460", "400", "yes"]
    assert found["of it before the load: Postgres"] == ["-", "60", "-"]
    assert found["beside it with vectors: their process"] == ["-", "not measured", "-"]


def test_each_workload_counts() -> None:
    """A server that is good in A alone does not pass."""
    quick = {"gateway": 8.0, "worker": 9.0}
    slow = {"gateway": 8.0, "worker": 62.8}
    rows = [
        row(longest_stall_ms=quick),
        row("fireside", "C", longest_stall_ms=slow, turns_s=20.0, peak_pss_mb=900),
        row("naive", "C", turns_s=40.0, peak_pss_mb=450),
    ]

    found = lines(rows, [])

    assert found["A: longest stall of the worker, ms"][2] == "yes"
    assert found["C: longest stall of the worker, ms"] == ["<= 50", "62.8", "**no**"]
    assert found["C: turns/s, times the textbook server"] == [">= 3.57", "0.5", "**no**"]
    assert found["C: memory, times less than the textbook server"] == [">= 1", "0.5", "**no**"]
    assert found["B: turns/s, times the textbook server"][1] == "not measured"


def test_what_other_programs_found_is_compared_too() -> None:
    found = lines(
        [],
        [],
        {
            "memory": {"recall": {"10": 0.7668, "20": 0.8}, "coverage": {"500": 0.7636}},
            "cost": {
                "shows": {
                    "to_sliding": 0.35,
                    "to_whole": 0.082,
                    "input_to_whole": 0.059,
                    "chained_coverage": None,
                }
            },
            "memory_scale": {
                "ms": {"p95": 3.7},
                "beside_fleet": {"ms": {"p95": 25.3}, "turns_s": 31.2},
            },
            "ledger": {"workers_live": {"provider_tokens": 100, "ledger_tokens": 99}},
        },
    )

    assert found["recall: R@10, %"] == [">= 74", "76.7", "yes"]
    assert found["recall: R@20, %"] == [">= 81", "80", "**no**"]
    assert found["recall: R@10 of multi-hop, %"][1] == "not measured"
    of_input = "chained user: warm cost of the input, of the whole history"
    assert found[of_input] == ["<= 0.06", "0.059", "yes"]
    with_answers = "the same with the answers, whose price no context changes"
    assert found[with_answers] == ["<= 0.06", "0.082", "**no**"]
    assert found["evidence at that cost, %"][1] == "not measured"
    assert found["ledger: tokens apart from the provider, with faults"] == ["<= 0", "1", "**no**"]
    assert found["recall among a million memories, p95, ms"] == ["<= 20", "3.7", "yes"]
    beside = "the same beside a fleet on the same Postgres, p95, ms"
    assert found[beside] == ["<= 20", "25.3", "**no**"]
    assert found["turns/s of that fleet"] == ["-", "31.2", "-"]


def test_what_was_not_measured_is_no_success() -> None:
    found = lines(ROWS, WEIGHTS)

    assert found["C: turns/s"] == [">= 100", "not measured", "-"]
    assert found["tasks in flight in one worker process, by way of litellm"][1] == "not measured"
    assert {one[2] for one in lines([], []).values()} == {"-"}


def test_a_target_that_failed_was_not_measured() -> None:
    found = lines([row(ok=0), row("direct")], [cell(10.0)])

    assert found["A: turns/s, of the model alone"][1] == "not measured"
    assert found["CPU a turn, most sessions against fewest"][1] == "not measured"


def test_the_table_goes_into_the_document(tmp_path: Path) -> None:
    report.write_rows(tmp_path / "rows", ROWS)
    report.write_rows(tmp_path / "weights", WEIGHTS)
    (tmp_path / "performance.md").write_text("<!-- goals: begin -->\n<!-- goals: end -->")
    files = ["--rows", str(tmp_path / "rows"), "--weights", str(tmp_path / "weights")]
    (tmp_path / "memory.json").write_text('{"recall": {"10": 0.75}}')
    files += ["--found", str(tmp_path)]

    assert goals.main([*files, "--docs", str(tmp_path)]) == 0

    text = (tmp_path / "performance.md").read_text()
    assert "| A: turns/s, of the model alone | >= 0.9 | 0.985 | yes |" in text
    assert "| recall: R@10, % | >= 74 | 75 | yes |" in text


def test_the_plan_of_all_figures_says_how_long_it_takes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert figures.main(["--plan"]) == 0

    said = capsys.readouterr().out
    assert f"{len(figures.STEPS) - 3} steps, about 50 minutes" in said
    assert "python -m bench.growth --batches 2  (with idle sockets and tasks in flight)" in said
    assert "python -m bench.budgets --out bench/results/budgets.json" in said
    for module, option in (("memory", "data"), ("cost", "data"), ("statements", "against")):
        assert f"left out: bench.{module} needs --{option}" in said


def test_steps_are_left_out_and_get_what_they_need(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = tmp_path / "talk.json"
    argv = ["--plan", "--data", str(data), "--without", "bench", "--without", "bench.growth"]

    assert figures.main(argv) == 0

    said = capsys.readouterr().out
    assert "python -m bench --targets" not in said
    assert "python -m bench.growth" not in said
    assert f"python -m bench.cost --out bench/results/cost.json --data {data}" in said


ASK = """
import contextlib, io, json, runpy, sys
for argv in json.load(sys.stdin):
    said, code = io.StringIO(), None
    sys.argv = argv
    with contextlib.redirect_stderr(said):
        try:
            runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, said.getvalue()]))
"""


def test_every_step_is_a_program_that_knows_its_options() -> None:
    """Asked with one more option that there is not, each complains of that one alone."""
    asked = [
        [
            step.module,
            *step.arguments,
            *([f"--{step.needs}", "none"] if step.needs else []),
            *(["--docs", "none"] if step.documented else []),
            "--no-such-option",
        ]
        for step in figures.STEPS
    ]

    ran = subprocess.run(
        [sys.executable, "-c", ASK],
        cwd=ROOT,
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
    )

    answers = [json.loads(line) for line in ran.stdout.splitlines()]
    for argv, (code, said) in zip(asked, answers, strict=True):
        assert code == 2, argv
        assert said.endswith("error: unrecognized arguments: --no-such-option\n"), argv


def test_other_servers_take_longer(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert figures.main(["--plan", "--peers", str(tmp_path), "--only", "bench"]) == 0

    said = capsys.readouterr().out
    assert "1 steps, about 36 minutes" in said
    assert f"agno-queue,adk --repeat 3 --long 100 --peers {tmp_path}" in said


def test_steps_go_on_after_one_that_failed(capfd: pytest.CaptureFixture[str]) -> None:
    broken = figures.Step("bench.goals", ("--no-such-option",), 1)
    whole = figures.Step("bench.goals", ("--rows", "/none", "--weights", "/none"), 1)

    assert figures.run([broken, whole], None) == 1

    said = capfd.readouterr().out
    assert "exit code 2" in said
    assert "exit code 0" in said


def test_an_unknown_step_is_refused() -> None:
    with pytest.raises(SystemExit) as ended:
        figures.main(["--only", "bench.nothing"])

    assert ended.value.code == 2
