"""An attempt whose connection to Postgres is cut around a commit: it goes on as if nothing was."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from agent_core import ToolExecutionStart
from shared.errors import NotFound
from shared.store import actions, sessions
from shared.store.database import Database
from tests.shared.invariants import broken
from tests.shared.sessions import ME, new_session
from tests.shared.sessions import say as accept
from tests.waiting import until, within
from tests.wire import When, Wire
from tests.worker.hosts import Flag, Hosts, say, step
from worker.agents import Answer, RunningTask

pytestmark = pytest.mark.usefixtures("logs")

STEPS = 4


@pytest.fixture
async def db(postgres_url: str, redis_url: str) -> AsyncIterator[Database]:
    database = Database.from_settings(Hosts(postgres_url, redis_url).settings)
    yield database
    await database.close()


@pytest.fixture
async def hosts(wire: Wire, redis_url: str) -> AsyncIterator[Hosts]:
    """Hosts whose line to Postgres can be cut. It is on this loop: start them beside it."""
    made = Hosts(wire.url, redis_url)
    # A machine that stands still loses no attempt.
    made.settings = made.settings.model_copy(update={"lease_seconds": 300.0})
    yield made
    await made.drain()


async def work(task: RunningTask) -> Answer:
    """Write often: an event and a step with effects elsewhere, time and again."""
    for no in range(STEPS):
        task.emit(ToolExecutionStart(f"call-{no}", "look", {}))
        await task.journal.begin(step(no, "external"))
        await task.journal.finish(step(no, "external"), {"no": no})
    return say(task, "done")


async def finished(db: Database, session: Any) -> None:
    async def is_idle() -> bool:
        return (await sessions.get(db, ME, session)).status == "idle"

    await until(is_idle)


async def in_one_attempt(db: Database, session: Any) -> None:
    """The session's log is that of an attempt to which nothing happened."""
    events = await sessions.events_after(db, ME, session, after=0, limit=100)
    calls = [e.data["tool_call_id"] for e in events if e.type == "tool_execution_start"]
    assert calls == [f"call-{no}" for no in range(STEPS)]
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    assert [e.type for e in events].count("task_started") == 1
    assert [e.type for e in events].count("task_completed") == 1
    task = events[0].task_id
    assert task is not None
    assert (await actions.get_task(db, ME, task)).claims == 1
    kept = await sessions.messages(db, ME, session, limit=10)
    assert [one.message["role"] for one in kept] == ["user", "assistant"]
    assert await broken(db) == []


@pytest.mark.parametrize("statement", ["claim", "write", "end", "heartbeat", "pulse"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_one_cut(
    hosts: Hosts, db: Database, wire: Wire, when: When, statement: str, logs: list[Any]
) -> None:
    cut = Flag()

    async def run(task: RunningTask) -> Answer:
        if statement in {"heartbeat", "pulse"}:
            await cut.wait()
        return await work(task)

    session = await new_session(db)
    wire.cut(when, f"/* {statement} */")
    host = await asyncio.to_thread(hosts.start, run, heartbeat_seconds=0.1)
    host.submit(session)

    async def was_cut() -> bool:
        return bool(wire.cuts_made)

    await until(was_cut)
    cut.set()
    await finished(db, session)

    await in_one_attempt(db, session)
    assert [e for e in logs if e["event"] == "attempt lost"] == []


async def read_story(task: RunningTask) -> object:
    return await task.resources.read_story("0" * 64)


async def read_material(task: RunningTask) -> object:
    assert task.resources.read_material is not None
    return await task.resources.read_material(task.user_id, task.session_id, 1, 2)


async def read_answer(task: RunningTask) -> object:
    assert task.resources.read_answer is not None
    return await task.resources.read_answer(task.user_id, task.task_id)


READS: dict[str, Callable[[RunningTask], Awaitable[object]]] = {
    "story": read_story,
    "consolidation said": read_material,
    "batches read": read_answer,
}


@pytest.mark.parametrize("read", READS)
async def test_what_an_agent_reads_is_asked_for_again(
    hosts: Hosts, db: Database, wire: Wire, read: str, logs: list[Any]
) -> None:
    async def run(task: RunningTask) -> Answer:
        with contextlib.suppress(NotFound):
            await READS[read](task)
        return await work(task)

    session = await new_session(db)
    wire.cut("before", f"/* {read} */")
    host = await asyncio.to_thread(hosts.start, run)
    host.submit(session)
    await finished(db, session)

    assert wire.cuts_made
    await in_one_attempt(db, session)
    assert [e for e in logs if e["event"] == "attempt lost"] == []


@pytest.mark.parametrize("seed", range(6))
async def test_many_cuts(
    hosts: Hosts, db: Database, wire: Wire, seed: int, logs: list[Any]
) -> None:
    choice = random.Random(seed)
    session = await new_session(db)
    wire.cut(choice.choice(["before", "after"]), "/* claim */")
    for _ in range(choice.randint(2, 6)):
        statement = choice.choice(["claim made", "write", "write", "outcome of write", "end"])
        wire.cut(choice.choice(["before", "after"]), f"/* {statement} */")
    host = await asyncio.to_thread(hosts.start, work, heartbeat_seconds=0.2)
    host.submit(session)
    await finished(db, session)

    await in_one_attempt(db, session)
    assert wire.cuts_made
    assert [e for e in logs if e["event"] == "attempt lost"] == []


async def test_the_next_task_begins_after_an_end_whose_answer_was_lost(
    hosts: Hosts, db: Database, wire: Wire
) -> None:
    session = await new_session(db)
    later = await accept(db, session)
    wire.cut("after", "/* end */")
    (await asyncio.to_thread(hosts.start, work)).submit(session)
    await finished(db, session)

    assert (await actions.get_task(db, ME, later)).status == "completed"
    assert await broken(db) == []


async def test_a_line_that_stays_down_loses_the_attempt_when_patience_ends(
    hosts: Hosts, db: Database, wire: Wire, logs: list[Any]
) -> None:
    began, go = Flag(), Flag()

    async def run(task: RunningTask) -> Answer:
        began.set()
        await go.wait()
        return await work(task)

    session = await new_session(db)
    host = await asyncio.to_thread(
        hosts.start, run, lease_seconds=1.0, heartbeat_seconds=0.2, outage_seconds=0.5
    )
    host.submit(session)
    await within(began.wait())
    wire.down = True
    wire.cut_all()
    go.set()

    async def lost() -> bool:
        return any(e["event"] == "attempt lost" for e in logs)

    await until(lost)
    wire.down = False

    async def ended() -> bool:
        await asyncio.to_thread(host.submit, session)
        return (await sessions.get(db, ME, session)).status == "idle"

    await until(ended)
    assert await broken(db) == []
    told = [e["event"] for e in logs if "postgres is away" in (e["event"], e.get("after"))]
    assert (told[0], told[-1], told.count("works again")) == ("postgres is away", "works again", 1)
