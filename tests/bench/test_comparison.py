import argparse
import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as comparison
from bench import flames, sockets, targets, workloads
from bench.clients import TurnFailedError, server_sent
from bench.growth import AGAIN, KEPT, PHASES, Cell, cells
from bench.growth import main as growth
from bench.load import play
from bench.processes import ended
from bench.seeding import Seeded
from bench.stalls import PROBE, Stalls
from bench.workloads import UnknownNameError, Workload
from deploy.local.model import ScriptedModelProcess
from deploy.local.server import ROOT
from worker.minilm import missing_package


@pytest.mark.parametrize("names", ["nobody", "fireside,nobody", "", ","])
def test_an_unknown_target_is_refused(names: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert comparison.main(["--targets", names]) == 2
    assert "no target" in capsys.readouterr().err


@pytest.mark.parametrize("names", ["Z", "A,Z", "a", ""])
def test_an_unknown_workload_is_refused(names: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert comparison.main(["--targets", "direct", "--workloads", names]) == 2
    assert "there are A, B, C, S" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--repeat", "0"], ["--workers", "0"], ["--idle", "-1"], ["--limit", "0"]]
)
def test_bad_numbers_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        comparison.main(arguments)

    assert ended.value.code == 2


def test_a_peer_without_its_environment_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert comparison.main(["--targets", "aegra,adk", "--peers", str(tmp_path)]) == 2

    said = capsys.readouterr()
    assert "skipped: aegra needs the environment v_aegra" in said.out
    assert "skipped: adk needs the environment v_adk" in said.out
    assert "none of these targets" in said.err


def test_a_peer_without_a_folder_of_environments_is_skipped() -> None:
    assert "PEERS=DIR" in (targets.missing(targets.TARGETS["agno"], None) or "")
    assert targets.missing(targets.TARGETS["fireside"], None) is None


def test_a_peer_with_its_environment_may_start(tmp_path: Path) -> None:
    (tmp_path / "v_agno" / "bin").mkdir(parents=True)

    assert targets.missing(targets.TARGETS["agno"], tmp_path) is None


def test_a_round_that_takes_too_long_is_not_repeated() -> None:
    entrant = comparison.Entrant(targets.TARGETS["naive"], Path())
    run = comparison.Comparison(argparse.Namespace(long=100.0), ScriptedModelProcess(log=Path()))
    run.rows = {("B", "naive"): [{"wall_s": 124.0}], ("A", "naive"): [{"wall_s": 62.0}, {}]}

    assert [run.took_long(entrant, name) for name in "ABC"] == [False, True, False]


def test_a_target_of_which_a_process_has_ended_takes_no_further_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = comparison.Comparison(
        argparse.Namespace(out=tmp_path / "rows.jsonl"), ScriptedModelProcess(log=Path())
    )
    (tmp_path / "worker.log").write_text("the reason")
    with subprocess.Popen(["sleep", "60"]) as lives, subprocess.Popen(["true"]) as ends:
        os.waitid(os.P_PID, ends.pid, os.WEXITED | os.WNOWAIT)
        app = {"gateway": [lives.pid], "worker": [ends.pid]}
        running = targets.Running(client=lambda http: Script(), app=app)
        entrant = comparison.Entrant(targets.TARGETS["fireside"], tmp_path, running)

        run.take_out(entrant, "B")
        lives.kill()

    assert ended([lives.pid, ends.pid, os.getpid()]) == [lives.pid, ends.pid]  # reaped by now
    assert (run.row(entrant, "C")["ok"], entrant.running) == (0, None)
    kept = tmp_path / "ended" / "fireside"
    assert f"worker ended during B; the logs: {kept}" in capsys.readouterr().out
    assert (kept / "worker.log").read_text() == "the reason"


def test_names_are_read_once_each_in_their_order() -> None:
    assert [one.name for one in targets.chosen("naive, fireside,naive")] == ["naive", "fireside"]
    assert workloads.chosen("C, A") == ["C", "A"]
    with pytest.raises(UnknownNameError):
        workloads.chosen("A;B")


class Script:
    """A client whose turns end as told."""

    def __init__(self, *turns: list[str | None] | Exception) -> None:
        self._turns = list(turns)

    async def open(self, number: int) -> int:
        return number

    async def act(self, session: int, text: str) -> AsyncIterator[str | None]:
        turn = self._turns.pop(0)
        if isinstance(turn, Exception):
            raise turn
        for piece in turn:
            yield piece

    async def close(self, session: int) -> None:
        return None


@pytest.mark.parametrize(
    "wrong",
    [
        [None, "tok0 "],  # cut short
        [None, "tok1 ", "tok0 "],  # out of order
        [None, "tok0 ", "tok1 ", "tok1 "],  # doubled
        ["tok0 ", "tok1 "],  # never accepted
        [None],  # empty
        TurnFailedError("500"),
        TimeoutError(),
        KeyError("frame"),
    ],
)
async def test_only_the_models_text_counts(wrong: list[str | None] | Exception) -> None:
    right: list[str | None] = [None, "tok0 ", "tok1 "]
    load = Workload(1, 2, ttft=0, chunks=2, duration=0)

    times, _ = await play(Script(wrong, right), [0], load, limit=60)

    assert (len(times.total), len(times.errors)) == (1, 1)


async def test_a_turn_that_never_ends_is_an_error() -> None:
    class Silent(Script):
        async def act(self, session: int, text: str) -> AsyncIterator[str | None]:
            yield None
            await asyncio.Event().wait()

    times, _ = await play(Silent(), [0], Workload(1, 1, chunks=1, spread=0.0), limit=0.05)

    assert times.errors[0].startswith("TimeoutError")


class Answer:
    """An HTTP answer that comes in these pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self.content = self
        self._pieces = pieces

    async def iter_any(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


async def test_server_sent_events_are_read_across_pieces() -> None:
    answer: Any = Answer(
        b"event: mess", b"ages\r\nda", b"ta: {}\r\n\r\n: ping\n\nda", b"ta: a\ndata: b\n\n"
    )

    assert [one async for one in server_sent(answer)] == [("messages", "{}"), ("", "a\nb")]


def test_cells_differ_from_the_base_in_one_way() -> None:
    assert cells([1, 2], [100, 1000], [10, 50]) == [
        Cell(1, 100, 10),
        Cell(2, 100, 10),
        Cell(1, 1000, 10),
        Cell(1, 100, 50),
    ]


def test_batches_play_in_other_sessions() -> None:
    seeded = Seeded([str(number) for number in range(100)], 4)

    picked = [seeded.spread(30, batch) for batch in range(3)]

    assert len({one for batch in picked for one in batch}) == 90


@pytest.mark.parametrize(
    "arguments",
    [
        ["--history", "3"],
        ["--sessions", "0"],
        ["--workers", "x"],
        ["--players", "50", "--sessions", "100"],
    ],
)
def test_bad_sizes_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        growth(arguments)

    assert ended.value.code == 2


BLOCKED = """
import gc
gc.disable()  # no other collection counts than the one below
import asyncio, time, uvloop
async def main():
    await asyncio.sleep(0.05)
    begun = time.thread_time()
    while time.thread_time() - begun < 0.1:
        pass
    gc.collect()
    await asyncio.sleep(0.05)
uvloop.run(main())
"""


def test_a_blocked_loop_is_seen(tmp_path: Path) -> None:
    stalls = Stalls(tmp_path)
    env = stalls.env | {"BENCH_STALLS_WATCHED": "1"}
    process = subprocess.Popen([sys.executable, "-c", BLOCKED], env=env)
    assert process.wait(timeout=30) == 0

    worst = stalls.worst([process.pid])

    assert worst is not None
    assert worst.late >= 85
    assert worst.busy >= 95
    assert 0 < worst.collecting < worst.late
    stalls.watch()
    again = stalls.worst([process.pid])
    assert again is not None
    assert (again.late, again.busy, again.collecting) == (0.0, 0.0, 0.0)


def test_a_process_that_nobody_watches_keeps_no_figures(tmp_path: Path) -> None:
    stalls = Stalls(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", BLOCKED], env=stalls.env)
    assert process.wait(timeout=30) == 0

    worst = stalls.worst([process.pid])

    assert worst is not None
    assert (worst.late, worst.busy, worst.collecting) == (0.0, 0.0, 0.0)


def test_a_process_without_the_probe_has_no_stall(tmp_path: Path) -> None:
    assert Stalls(tmp_path).worst([1]) is None


def test_the_probe_is_where_the_path_points() -> None:
    assert (PROBE / "sitecustomize.py").is_file()


def test_a_graph_that_cannot_be_made_is_a_line(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()

    with flames.recorded({"worker": [gone.pid]}, tmp_path, seconds=1) as lines:
        pass

    assert len(lines) == 1
    assert lines[0].startswith("no flame graph")


def test_idle_sockets_are_weighed() -> None:
    argv = [sys.executable, "-m", "bench.sockets", "--count", "20", "--idle", "0.5"]

    ran = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300)

    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads(ran.stdout)
    assert found["count"] == 20
    assert found["empty_mb"] > 10


@pytest.mark.long
def test_cells_of_growth_are_measured(tmp_path: Path) -> None:
    out = tmp_path / "growth.jsonl"
    argv = [sys.executable, "-m", "bench.growth", "--out", str(out), "--players", "2"]
    argv += ["--workers", "1", "--sessions", "10", "--history", "4,6", "--batches", "1"]
    argv += ["--sockets", "0", "--in-flight", "0"]

    ran = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=800)

    assert ran.returncode == 0, ran.stdout + ran.stderr
    rows = map(json.loads, out.read_text().splitlines())
    base, longer = sorted(rows, key=lambda row: row["history"])
    for found in (base, longer):
        phases = {phase: (found[phase]["turns"], found[phase]["errors"]) for phase in PHASES}
        assert phases == {"first": (2, 0), "again": (2 * AGAIN, 0), "pushed": (2 * AGAIN, 0)}
        assert found["again"]["round_trips"] > 1
        assert set(KEPT) == set(found["kept_kb_turn"])
    assert (base["history"], base["against_base"]) == (4, 1.0)
    assert longer["history"] == 6
    assert longer["against_base"] > 0


@pytest.mark.parametrize("arguments", [["--count", "0"], ["--idle", "0"], ["--count", "many"]])
def test_impossible_sockets_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        sockets.main(arguments)

    assert ended.value.code == 2


def row_of(target: str, folder: Path) -> dict[str, Any]:
    """What a comparison of one target writes."""
    out = folder / "rows.jsonl"
    argv = [sys.executable, "-m", "bench", "--targets", target, "--workloads", "S"]
    argv += ["--repeat", "1", "--idle", "0", "--out", str(out)]
    ran = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    row: dict[str, Any] = json.loads(out.read_text())
    return row


@pytest.mark.long
def test_a_comparison_writes_its_rows(tmp_path: Path) -> None:
    """The whole way: our real processes, four players."""
    ours = row_of("fireside", tmp_path)

    assert (ours["target"], ours["workload"], ours["rounds"]) == ("fireside", "S", 1)
    assert (ours["ok"], ours["errors"]) == (8, 0)
    assert {"app", "pg", "redis", "llm", "driver"} == set(ours["cpu_split"])
    assert {"gateway", "worker"} == set(ours["app_split"]) == set(ours["longest_stall_ms"])
    assert ours["pg_transactions_turn"] > 1
    assert 4 <= ours["conc_peak"] < 8  # a player may go on before the model has closed its call


@pytest.mark.long
@pytest.mark.skipif(missing_package() is not None, reason="needs the extra `embeddings`")
def test_vectors_have_a_part_of_their_own(tmp_path: Path) -> None:
    """Every turn's memories have their vectors before the CPU is read."""
    ours = row_of("fireside-vectors", tmp_path)

    assert (ours["ok"], ours["errors"]) == (8, 0)
    assert set(ours["app_split"]) == {"gateway", "worker", "embed"}
    assert ours["app_split"]["embed"] > 1  # two texts and a cue a turn, milliseconds each
