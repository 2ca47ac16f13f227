"""`python -m bench.agent_cache`: what it saves that a worker holds what it rebuilt of a session.

Two hosts in this process, one with the cache and one without, run tasks of sessions with so many
messages of history on real Postgres and Valkey, in turn. The agent looks at the newest 28 messages,
as the companion does, and calls no model. Counted are CPU (this process and Postgres), rows of
messages that Postgres read, and the longest stall of a loop; medians over the rounds. One JSON row
for each length of history goes to `--out`.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import uvloop
from pydantic import SecretStr
from sqlalchemy import text

from agent_core import Model, UserMessage
from bench.processes import cpu_seconds
from bench.programs import own_folder
from deploy.local.postgres import EmbeddedPostgres
from deploy.local.valkey import EmbeddedValkey
from shared.garbage import steady_garbage
from shared.migrate import migrate
from shared.records import CatalogEntry, NewAction, NewSession
from shared.settings import Settings, load_settings
from shared.store import actions, sessions
from shared.store.database import Database
from worker.agents import Answer, RunningTask
from worker.host import Host
from worker.narration import begin_turn, end_turn, tell, written

USER = "bench"
WINDOW = 28
_LONGEST_SECONDS, _LOOK_SECONDS = 60.0, 0.02
WORDS = "What a companion answers, of about three hundred characters in all. " * 4

_GROW = text(
    """
    with grown as (
        update sessions set next_message = next_message + :n,
            head_message = next_message + :n - 1
        where id = :s returning next_message - :n as first, head_message as head
    )
    insert into messages (session_id, no, parent, task_id, message)
    select :s, no, nullif(no - 1, 0), (select id from tasks where session_id = :s limit 1),
        jsonb_build_object('role', case when no % 2 = 1 then 'user' else 'assistant' end,
            'timestamp', no, 'content', case when no % 2 = 1 then to_jsonb(cast(:words as text))
            else jsonb_build_array(jsonb_build_object('type', 'text', 'text', :words)) end)
    from grown, generate_series(first, head) as no
    """
)

_OPEN = text("select coalesce(sum(open_tasks), 0)::int as open from sessions where open_tasks > 0")

_READ = text(
    "select coalesce(idx_tup_fetch, 0) + seq_tup_read as rows from pg_stat_user_tables"
    " where relname = 'messages'"
)


@dataclass
class Looking:
    """An agent that looks at the newest messages and answers; it notes how its loop fares."""

    entry = CatalogEntry("agent", "companion", "Companion")
    longest: float = 0.0
    ticking: asyncio.Task[None] | None = field(default=None)

    async def run(self, task: RunningTask) -> Answer:
        """Answer at once."""
        if self.ticking is None:
            self.ticking = asyncio.create_task(self._tick())
        newest = list(task.history[-WINDOW:])
        said, answer = UserMessage(str(task.action.get("text"))), written(WORDS, "bench")
        begin_turn(task, said)
        tell(task, answer)
        end_turn(task, [said], answer)
        return Answer(text=str(len(newest)), state={})

    async def _tick(self) -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.005)
            self.longest = max(self.longest, time.perf_counter() - began - 0.005)


@dataclass
class Side:
    """One host and the sessions that it runs."""

    host: Host
    agent: Looking
    sessions: Sequence[UUID] = ()


class Bench:
    """The servers and both sides."""

    def __init__(self, db: Database, settings: Settings, postgres: int) -> None:
        self._db = db
        self._postgres = postgres
        self.sides = {"held": self._side(settings), "read": self._side(settings, cache_agents=0)}

    def _side(self, settings: Settings, **changed: object) -> Side:
        agent = Looking()
        own = settings.model_copy(update=changed)
        host = Host(own, {"companion": agent}, Model("none", "openai"), None)
        host.start()
        return Side(host, agent)

    async def grow(self, count: int, history: int) -> None:
        """Give each side so many sessions with so many messages."""
        for side in self.sides.values():
            made = [
                await sessions.create(self._db, USER, NewSession("companion"), "Ash")
                for _ in range(count)
            ]
            side.sessions = [session.id for session, _, _ in made]
            await self._run(side)
            for session in side.sessions:
                await self._db.run(_GROW, {"s": session, "n": history, "words": WORDS})
        await self._db.run(text("analyze messages"))

    async def _run(self, side: Side) -> None:
        for session in side.sessions:
            await asyncio.to_thread(side.host.submit, session)
        for _ in range(int(_LONGEST_SECONDS / _LOOK_SECONDS)):
            row = await self._db.row(_OPEN)
            if row is None or not row.open:
                return
            await asyncio.sleep(_LOOK_SECONDS)
        raise TimeoutError("the host did not come to an end")

    async def measure(self, side: Side, tasks: int) -> dict[str, float]:
        """CPU milliseconds and rows per task, of so many tasks in each session."""
        for session in side.sessions:
            for _ in range(tasks):
                await actions.accept(
                    self._db, USER, session, NewAction({"type": "say", "text": WORDS})
                )
        side.agent.longest = 0.0
        rows, cpu, backends = await self._rows(), time.process_time(), cpu_seconds([self._postgres])
        began = time.perf_counter()
        await self._run(side)
        took = time.perf_counter() - began
        cpu = time.process_time() - cpu
        backends = cpu_seconds([self._postgres]) - backends
        count = tasks * len(side.sessions)
        return {
            "worker_cpu_ms": cpu / count * 1e3,
            "postgres_cpu_ms": backends / count * 1e3,
            "cpu_ms": (cpu + backends) / count * 1e3,
            "message_rows": (await self._rows() - rows) / count,
            "ms": took / count * 1e3,
            "stall_ms": side.agent.longest * 1e3,
        }

    async def _rows(self) -> int:
        """How many rows of messages were read so far; Postgres says so a second late."""
        await asyncio.sleep(1.5)
        row = await self._db.row(_READ)
        return 0 if row is None else int(row.rows)


async def run(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """One row for each length of history."""
    with (
        EmbeddedPostgres(folder / "postgres", database="fireside") as postgres,
        EmbeddedValkey(folder / "valkey") as valkey,
    ):
        migrate(postgres.url)
        settings = load_settings().model_copy(
            update={
                "database_url": SecretStr(postgres.url),
                "redis_url": SecretStr(valkey.url),
                "sweep_seconds": 60.0,
                "drain_seconds": 0.0,
            }
        )
        db = Database.from_settings(settings)
        bench = Bench(db, settings, postgres.pid)
        steady_garbage()
        found = [await compare(bench, options, history) for history in options.history]
        for side in bench.sides.values():
            await asyncio.to_thread(side.host.drain)
        await db.close()
    return found


async def compare(bench: Bench, options: argparse.Namespace, history: int) -> dict[str, Any]:
    """Both sides in turn."""
    await bench.grow(options.sessions, history)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in bench.sides}
    for number in range(options.rounds + 1):
        for name in sorted(bench.sides, reverse=number % 2 == 1):
            found = await bench.measure(bench.sides[name], options.tasks)
            if number:  # the first round warms up
                rounds[name].append(found)
    row: dict[str, Any] = {
        "history": history,
        "sessions": options.sessions,
        "rounds": options.rounds,
    }
    for name, all_found in rounds.items():
        row[name] = {
            key: round(statistics.median(one[key] for one in all_found), 2) for key in all_found[0]
        }
    row["saved_ms"] = round(row["read"]["cpu_ms"] - row["held"]["cpu_ms"], 2)
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m bench.agent_cache", description=__doc__)
    parser.add_argument("--history", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with own_folder() as folder:
        rows = uvloop.run(run(options, folder))
    if options.out is not None:
        options.out.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


if __name__ == "__main__":
    main()
