"""`python -m bench.growth`: whether a task costs the same on a large server as on a small one.

Each cell starts the real processes over a database of its own, seeded with sessions that have a
past, and lets players take turns in some of them: first one turn each (nothing of the session is in
the worker yet), then several (it may be), then several without any delay of the model, as fast as
the server can. The first value of each list is the base; the others are varied one list at a time,
each with a base beside it whose batches are measured in turn with its own. Besides, what an idle
socket and a task in flight weigh.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
import psycopg
import uvloop

from bench import in_flight, report, sockets
from bench.clients import Client, Fireside
from bench.load import connected, get_ready, idle, measured
from bench.programs import own_folder
from bench.seeding import Seeded, seed
from bench.servers import MANY_SOCKETS, USER, Server, server
from bench.targets import Running, as_running
from bench.workloads import Workload
from deploy.local.model import ScriptedModelProcess

Row: TypeAlias = dict[str, Any]

Measurement: TypeAlias = Callable[[Path], list[Row]]
"""Makes rows, in a folder."""

Batch: TypeAlias = dict[str, Row]
"""The row of each phase."""

ROOT = Path(__file__).parents[1]
COUNTED = {"shared_preload_libraries": "pg_stat_statements"}
IDLE_SECONDS = 4.0
AGAIN = 4
"""Turns that each player takes after the first."""

PHASES: Mapping[str, Callable[[int], Workload]] = {
    "first": lambda players: Workload(players, 1),
    "again": lambda players: Workload(players, AGAIN),
    "pushed": lambda players: Workload(players, AGAIN, ttft=0.0, duration=0.0),
}
"""What players do one after the other: a turn in a session that no worker has seen yet, turns after
it, and the same as fast as the server can."""

IDENTITY = ("kind", "model_path", "workers", "sessions", "history")
"""What tells a row from others: a new one takes the place of its forerunner."""

UNCONSOLIDATED = {"consolidate_seconds": "0"}
"""No consolidations: one comes with each eighth turn, however long the past, and costs as much as a
turn; in which phase it falls is chance, and decided what a long past seemed to cost."""

KEPT = ("sessions", "tasks", "events", "messages", "steps", "memories", "usage")
"""The tables to which each task adds."""


@dataclass(frozen=True)
class Cell:
    """One size of server."""

    workers: int
    sessions: int
    history: int


def cells(workers: Sequence[int], sessions: Sequence[int], history: Sequence[int]) -> list[Cell]:
    """The base, and what differs from it in one way."""
    base = Cell(workers[0], sessions[0], history[0])
    return [
        base,
        *(replace(base, workers=count) for count in workers[1:]),
        *(replace(base, sessions=count) for count in sessions[1:]),
        *(replace(base, history=count) for count in history[1:]),
    ]


class InSeeded(Fireside):
    """Plays in sessions that are there already."""

    def __init__(
        self, url: str, http: aiohttp.ClientSession, ids: Sequence[str], head: int
    ) -> None:
        super().__init__(url, http)
        self._ids, self._head = ids, head

    async def open(self, number: int) -> Any:
        """Follow the session of that number from its last event on."""
        return await self.follow(self._ids[number], self._head)


@dataclass(frozen=True)
class Bench:
    """A running server with its seeded sessions; `idle_ms` is the CPU that it uses a second anyhow,
    in milliseconds."""

    fireside: Server
    seeded: Seeded
    model: ScriptedModelProcess
    players: int
    idle_ms: float = 0.0

    def batch(self, number: int) -> Batch:
        """The row of each phase, in other sessions than those of other batches."""
        return uvloop.run(self._batch(number))

    async def _batch(self, batch: int) -> Batch:
        ids = self.seeded.spread(self.players, batch)
        url = self.fireside.url

        def client(http: aiohttp.ClientSession) -> Client:
            return InSeeded(url, http, ids, self.seeded.head)

        running = as_running(self.fireside, client)
        found = {}
        async with connected(running) as playing:
            sessions = [await playing.open(number) for number in range(self.players)]
            for phase, load in PHASES.items():
                found[phase] = await self._phase(running, playing, sessions, load(self.players))
            for one in sessions:
                await playing.close(one)
        return found

    async def _phase(
        self, running: Running, client: Client, sessions: Sequence[Any], load: Workload
    ) -> dict[str, Any]:
        before = statements(self.fireside.postgres_url)
        row = await measured(client, sessions, load, running, self.model)
        after = statements(self.fireside.postgres_url)
        row["round_trips"] = round((after - before) / max(1, row["ok"]), 2)
        # Phases differ in length: what the processes use anyhow is not the turns'.
        anyhow = self.idle_ms * (row["wall_s"] + row["trailing_s"]) / max(1, row["ok"])
        row["cpu_ms_net"] = round(row["cpu_ms_turn"] - anyhow, 2)
        return row


def statements(url: str) -> int:
    """How many statements Postgres has been sent, `begin` and `commit` included."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("create extension if not exists pg_stat_statements")
        row = connection.execute(
            "select sum(calls)::bigint from pg_stat_statements"
            " where dbid = (select oid from pg_database where datname = current_database())"
        ).fetchone()
    assert row is not None
    return int(row[0])


