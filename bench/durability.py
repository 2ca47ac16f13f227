"""`python -m bench.durability`: what the durable path costs beside the same task without it.

Companion tasks (two model calls with a tool between them) run in this process on real Postgres,
real Valkey and the scripted model: once as the worker runs them, once with neither lease, fence,
journal nor heartbeat, in turn. Counted are CPU (this process and Postgres) and round trips to
Postgres; medians over the rounds. One JSON row goes to `--out`.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import uvloop
from pydantic import SecretStr
from sqlalchemy import text

from agent_core import AbortSignal, get_model
from bench.line import CountingLine
from bench.processes import cpu_seconds
from bench.programs import own_folder, tell
from deploy.local.model import ScriptedModelProcess
from deploy.local.postgres import EmbeddedPostgres
from deploy.local.valkey import EmbeddedValkey
from deploy.models.control import ScriptedModel
from shared.encoding import dumps_text
from shared.ending import end_all
from shared.events import Publisher
from shared.migrate import migrate
from shared.records import (
    Claim,
    Fence,
    LedgerEntry,
    NewAction,
    NewEvent,
    NewSession,
    Outcome,
    Step,
    Written,
)
from shared.redis_pool import connect_redis
from shared.settings import Settings, load_settings
from shared.store import actions, claims, leases, sessions
from shared.store.database import Database
from worker.agents import Resources
from worker.attempt import run_attempt
from worker.companion import CompanionAgent
from worker.outage import Outage
from worker.postgres_tasks import PostgresTasks
from worker.task_log import TaskLog
from worker.telling import Telling

USER = "bench"
LEASE = 3.0
COUNTED = 40
"""Tasks whose round trips are counted."""

_PLAIN_TASK = text(
    """
    select s.agent, s.next_message, s.head_message, t.id, t.seq, t.action,
        (select jsonb_build_object('id', c.id, 'name', c.name, 'soul', c.soul)
         from characters c where c.id = s.character_id) as character
    from sessions s join tasks t on t.session_id = s.id
    where s.id = :session and t.status = 'queued'
    """
)

_PLAIN_EVENTS = """
    with numbers as (
        update sessions set next_event = next_event + :count where id = :session
        returning next_event - :count as first_seq, clock_timestamp() as at
    ), written as (
        insert into events (session_id, seq, task_id, type, data, at)
        select :session, numbers.first_seq + e.ord - 1, :task, e.type, e.data, numbers.at
        from numbers, rows from (
            jsonb_to_recordset(cast(:events as jsonb)) as (type text, data jsonb)
        ) with ordinality as e(type, data, ord)
    )"""

_PLAIN_WRITE = text(f"{_PLAIN_EVENTS} select first_seq, at, 1 from numbers")

_PLAIN_END = text(
    f"""{_PLAIN_EVENTS}, task as (
        update tasks set status = :status, result = cast(:result as jsonb),
            finished_at = clock_timestamp()
        where session_id = :session and id = :task
    ), said as (
        insert into messages (session_id, no, parent, task_id, message)
        select :session, cast(:next as bigint) + m.ord - 1,
            case when m.ord = 1 then cast(:head as bigint) else cast(:next as bigint) + m.ord - 2
            end, :task, m.message
        from jsonb_array_elements(cast(:messages as jsonb)) with ordinality as m(message, ord)
    )
    select first_seq, at, 0 from numbers
    """
)


class PlainTasks(PostgresTasks):
    """Writes the same events, messages and result, and nothing that a takeover would need."""

    def __init__(self, db: Database, telling: Telling) -> None:
        super().__init__(db, telling, Outage(db, patience=LEASE), lease_seconds=LEASE)
        self._plain = db

    async def write(
        self,
        claim: Claim,
        events: Sequence[NewEvent],
        steps: Sequence[Step],
        ledger: Sequence[LedgerEntry] = (),
    ) -> Written:
        """Append events."""
        if not events:
            return Written(1, datetime.now(UTC), 1)
        row = await self._plain.row(_PLAIN_WRITE, _events(claim, events))
        assert row is not None
        return Written(*row)

    async def end(self, claim: Claim, outcome: Outcome) -> Written:
        """End the task."""
        parameters = _events(claim, outcome.events) | {
            "status": outcome.status,
            "result": dumps_text(outcome.result),
            "messages": dumps_text(list(outcome.messages)),
            "next": claim.next_message,
            "head": claim.head_message,
        }
        row = await self._plain.row(_PLAIN_END, parameters)
        assert row is not None
        return Written(*row)


def _events(claim: Claim, events: Sequence[NewEvent]) -> dict[str, Any]:
    return {
        "session": claim.fence.session_id,
        "task": claim.task_id,
        "count": len(events),
        "events": dumps_text([{"type": e.type, "data": e.data} for e in events]),
    }


async def plain_claim(db: Database, session_id: UUID) -> Claim:
    """Read the session's waiting task without taking anything."""
    row = await db.row(_PLAIN_TASK, {"session": session_id})
    assert row is not None
    return Claim(
        fence=Fence(session_id, 0, uuid4()),
        user_id=USER,
        agent=row.agent,
        story=None,
        story_hash=None,
        character=row.character,
        metadata={},
        state={},
        view={},
        next_message=row.next_message,
        head_message=row.head_message,
        task_id=row.id,
        task_seq=row.seq,
        action=row.action,
        attempt=1,
        attempts=1,
        cancel_requested=False,
        messages=[],
    )


