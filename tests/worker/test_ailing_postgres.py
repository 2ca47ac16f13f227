"""The worker before a Postgres that ails: its claims are safe, it is quiet, and comes back."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from uuid import UUID

import pytest
from redis.asyncio import Redis

from agent_core import ToolExecutionStart
from deploy.local.postgres import EmbeddedPostgres
from shared.encoding import loads
from shared.ending import end_all
from shared.levels import LEVELS, key_of
from shared.queue import Hints, hint_of
from shared.redis_pool import connect_redis
from shared.store import actions, cancels, sessions
from shared.store.database import Database
from tests.ailing import frozen, full_disk, read_only
from tests.shared.invariants import broken
from tests.shared.sessions import ME, new_session
from tests.waiting import until, within
from tests.worker.hosts import Flag, Hosts, echo, say, step
from worker.agents import Answer, RunningTask
from worker.host import Host

pytestmark = pytest.mark.usefixtures("logs")

Ailment = Callable[[EmbeddedPostgres, str], AbstractContextManager[None]]

AILMENTS: dict[str, Ailment] = {
    "read-only": lambda server, _: read_only(server),
    "full": lambda _, url: full_disk(url),
    "frozen": lambda server, _: frozen(server),
}


class Working:
    """An agent that says where it is, and writes on when it may."""

    def __init__(self) -> None:
        self.began = Flag()
        self.go = Flag()

    async def run(self, task: RunningTask) -> Answer:
        task.emit(ToolExecutionStart("call", "look", {}))
        await task.journal.begin(step(0, "external"))
        self.began.set()
        await self.go.wait()
        await task.journal.finish(step(0, "external"), {"no": 0})
        return say(task, "done")


async def kinds_of(db: Database, session: UUID) -> list[str]:
    events = await sessions.events_after(db, ME, session, after=0, limit=1000)
    return [event.type for event in events]


async def idle(db: Database, session: UUID) -> None:
    async def is_idle() -> bool:
        return (await sessions.get(db, ME, session)).status == "idle"

    await until(is_idle)


async def pass_hints(hosts: Hosts, host: Host) -> None:
    """Do what Celery does in a worker process, until cancelled."""
    hints = connect_redis(hosts.settings)
    # A sweep puts what one user has many of on further levels.
    lists = [key_of(hosts.settings.queue, level) for level in range(LEVELS)]
    try:
        while True:
            popped = await hints.brpop(lists, timeout=1)
            if popped is not None and (hint := hint_of(loads(popped[1]))) is not None:
                await asyncio.to_thread(host.submit, hint)
    finally:
        await hints.aclose()


@pytest.mark.parametrize("ailment", AILMENTS)
async def test_what_is_short_is_waited_for(
    hosts: Hosts,
    db: Database,
    postgres_server: EmbeddedPostgres,
    postgres_url: str,
    ailment: str,
    logs: list[Any],
) -> None:
    agent = Working()
    session, later = await new_session(db), await new_session(db)
    host = hosts.start(agent.run, heartbeat_seconds=0.5)
    host.submit(session)
    await within(agent.began.wait())
    with AILMENTS[ailment](postgres_server, postgres_url):
        agent.go.set()
        # Beside this loop, which ends the outage: while one lasts, a hint is not taken.
        hinting = asyncio.create_task(asyncio.to_thread(host.submit, later))
        await asyncio.sleep(1.5)  # as long as it lasts
    await within(hinting)
    await idle(db, session)
    await asyncio.to_thread(host.submit, later)
    await idle(db, later)

    for one in (session, later):
        kinds = await kinds_of(db, one)
        assert kinds.count("task_started") == kinds.count("task_completed") == 1
        assert kinds.count("tool_execution_start") == 1
    assert await broken(db) == []
    assert [e for e in logs if e["event"] == "attempt lost"] == []
    assert len([e for e in logs if e["log_level"] in {"warning", "error"}]) < 10


@pytest.mark.parametrize("ailment", ["read-only", "frozen"])
async def test_what_is_long_costs_the_attempt_and_nothing_else(
    hosts: Hosts,
    db: Database,
    postgres_server: EmbeddedPostgres,
    postgres_url: str,
    redis: Redis,
    ailment: str,
    logs: list[Any],
) -> None:
    agent = Working()
    session = await new_session(db)
    many = [await new_session(db) for _ in range(30)]
    host = hosts.start(
        lambda task: (agent.run if task.session_id == session else echo)(task),
        lease_seconds=3.0,
        heartbeat_seconds=0.5,
        sweep_seconds=0.5,
    )
    host.submit(session)
    await within(agent.began.wait())
    ailing = time.monotonic()
    with AILMENTS[ailment](postgres_server, postgres_url):
        agent.go.set()
        passing = asyncio.create_task(pass_hints(hosts, host))
        await Hints(hosts.settings, redis).send(many)
        await asyncio.sleep(4.5)  # longer than the lease
        host._holding._lease_seconds = 30.0  # a second attempt is not lost to a busy machine
    back = time.monotonic()
    for one in [*many, session]:
        await idle(db, one)

    assert time.monotonic() - back < 25
    await end_all([passing])
    kinds = await kinds_of(db, session)
    assert kinds.count("task_started") + kinds.count("task_restarted") <= 2
    assert await broken(db) == []
    # Heartbeat and sweep each say so twice a second here; no session does.
    most = 42 + 4 * (back - ailing)
    assert len([e for e in logs if e["log_level"] in {"warning", "error"}]) < most


@pytest.mark.parametrize("running", [False, True])
async def test_a_drain_does_not_wait_for_a_postgres_that_stands_still(
    hosts: Hosts,
    db: Database,
    postgres_server: EmbeddedPostgres,
    monkeypatch: pytest.MonkeyPatch,
    running: bool,
) -> None:
    # In production a statement without an answer is given up after 12 s.
    monkeypatch.setattr("shared.store.connection.ANSWER_SECONDS", 300.0)
    monkeypatch.setattr("worker.rota.HAND_OVER_SECONDS", 1.0)
    agent = Working()
    session = await new_session(db)
    host = hosts.start(agent.run, drain_seconds=0.5, sweep_seconds=0.1)
    if running:
        host.submit(session)
        await within(agent.began.wait())
    with frozen(postgres_server):
        if running:
            agent.go.set()
        else:
            host.submit(session)
        await asyncio.sleep(0.3)  # until statements are on their way
        await within(asyncio.to_thread(host.drain))

    assert host.failure is None


async def test_an_attempt_that_is_lost_is_followed_at_once(
    hosts: Hosts, db: Database, logs: list[Any]
) -> None:
    """Its lease would last for minutes."""

    async def run(task: RunningTask) -> Answer:
        task.emit(ToolExecutionStart("call", "look", {"at": {1, 2}}))  # is no JSON
        return await echo(task)

    session = await new_session(db)
    host = hosts.start(run, max_attempts=3, lease_seconds=300.0)
    task = (await sessions.events_after(db, ME, session, after=0, limit=1))[0].task_id
    assert task is not None

    async def over() -> bool:
        host.submit(session)
        return (await sessions.get(db, ME, session)).status == "idle"

    await until(over)
    found = await actions.get_task(db, ME, task)
    assert (found.status, found.claims) == ("dead", 4)  # each attempt was counted
    assert await broken(db) == []


async def test_another_worker_hears_of_a_lost_attempt(
    hosts: Hosts, db: Database, redis: Redis
) -> None:
    attempts = 0

    async def run(task: RunningTask) -> Answer:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            task.emit(ToolExecutionStart("call", "look", {"at": {1, 2}}))
        return await echo(task)

    session = await new_session(db)
    host = hosts.start(run, lease_seconds=300.0)
    host.submit(session)

    async def is_hinted() -> bool:
        return await redis.llen(hosts.settings.queue) > 0

    await until(is_hinted)
    # This worker may be that other one; a hint that finds it at the end of its turn is sent on.
    passing = asyncio.create_task(pass_hints(hosts, host))
    await idle(db, session)
    await end_all([passing])


async def test_a_cancel_ends_an_agent_that_does_not_listen_within_two_seconds(
    hosts: Hosts, db: Database
) -> None:
    began, left = Flag(), Flag()

    async def deaf(task: RunningTask) -> Answer:
        began.set()
        while not left.is_set():
            try:
                await left.wait()
            except asyncio.CancelledError:
                continue
        return await echo(task)

    session = await new_session(db)
    hosts.start(deaf, heartbeat_seconds=0.1).submit(session)
    await within(began.wait())
    event = (await sessions.events_after(db, ME, session, after=0, limit=1))[0]
    assert event.task_id is not None
    asked = time.monotonic()
    await cancels.cancel_task(db, ME, event.task_id)
    await idle(db, session)

    assert time.monotonic() - asked < 20
    assert (await actions.get_task(db, ME, event.task_id)).status == "cancelled"
    left.set()