def kept_bytes(url: str) -> dict[str, int]:
    """How large the tables to which tasks add are, with their indexes."""
    with psycopg.connect(url, autocommit=True) as connection:
        rows = connection.execute(
            "select relname, pg_total_relation_size(oid) from pg_class"
            " where relname = any(%s) and relnamespace = 'public'::regnamespace",
            [list(KEPT)],
        ).fetchall()
    return {str(name): int(size) for name, size in rows}


def _as_seen(running: Server) -> Running:
    return as_running(running, lambda http: Fireside(running.url, http))


@contextmanager
def standing(cell: Cell, folder: Path, options: argparse.Namespace) -> Iterator[Bench]:
    """A cell's server, seeded and warm."""
    folder.mkdir()
    folder.chmod(0o755)
    with (
        ScriptedModelProcess(log=folder / "model.log") as model,
        server(
            folder,
            workers=cell.workers,
            model_path=options.model_path,
            model=model,
            postgres_settings=COUNTED,
            settings=MANY_SOCKETS | UNCONSOLIDATED,
        ) as running,
    ):
        seeded = seed(running.postgres_url, USER, sessions=cell.sessions, history=cell.history)
        uvloop.run(get_ready(_as_seen(running), running.model, options.players))
        resting = uvloop.run(idle(_as_seen(running), IDLE_SECONDS))
        yield Bench(running, seeded, model, options.players, resting["idle_cpu_ms_s"])


def measure(folder: Path, options: argparse.Namespace, measured_cells: Sequence[Cell]) -> list[Row]:
    """The rows of cells, the base first. Their batches are measured in turn, for the machine
    becomes quicker and slower.
    """
    with ExitStack() as servers:
        benches = [
            servers.enter_context(standing(cell, folder / f"cell-{no}", options))
            for no, cell in enumerate(measured_cells)
        ]
        before = [kept_bytes(bench.fireside.postgres_url) for bench in benches]
        batches = [[bench.batch(no) for bench in benches] for no in range(options.batches)]
        after = [kept_bytes(bench.fireside.postgres_url) for bench in benches]
    by_cell = list(zip(*batches, strict=True))
    return [
        {
            "kind": "cost",
            "workers": cell.workers,
            "sessions": cell.sessions,
            "history": cell.history,
            **{phase: _summary([batch[phase] for batch in own]) for phase in PHASES},
            "against_base": _against(own, by_cell[0]),
            "idle_cpu_ms_s": bench.idle_ms,
            "kept_kb_turn": _kept_each(own, *kept),
            "at": time.strftime("%F %T"),
        }
        for cell, bench, own, *kept in zip(
            measured_cells, benches, by_cell, before, after, strict=True
        )
    ]


