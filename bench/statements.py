"""`python -m bench.statements --against FOLDER`: what one task asks of Postgres, here and there.

Companion tasks (as `bench.durability` runs them: two model calls with a tool between them) run in
processes of their own, in turn with the code of this tree and with that of another checkout. First
a few of them go over a line that counts statements, round trips and bytes; then the CPU of the
process and of Postgres is measured, and what Postgres notes of its tables and of its log. Medians
over the rounds; one JSON row goes to `--out`.
"""

import argparse
import asyncio
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
import uvloop
from pydantic import SecretStr

from agent_core import get_model
from bench.durability import Bench, no_story
from bench.programs import own_folder, tell
from deploy.local.model import ScriptedModelProcess
from deploy.local.postgres import EmbeddedPostgres
from deploy.local.server import ROOT
from deploy.local.valkey import EmbeddedValkey
from deploy.models.control import ScriptedModel
from shared.ending import end_all
from shared.events import Publisher
from shared.migrate import migrate
from shared.redis_pool import connect_redis
from shared.settings import load_settings
from shared.store.database import Database
from worker.agents import Resources
from worker.telling import Telling

COUNTED = 40
"""Tasks that go over the counting line."""

WARM = 10
"""Tasks for each connection before CPU is measured: by then its statements are prepared."""

_TABLES = """
    select relname, n_tup_upd, n_tup_hot_upd from pg_stat_user_tables
    where relname in ('sessions', 'tasks') order by 1
"""


_OTHERS = """
    select 1 from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid()
        and backend_type = 'client backend'
"""


def _counting_line(url: str) -> Any:
    """This tree's `CountingLine`: the other checkout may have none."""
    spec = importlib.util.spec_from_file_location("line", Path(__file__).with_name("line.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CountingLine(url)


async def inside(given: Mapping[str, Any]) -> dict[str, float]:
    """Measure in this process, with the code that it was started in."""
    line = _counting_line(given["postgres"])
    async with line as url:
        counted = await _measured(given, url, COUNTED, line)
    before = await asyncio.to_thread(_noted, given["postgres"])
    measured = await _measured(given, given["postgres"], given["tasks"])
    after = await asyncio.to_thread(_noted, given["postgres"])
    tasks = given["tasks"] + WARM * given["at_once"]
    measured["wal_bytes"] = (after["wal"] - before["wal"]) / tasks
    for table in ("sessions", "tasks"):
        updated = after[table, "all"] - before[table, "all"]
        measured[f"{table}_updates"] = updated / tasks
        measured[f"{table}_hot_share"] = (after[table, "hot"] - before[table, "hot"]) / updated
    return counted | measured


async def _measured(
    given: Mapping[str, Any], postgres: str, tasks: int, line: Any = None
) -> dict[str, float]:
    settings = load_settings().model_copy(
        update={"database_url": SecretStr(postgres), "redis_url": SecretStr(given["redis"])}
    )
    redis, db = connect_redis(settings), Database.from_settings(settings)
    telling = Telling(Publisher(redis))
    sending = asyncio.create_task(telling.send_for_ever())
    model = get_model("openai", "scripted", base_url=given["model"], api="openai")
    bench = Bench(db, telling, Resources(model, "bench", no_story), given["pid"])
    found: dict[str, float] = {}
    if line is None:
        await bench.measure(bench.durable, WARM * given["at_once"], given["at_once"])
        cpu = await bench.measure(bench.durable, tasks, given["at_once"])
        found = {key: cpu[key] for key in ("worker_cpu_ms", "postgres_cpu_ms")}
    else:
        made = [await bench.session() for _ in range(tasks)]
        line.seen.clear()
        for session in made:
            await bench.durable(session)
        found = {key: line.seen[key] / tasks for key in ("statements", "round_trips")}
    await end_all([sending])
    await redis.aclose()
    await db.close()
    return found


def _noted(url: str) -> dict[Any, float]:
    """What Postgres has noted once all others are gone: bytes of its log, updates of tables. The
    making of sessions and their opening tasks are part of it."""
    with psycopg.connect(url, autocommit=True) as connection:
        while connection.execute(_OTHERS).fetchone() is not None:
            time.sleep(0.01)
        wal = connection.execute("select pg_current_wal_lsn() - '0/0'::pg_lsn").fetchone()
        assert wal is not None
        noted: dict[Any, float] = {"wal": float(wal[0])}
        for table, updated, hot in connection.execute(_TABLES):
            noted[table, "all"], noted[table, "hot"] = float(updated), float(hot)
    return noted


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    trees = {"here": ROOT, "there": options.against.resolve()}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    settings = dict(one.split("=", 1) for one in options.postgres)
    with (
        EmbeddedPostgres(folder / "postgres", settings=settings) as postgres,
        EmbeddedValkey(folder / "valkey") as valkey,
        ScriptedModelProcess(log=folder / "model.log") as model,
    ):
        ScriptedModel(model.url).script(
            {"match": {"after_tool": True}, "reply": {"chunks": ["tok "] * 50}},
            {"reply": {"tool_calls": [{"name": "roll_dice", "arguments": {"sides": 6}}]}},
        )
        for number in range(options.rounds):
            for name in ("here", "there") if number % 2 else ("there", "here"):
                url = postgres.create_database(f"{name}_{number}")
                given = {
                    "postgres": url,
                    "redis": valkey.url,
                    "model": model.url,
                    "pid": postgres.pid,
                    "tasks": options.tasks,
                    "at_once": options.at_once,
                }
                rounds[name].append(_in(trees[name], given))
    row: dict[str, Any] = {"tasks": options.tasks, "at_once": options.at_once}
    row |= {"rounds": options.rounds, "settings": settings}
    for name, found in rounds.items():
        row[name] = {key: round(statistics.median(x[key] for x in found), 2) for key in found[0]}
    return row


def _in(tree: Path, given: Mapping[str, Any]) -> dict[str, float]:
    ran = subprocess.run(
        [sys.executable, "-P", __file__, "--inside", json.dumps(given)],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.statements", description=__doc__)
    parser.add_argument("--against", type=Path, default=ROOT, help="the other checkout")
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--postgres", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--inside", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside is not None:
        migrate(options.inside["postgres"])
        print(json.dumps(uvloop.run(inside(options.inside))))
        return
    with own_folder() as folder:
        row = run(options, folder)
    tell(row, options.out)


if __name__ == "__main__":
    main()