@dataclass(slots=True)
class Bench:
    """The servers, and what was counted of them."""

    db: Database
    telling: Telling
    resources: Resources
    postgres: int

    async def session(self) -> UUID:
        """A session whose opening task has run, with one `say` waiting."""
        made, _, _ = await sessions.create(self.db, USER, NewSession("companion"), "Ash")
        claim = await claims.claim(self.db, made.id, lease_seconds=LEASE, history=1)
        assert claim is not None
        await leases.end(
            self.db, claim, Outcome("completed", [NewEvent("task_completed", {"result": {}})])
        )
        await actions.accept(self.db, USER, made.id, NewAction({"type": "say", "text": "roll"}))
        return made.id

    async def durable(self, session_id: UUID) -> None:
        """As a worker runs it."""
        claim = await claims.claim(self.db, session_id, lease_seconds=LEASE, history=200)
        assert claim is not None
        store = PostgresTasks(
            self.db, self.telling, Outage(self.db, patience=LEASE), lease_seconds=LEASE
        )
        await self._run(claim, store)

    async def plain(self, session_id: UUID) -> None:
        """Without what makes it durable."""
        await self._run(await plain_claim(self.db, session_id), PlainTasks(self.db, self.telling))

    async def _run(self, claim: Claim, store: PostgresTasks) -> None:
        task_log = TaskLog(claim, store, on_lost=lambda: None)
        await run_attempt(
            claim,
            task_log,
            {"companion": CompanionAgent()},
            resources=self.resources,
            signal=AbortSignal(),
            task_seconds=60,
            max_attempts=5,
        )
        await task_log.close()

    async def measure(
        self, run: Callable[[UUID], Any], tasks: int, at_once: int
    ) -> dict[str, float]:
        """CPU milliseconds per task."""
        made = [await self.session() for _ in range(tasks)]
        slots = asyncio.Semaphore(at_once)

        async def one(session_id: UUID) -> None:
            async with slots:
                await run(session_id)

        cpu, backends = time.process_time(), cpu_seconds([self.postgres])
        await asyncio.gather(*(one(session_id) for session_id in made))
        cpu = time.process_time() - cpu
        backends = cpu_seconds([self.postgres]) - backends
        return {
            "worker_cpu_ms": cpu / tasks * 1e3,
            "postgres_cpu_ms": backends / tasks * 1e3,
        }