def _against(own: Sequence[Batch], base: Sequence[Batch]) -> float:
    ratios = [_again(one) / max(_again(other), 0.01) for one, other in zip(own, base, strict=True)]
    return round(statistics.median(ratios), 3)


def _kept_each(
    batches: Sequence[Batch], before: Mapping[str, int], after: Mapping[str, int]
) -> dict[str, float]:
    """KB a turn by table."""
    turns = max(1, sum(row["ok"] for batch in batches for row in batch.values()))
    return {
        name: round((size - before.get(name, 0)) / turns / 1e3, 2) for name, size in after.items()
    }


def _again(batch: Batch) -> float:
    return float(batch["again"]["cpu_ms_net"])


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def median(figure: str) -> float:
        return round(float(statistics.median(row[figure] for row in rows)), 2)

    parts = {part: [row["app_split"][part] for row in rows] for part in ("gateway", "worker")}
    parts |= {part: [row["cpu_split"][part] for row in rows] for part in ("pg", "redis")}
    return {
        "turns": sum(row["ok"] for row in rows),
        "errors": sum(row["errors"] for row in rows),
        "turns_s": median("turns_s"),
        "cpu_ms_turn": median("cpu_ms_turn"),
        "cpu_ms_net": median("cpu_ms_net"),
        "cpu_split": {part: round(statistics.median(all_), 2) for part, all_ in parts.items()},
        "round_trips": median("round_trips"),
        "redis_commands_turn": median("redis_commands_turn"),
        "pg_wal_kb_turn": median("pg_wal_kb_turn"),
        "ttft_over_ms": round(statistics.median(row["ttft_over_ms"][0] or 0 for row in rows), 1),
        "others_cores": median("others_cores"),
    }


_SIZE = itemgetter("workers", "sessions", "history")


