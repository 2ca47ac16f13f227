"""`python -m bench.growth`: whether a task costs the same on a large server as on a small one.

Each cell starts the real processes over a database of its own, seeded with sessions that have a
past, and lets players take turns in some of them: first one turn each (nothing of the session is in
the worker yet), then several (it may be). The first value of each list is the base; the others are
varied one list at a time. Besides, what an idle socket and a task in flight weigh.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import uvloop

from bench import footprint, report
from bench.clients import Client, Fireside
from bench.load import connected, measured
from bench.seeding import Seeded, seed
from bench.servers import MANY_SOCKETS, USER, Server, server
from bench.targets import Running, as_running
from bench.workloads import Workload
from deploy.local.model import ScriptedModelProcess

ROOT = Path(__file__).parents[1]
COUNTED = {"shared_preload_libraries": "pg_stat_statements"}
AGAIN = 4
"""Turns that each player takes after the first."""


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
    """A running server with its seeded sessions."""

    fireside: Server
    seeded: Seeded
    model: ScriptedModelProcess
    players: int

    def batches(self, count: int) -> dict[str, list[dict[str, Any]]]:
        """The rows of each phase, each batch in other sessions."""
        rows: dict[str, list[dict[str, Any]]] = {"first": [], "again": []}
        for batch in range(count):
            for phase, row in uvloop.run(self._batch(batch)).items():
                rows[phase].append(row)
        return rows

    async def _batch(self, batch: int) -> dict[str, dict[str, Any]]:
        ids = self.seeded.spread(self.players, batch)
        url = self.fireside.url

        def client(http: aiohttp.ClientSession) -> Client:
            return InSeeded(url, http, ids, self.seeded.head)

        running = as_running(self.fireside, client)
        found = {}
        async with connected(running) as playing:
            sessions = [await playing.open(number) for number in range(self.players)]
            for phase, turns in (("first", 1), ("again", AGAIN)):
                load = Workload(self.players, turns)
                found[phase] = await self._phase(running, playing, sessions, load)
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


def measure(cell: Cell, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The row of one cell."""
    with (
        ScriptedModelProcess(log=folder / "model.log") as model,
        server(
            folder,
            workers=cell.workers,
            model_path=options.model_path,
            model=model,
            postgres_settings=COUNTED,
            settings=MANY_SOCKETS,
        ) as running,
    ):
        warm = seed(running.postgres_url, USER, sessions=options.players, history=2)
        seeded = seed(running.postgres_url, USER, sessions=cell.sessions, history=cell.history)
        Bench(running, warm, model, options.players).batches(1)
        rows = Bench(running, seeded, model, options.players).batches(options.batches)
    return {
        "kind": "cost",
        "workers": cell.workers,
        "sessions": cell.sessions,
        "history": cell.history,
        **{phase: _summary(found) for phase, found in rows.items()},
        "at": time.strftime("%F %T"),
    }


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def median(figure: str) -> float:
        return round(float(statistics.median(row[figure] for row in rows)), 2)

    parts = {part: [row["app_split"][part] for row in rows] for part in ("gateway", "worker")}
    parts |= {part: [row["cpu_split"][part] for row in rows] for part in ("pg", "redis")}
    return {
        "turns": sum(row["ok"] for row in rows),
        "errors": sum(row["errors"] for row in rows),
        "cpu_ms_turn": median("cpu_ms_turn"),
        "cpu_split": {part: round(statistics.median(all_), 2) for part, all_ in parts.items()},
        "round_trips": median("round_trips"),
        "redis_commands_turn": median("redis_commands_turn"),
        "pg_wal_kb_turn": median("pg_wal_kb_turn"),
        "ttft_over_ms": round(statistics.median(row["ttft_over_ms"][0] or 0 for row in rows), 1),
        "others_cores": median("others_cores"),
    }


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows for docs/performance.md."""
    costs = [row for row in rows if row["kind"] == "cost"]
    parts = []
    if costs:
        base = costs[0]["again"]["cpu_ms_turn"]
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
                    "errors",
                ),
                (_cost_line(row, base) for row in costs),
            )
        )
    weights = [row for row in rows if row["kind"] != "cost"]
    if weights:
        lines = [
            (row["what"], f"{row['count']:,}", row["total_mb"], row["each_kb"]) for row in weights
        ]
        parts.append(report.table(("what", "how many", "MB in all", "KB each"), lines))
    return "\n".join(parts)


def _cost_line(row: Mapping[str, Any], base: float) -> list[object]:
    again, first = row["again"], row["first"]
    split = again["cpu_split"]
    return [
        row["workers"],
        f"{row['sessions']:,}",
        f"{row['history']:,}",
        f"{again['cpu_ms_turn']:.1f}",
        f"{again['cpu_ms_turn'] / base:.2f}" if base else "-",
        " / ".join(f"{split[part]:.1f}" for part in ("gateway", "worker", "pg", "redis")),
        f"{again['round_trips']:.1f}",
        f"{first['cpu_ms_turn']:.1f}",
        f"{first['round_trips']:.1f}",
        again["errors"] + first["errors"],
    ]


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All rows, one after the other."""
    for number, cell in enumerate(cells(options.workers, options.sessions, options.history)):
        with tempfile.TemporaryDirectory(prefix=f"cell-{number}-") as folder:
            Path(folder).chmod(0o755)
            yield measure(cell, Path(folder), options)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield from footprint.rows(Path(folder), options.sockets, options.in_flight)


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
    parser.add_argument("--batches", type=int, default=3, help="of other sessions; medians (3)")
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
    """Measure, keep the rows, and write the tables."""
    options = _arguments(argv)
    rows = []
    for row in run(options):
        print(f"growth: {row}", flush=True)
        rows.append(row)
        report.write_rows(options.out, rows)
    if options.docs is not None:
        report.replace_in_file(options.docs / "performance.md", "growth", tables(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