async def heartbeats(bench: Bench, at_once: int) -> float:
    """CPU milliseconds of one heartbeat of so many leases, of both sides."""
    fences = []
    for _ in range(at_once):
        claim = await claims.claim(bench.db, await bench.session(), lease_seconds=60.0, history=1)
        assert claim is not None
        fences.append(claim.fence)
    cpu = time.process_time() + cpu_seconds([bench.postgres])
    for _ in range(50):
        await leases.heartbeat(bench.db, fences, lease_seconds=60.0)
    return (time.process_time() + cpu_seconds([bench.postgres]) - cpu) / 50 * 1e3


async def round_trips(bench: Bench, settings: Settings) -> dict[str, float]:
    """Round trips to Postgres per task, either way."""
    line = CountingLine(settings.database_url.get_secret_value())
    found = {}
    async with line as url:
        db = Database.from_settings(settings.model_copy(update={"database_url": SecretStr(url)}))
        over_line = replace(bench, db=db)
        for name, way in (("durable", over_line.durable), ("plain", over_line.plain)):
            made = [await bench.session() for _ in range(COUNTED)]
            await db.check_writable()
            line.seen.clear()
            for session_id in made:
                await way(session_id)
            found[name] = line.seen["round_trips"] / COUNTED
        await db.close()
    return found


async def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    with (
        EmbeddedPostgres(folder / "postgres", database="fireside") as postgres,
        EmbeddedValkey(folder / "valkey") as valkey,
        ScriptedModelProcess(log=folder / "model.log") as model,
    ):
        migrate(postgres.url)
        settings = load_settings().model_copy(
            update={"database_url": SecretStr(postgres.url), "redis_url": SecretStr(valkey.url)}
        )
        ScriptedModel(model.url).script(
            {"match": {"after_tool": True}, "reply": {"chunks": ["tok "] * 50}},
            {"reply": {"tool_calls": [{"name": "roll_dice", "arguments": {"sides": 6}}]}},
        )
        redis = connect_redis(settings)
        db = Database.from_settings(settings)
        chosen = get_model("openai", "scripted", base_url=model.url, api="openai")
        telling = Telling(Publisher(redis))
        sending = asyncio.create_task(telling.send_for_ever())
        bench = Bench(db, telling, Resources(chosen, "bench", no_story), postgres.pid)

        rounds: dict[str, list[dict[str, float]]] = {"durable": [], "plain": []}
        for number in range(options.rounds + 1):
            for name in ("durable", "plain") if number % 2 else ("plain", "durable"):
                way = bench.durable if name == "durable" else bench.plain
                found = await bench.measure(way, options.tasks, options.at_once)
                if number:  # the first round warms up
                    rounds[name].append(found)
        beat = await heartbeats(bench, options.at_once)
        trips = await round_trips(bench, settings)
        await end_all([sending])
        await redis.aclose()
        await db.close()
    row: dict[str, Any] = {
        "tasks": options.tasks,
        "at_once": options.at_once,
        "rounds": options.rounds,
        "heartbeat_ms": round(beat, 2),
        "heartbeat_leases": options.at_once,
    }
    for name, all_found in rounds.items():
        row[name] = {
            key: round(statistics.median(one[key] for one in all_found), 2) for key in all_found[0]
        } | {"round_trips": trips[name]}
    row["ratio_cpu"] = round(
        statistics.median(
            _cpu(durable) / _cpu(plain)
            for durable, plain in zip(rounds["durable"], rounds["plain"], strict=True)
        ),
        2,
    )
    return row


def _cpu(found: dict[str, float]) -> float:
    return found["worker_cpu_ms"] + found["postgres_cpu_ms"]


async def no_story(story_hash: str) -> str:
    raise AssertionError(f"a companion asked for the story {story_hash}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.durability", description=__doc__)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with own_folder() as folder:
        row = uvloop.run(run(options, folder))
    tell(row, options.out)


if __name__ == "__main__":
    main()