def larger_cells(rows: Sequence[Mapping[str, Any]], way: str) -> list[Mapping[str, Any]]:
    """The rows that differ from the base only in `workers`, `sessions` or `history`; KeyError where
    there are none."""
    costs = sorted((row for row in rows if row["kind"] == "cost"), key=_SIZE)
    others = [name for name in ("workers", "sessions", "history") if name != way]
    larger = [row for row in costs[1:] if all(row[name] == costs[0][name] for name in others)]
    if not larger:
        raise KeyError(way)
    return larger


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows for docs/performance.md."""
    costs = sorted((row for row in rows if row["kind"] == "cost"), key=_SIZE)
    parts = []
    if costs:
        parts.append(
            report.table(
                (
                    "workers",
                    "sessions",
                    "messages each",
                    "CPU, ms a turn",
                    "against the base",
                    "of it gateway / worker / Postgres / Valkey",
                    "round trips to Postgres",
                    "first turn: CPU",
                    "first turn: round trips",
                    "pushed: turns/s",
                    "pushed: CPU",
                    "idle: CPU, ms/s",
                    "errors",
                ),
                map(_cost_line, costs),
            )
        )
    weights = [row for row in rows if row["kind"] != "cost"]
    if weights:
        parts.append(
            report.table(
                (
                    "what",
                    "how many",
                    "process, MB (PSS)",
                    "of it empty",
                    "KB each",
                    "CPU while idle, ms/s",
                    "longest stall of its loop, ms",
                ),
                (_weight_line(row) for row in weights),
            )
        )
    return "\n".join(parts)


def _cost_line(row: Mapping[str, Any]) -> list[object]:
    first, again, pushed = (row[phase] for phase in PHASES)
    split = again["cpu_split"]
    return [
        row["workers"],
        f"{row['sessions']:,}",
        f"{row['history']:,}",
        f"{again['cpu_ms_net']:.1f}",
        f"{row['against_base']:.2f}",
        " / ".join(f"{split[part]:.1f}" for part in ("gateway", "worker", "pg", "redis")),
        f"{again['round_trips']:.1f}",
        f"{first['cpu_ms_net']:.1f}",
        f"{first['round_trips']:.1f}",
        f"{pushed['turns_s']:.0f}",
        f"{pushed['cpu_ms_net']:.1f}",
        f"{row['idle_cpu_ms_s']:.0f}",
        sum(row[phase]["errors"] for phase in PHASES),
    ]


def _weight_line(row: Mapping[str, Any]) -> list[object]:
    names = ("total_mb", "empty_mb", "each_kb", "idle_cpu_ms_s", "longest_stall_ms")
    return [row["what"], f"{row['count']:,}", *(row[name] for name in names)]


def measurements(options: argparse.Namespace) -> Iterator[Measurement]:
    """All that make rows, in their order."""
    if options.batches:
        base, *larger = cells(options.workers, options.sessions, options.history)
        if not larger:
            yield partial(measure, options=options, measured_cells=[base])
        for no, cell in enumerate(larger):
            pair = partial(measure, options=options, measured_cells=[base, cell])
            yield pair if no == 0 else partial(_without_base, pair)
    if options.sockets:
        yield partial(_one, sockets.row, count=options.sockets)
    if options.in_flight:
        for model_path in ("direct", "litellm"):
            yield partial(_one, in_flight.row, count=options.in_flight, model_path=model_path)


def _without_base(pair: Measurement, folder: Path) -> list[Row]:
    return pair(folder)[1:]


def _one(row: Callable[..., Row], folder: Path, **options: Any) -> list[Row]:
    return [row(folder, **options)]


def rows_of(measurement: Measurement) -> list[Row]:
    """The rows; none where the servers did not get there: the others are measured anyway."""
    # Postgres may have to run as somebody else.
    with own_folder() as folder:
        try:
            return measurement(folder)
        except Exception as error:  # noqa: BLE001 - whatever it is, it costs one row
            print(f"growth: failed: {type(error).__name__}: {error}"[:300], flush=True)
            return []


def _numbers(text: str) -> list[int]:
    found = [int(part) for part in text.split(",")]
    if not found or min(found) < 1:
        raise ValueError(text)
    return found


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    parser.add_argument("--workers", type=_numbers, default=[1, 2, 4])
    parser.add_argument("--sessions", type=_numbers, default=[100, 1000, 10_000])
    parser.add_argument("--history", type=_numbers, default=[10, 100, 1000])
    parser.add_argument("--players", type=int, default=30, help="sessions played in at once (30)")
    parser.add_argument(
        "--batches", type=int, default=3, help="of other sessions; medians; 0: none"
    )
    parser.add_argument("--model-path", choices=["litellm", "direct"], default="direct")
    parser.add_argument("--sockets", type=int, default=5000, help="idle ones; 0 for none")
    parser.add_argument("--in-flight", type=int, default=1000, help="tasks of one worker; 0: none")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "growth.jsonl")
    parser.add_argument("--docs", type=Path, help="folder whose performance.md gets the tables")
    options = parser.parse_args(argv)
    if any(count % 2 for count in options.history):
        parser.error("--history: a question and its answer are two messages")
    if options.players * options.batches > min(options.sessions):
        parser.error("--players times --batches must fit into the smallest number of --sessions")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, keep the rows, and write the tables; 1 where some are missing."""
    options = _arguments(argv)
    rows: list[Row] = []
    old, failed = report.read_rows(options.out), 0
    for measurement in measurements(options):
        found = rows_of(measurement)
        failed += not found
        for row in found:
            print(f"growth: {row}", flush=True)
        rows += found
        report.write_rows(options.out, report.keep_others(old, rows, *IDENTITY))
    rows = report.read_rows(options.out)
    if options.docs is not None:
        report.replace_in_file(options.docs / "performance.md", "growth", tables(rows))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
