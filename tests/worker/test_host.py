"""The worker's loop on real servers: hints, cancels, leases, drains, and all that breaks."""

import asyncio
import contextlib
import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from sqlalchemy import text

from agent_core import (
    AgentStart,
    JournalError,
    LlmContext,
    ModelCall,
    StepStart,
    StreamOptions,
    ToolExecutionStart,
)
from deploy.local.postgres import EmbeddedPostgres
from shared.errors import StoreUnavailable
from shared.events import Publisher, channel, decode_lines
from shared.homes import GONE_SECONDS
from shared.records import Event, Task
from shared.redis_pool import connect_redis
from shared.store import actions, cancels, sessions
from shared.store.database import Database
from tests.links import SlowLink
from tests.shared.invariants import broken
from tests.shared.sessions import ME, new_session
from tests.shared.sessions import say as accept
from tests.shared.tables import dump, empty
from tests.waiting import PATIENCE, until, within
from tests.worker.hosts import Flag, Hosts, echo, say, step
from worker.agents import Answer, RunningTask, TaskFailed
from worker.host import Host

pytestmark = pytest.mark.usefixtures("logs")


@pytest.fixture(scope="session")
def hosts_url(postgres_server: EmbeddedPostgres, database_template: str) -> Iterator[str]:
    yield postgres_server.create_database("hosts", template=database_template)
    postgres_server.drop_database("hosts")


@pytest.fixture
def postgres_url(hosts_url: str) -> str:
    """The URL of an empty database."""
    empty(hosts_url)
    return hosts_url


@pytest.fixture
async def watcher(postgres_url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A connection beside the pool, to hold locks with."""
    connection = await psycopg.AsyncConnection.connect(postgres_url, autocommit=True)
    yield connection
    await connection.close()


async def task_of(db: Database, task_id: UUID) -> Task:
    return await actions.get_task(db, ME, task_id)


async def opening(db: Database, session: UUID) -> UUID:
    row = await db.row(
        text("select id from tasks where session_id = :s and seq = 1"), {"s": session}
    )
    assert row is not None
    return UUID(str(row.id))


async def events_of(db: Database, session: UUID) -> list[Event]:
    return await sessions.events_after(db, ME, session, after=0, limit=1000)


async def kinds_of(db: Database, session: UUID) -> list[str]:
    return [event.type for event in await events_of(db, session)]


async def has_event(db: Database, session: UUID, kind: str) -> bool:
    return kind in await kinds_of(db, session)


async def idle(db: Database, session: UUID) -> None:
    """Wait until nothing of the session is open."""

    async def is_idle() -> bool:
        return (await sessions.get(db, ME, session)).status == "idle"

    await until(is_idle)


async def columns(db: Database, session: UUID) -> Any:
    """The running task's counters beside its session's lease."""
    return await db.row(
        text(
            "select t.status, t.attempts, t.claims, s.lease_until, s.lease_token, s.epoch"
            " from sessions s join tasks t on t.session_id = s.id and t.status = 'running'"
            " where s.id = :s"
        ),
        {"s": session},
    )


STEAL = text(
    "update sessions set epoch = epoch + 1, lease_token = gen_random_uuid(),"
    " lease_until = clock_timestamp() + make_interval(secs => :seconds) where id = :s"
)
"""What another worker's claim does to the lease; without seconds it has run out already."""

RUN_OUT = text("update sessions set lease_until = clock_timestamp(), ready_at = null where id = :s")
"""What time does to the lease."""


def doubt_after(host: Host, seconds: float) -> None:
    """From now on, have a host stop runs whose lease it could not renew for so long.

    A lease that is short from the start is lost to any machine that stands still meanwhile.
    """
    host._holding._lease_seconds = seconds


class Waiting:
    """An agent that says where it is: it begins, waits for `go`, and answers."""

    def __init__(self) -> None:
        self.began = Flag()
        self.go = Flag()
        self.stopped = Flag()
        self.attempts = 0

    async def run(self, task: RunningTask) -> Answer:
        self.attempts += 1
        self.began.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.stopped.set()
            raise
        return await echo(task)


async def listening(task: RunningTask) -> Answer:
    """Wait for the user's cancel."""
    task.emit(AgentStart())
    await task.signal.wait()
    return Answer("", {})


# -- hints --------------------------------------------------------------------------------------


async def test_a_hint_runs_a_manytasks_to_the_end_in_order(hosts: Hosts, db: Database) -> None:
    session = await new_session(db)
    for word in ("one", "two", "three"):
        await accept(db, session, word)
    hosts.start(echo).submit(session)
    await idle(db, session)

    ended = [e for e in await events_of(db, session) if e.type == "task_completed"]
    assert [e.data["result"]["text"] for e in ended] == ["hello", "one", "two", "three"]
    assert await broken(db) == []
    kept = await sessions.messages(db, ME, session, limit=100)
    assert [m.no for m in kept] == list(range(1, 9))
    assert [m.parent for m in kept] == [None, *range(1, 8)]


async def test_what_ends_is_counted_by_how_it_ended(hosts: Hosts, db: Database) -> None:
    async def fail_but_once(task: RunningTask) -> Answer:
        if task.action["type"] == "say":
            raise TaskFailed("no_luck", "no luck")
        return say(task, "Welcome.")

    host = hosts.start(fail_but_once)
    session = await new_session(db)
    await accept(db, session, "Hello")
    host.submit(session)
    await idle(db, session)

    def counted() -> dict[tuple[str, ...], float]:
        return {
            (one.name, *one.labels.values()): one.value
            for metric in host.figures.collect()
            for one in metric.samples
            if one.name in {"fireside_tasks_ended_total", "fireside_task_attempts_total"}
        }

    await until(lambda: sum(counted().values()) >= 4)
    assert counted() == {
        ("fireside_task_attempts_total", "first"): 2.0,
        ("fireside_tasks_ended_total", "companion", "completed"): 1.0,
        ("fireside_tasks_ended_total", "companion", "failed"): 1.0,
    }


async def test_doubled_forged_and_late_hints_do_nothing(hosts: Hosts, db: Database) -> None:
    agent = Waiting()
    session, deleted = await new_session(db), await new_session(db)
    await sessions.delete(db, ME, deleted)
    host = hosts.start(agent.run, max_in_flight=2)
    host.submit(session)
    await within(agent.began.wait())
    for one in (session, deleted, session, uuid4(), session):
        await within(asyncio.to_thread(host.submit, one))
    agent.go.set()
    await idle(db, session)
    await within(asyncio.to_thread(host.submit, session))

    other = await new_session(db)
    await within(asyncio.to_thread(host.submit, other))
    await idle(db, other)
    assert agent.attempts == 2
    assert await broken(db) == []


async def test_a_hint_that_comes_while_the_last_task_is_being_told_is_not_lost(
    hosts: Hosts, db: Database, redis: Redis
) -> None:
    session = await new_session(db)
    first = await opening(db, session)

    async def pausing(task: RunningTask) -> Answer:
        if task.task_id == first:
            await redis_of_host(task, hosts)
        return await echo(task)

    host = hosts.start(pausing)
    host.submit(session)
    await ended(db, first)
    second = await accept(db, session)
    host.submit(session)

    await ended(db, second)


async def test_a_session_goes_on_although_its_heartbeat_finds_the_lease_given_back(
    hosts: Hosts, db: Database
) -> None:
    session = await new_session(db)
    first, second = await opening(db, session), await accept(db, session)

    async def pausing(task: RunningTask) -> Answer:
        if task.task_id == first:
            await redis_of_host(task, hosts)
        return await echo(task)

    hosts.start(pausing, heartbeat_seconds=0.1).submit(session)

    await ended(db, second)


async def redis_of_host(task: RunningTask, hosts: Hosts) -> None:
    """Have Redis answer nobody for a while, so that telling takes time."""
    client = connect_redis(hosts.settings)
    await client.client_pause(1000)
    await client.aclose()


async def ended(db: Database, task: UUID) -> None:
    async def has_ended() -> bool:
        return (await task_of(db, task)).finished_at is not None

    await until(has_ended)


# -- cancels ------------------------------------------------------------------------------------


async def cancel(db: Database, publisher: Publisher | None, session: UUID, task: UUID) -> None:
    """Cancel a running task, which then ends."""
    await until(lambda: has_event(db, session, "agent_start"))
    await cancels.cancel_task(db, ME, task)
    if publisher is not None:
        await publisher.cancel(session, task)
    await ended(db, task)
    assert (await task_of(db, task)).status == "cancelled"
    assert await broken(db) == []


async def test_a_cancel_over_redis_ends_the_task(hosts: Hosts, db: Database, redis: Redis) -> None:
    session = await new_session(db)
    # So slow a heart that only Redis can have told: all patience here is over before it beats.
    host = hosts.start(listening, lease_seconds=300.0, heartbeat_seconds=100.0)

    async def heard() -> bool:
        return (await redis.pubsub_numsub("fireside:cancel"))[0][1] == 1

    await until(heard)
    host.submit(session)

    for nonsense in (b"\xff:\xff", b"", b"no", f"{session}:{uuid4()}".encode()):
        await redis.publish("fireside:cancel", nonsense)
    await cancel(db, Publisher(redis), session, await opening(db, session))


async def test_a_cancel_reaches_the_task_although_redis_is_away(hosts: Hosts, db: Database) -> None:
    session = await new_session(db)
    away = SecretStr("redis://127.0.0.1:1/0")
    hosts.start(listening, redis_url=away).submit(session)

    await cancel(db, None, session, await opening(db, session))


# -- leases -------------------------------------------------------------------------------------


async def test_a_lease_that_another_worker_took_stops_the_run_which_writes_no_more(
    hosts: Hosts, db: Database
) -> None:
    stopped = Flag()

    async def run(task: RunningTask) -> Answer:
        task.emit(AgentStart())
        try:
            await asyncio.Event().wait()
        finally:
            say(task, "too late")
            stopped.set()
        raise AssertionError

    session = await new_session(db)
    host = hosts.start(run, heartbeat_seconds=0.2)
    host.submit(session)

    await until(lambda: has_event(db, session, "agent_start"))
    await db.run(STEAL, {"s": session, "seconds": 60})
    before = await dump(db)
    await within(stopped.wait())
    before["tasks"][0]["attempts"] = 0  # its worker lives on: it was no fault of the task

    async def taken_back() -> bool:
        return await dump(db) == before

    await until(taken_back)
    await within(asyncio.to_thread(host.drain))
    assert await dump(db) == before


async def test_a_process_that_stood_still_keeps_what_nobody_has_taken(
    hosts: Hosts, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands still for a moment, in which the clock goes on by far more than a lease."""
    gone = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + gone)
    for module in ("holding", "renewal"):
        monkeypatch.setattr(f"worker.{module}.time", clock)

    async def stand_still(task: RunningTask) -> Answer:
        nonlocal gone
        await task.journal.begin(step(1, "external"))
        gone += 300.0
        # As a process does that is frozen: whoever looks after leases is late then.
        time.sleep(0.5)  # noqa: ASYNC251
        await asyncio.sleep(0.5)  # the loop's own time, for whoever would stop this run
        await task.journal.finish(step(1, "external"), {"kept": True})
        return Answer(text="still here", state={})

    session = await new_session(db)
    hosts.start(stand_still, heartbeat_seconds=0.2).submit(session)
    await idle(db, session)
    assert "task_restarted" not in await kinds_of(db, session)
    assert await broken(db) == []


class Blocking:
    """An agent that blocks its loop until `go`, and then answers."""

    def __init__(self) -> None:
        self.began = Flag()
        self.go = threading.Event()

    async def run(self, task: RunningTask) -> Answer:
        await task.journal.begin(step(1, "external"))
        self.began.set()
        self.go.wait(60)
        await task.journal.finish(step(1, "external"), {"kept": True})
        return Answer(text="still here", state={})


async def test_a_loop_that_is_busy_keeps_its_leases(hosts: Hosts, db: Database) -> None:
    agent = Blocking()
    session = await new_session(db)
    hosts.start(agent.run, heartbeat_seconds=0.1).submit(session)
    await within(agent.began.wait())
    before = (await columns(db, session)).lease_until

    async def is_renewed() -> bool:
        return bool((await columns(db, session)).lease_until > before)

    await until(is_renewed)
    agent.go.set()
    await idle(db, session)
    assert "task_restarted" not in await kinds_of(db, session)


async def test_a_loop_that_stands_still_for_leases_leaves_its_sessions_to_others(
    hosts: Hosts, db: Database, logs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.renewal.LEASES_STOOD_STILL", 0.01)  # 0.3 seconds
    agent = Blocking()
    session = await new_session(db)
    hosts.start(agent.run, heartbeat_seconds=0.1).submit(session)
    await within(agent.began.wait())
    already = len(logs)
    said = "the loop stands still: its sessions are left to others"
    await until(lambda: any(entry["event"] == said for entry in logs[already:]))
    before = (await columns(db, session)).lease_until
    await asyncio.sleep(0.5)  # some heartbeats

    assert (await columns(db, session)).lease_until == before
    agent.go.set()
    await idle(db, session)
    assert [entry["event"] for entry in logs[already:]].count(said) == 1
    assert "task_restarted" not in await kinds_of(db, session)  # nobody has taken it


async def test_a_heartbeat_that_hangs_for_longer_than_the_lease_stops_the_run(
    hosts: Hosts, db: Database, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.store.connection.ANSWER_SECONDS", 300.0)  # it is never given up
    agent = Waiting()
    session = await new_session(db)
    async with SlowLink(postgres_url).running() as link:
        url = SecretStr(link.url)
        # The host looks at Postgres before it has started, over a link that this loop keeps up.
        host = await within(
            asyncio.to_thread(hosts.start, agent.run, database_url=url, heartbeat_seconds=0.2)
        )
        host.submit(session)
        await until(lambda: has_event(db, session, "task_started"))
        await within(agent.began.wait())
        link.fall_silent()
        doubt_after(host, 1.0)
        await within(agent.stopped.wait())
        link.speak()
        await within(asyncio.to_thread(host.drain))


@pytest.mark.parametrize("patience", [0.0, 0.5])
async def test_an_outage_for_longer_than_patience_and_lease_stops_the_run(
    hosts: Hosts,
    db: Database,
    postgres_server: EmbeddedPostgres,
    patience: float,
) -> None:
    agent = Waiting()
    session = await new_session(db)
    host = hosts.start(agent.run, heartbeat_seconds=0.2, outage_seconds=patience)
    host.submit(session)
    await within(agent.began.wait())
    await until(lambda: has_event(db, session, "task_started"))  # no write is on its way
    postgres = await psycopg.AsyncConnection.connect(
        postgres_server.url_of("postgres"), autocommit=True
    )
    await postgres.execute("alter database hosts with allow_connections false")
    doubt_after(host, 1.0)
    try:
        await postgres.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = 'hosts'"
        )
        await within(agent.stopped.wait())
    finally:
        await postgres.execute("alter database hosts with allow_connections true")
        await postgres.close()

    async def taken_back() -> bool:
        with contextlib.suppress(StoreUnavailable):  # this pool's connections were cut as well
            return bool((await columns(db, session)).attempts == 0)
        return False

    await until(taken_back)


async def test_an_end_that_is_being_written_is_not_stopped_for_its_lease(
    hosts: Hosts, db: Database, watcher: psycopg.AsyncConnection[Any]
) -> None:
    agent = Waiting()
    session = await new_session(db)
    await accept(db, session)
    host = hosts.start(agent.run, heartbeat_seconds=0.1)
    host.submit(session)
    await within(agent.began.wait())
    await until(lambda: has_event(db, session, "task_started"))
    async with watcher.transaction():
        await watcher.execute("lock table sessions in access exclusive mode")
        agent.go.set()
        await until(lambda: any(held.task_log.ending for held in host._holding))
        doubt_after(host, 0.5)
        await asyncio.sleep(1.0)  # until the deadline is past
        doubt_after(host, 30.0)
    await idle(db, session)
    assert await broken(db) == []


# -- drain --------------------------------------------------------------------------------------


async def test_a_drain_lets_a_task_end_within_the_budget(hosts: Hosts, db: Database) -> None:
    agent = Waiting()
    session = await new_session(db)
    waiting = await accept(db, session)
    host = hosts.start(agent.run, drain_seconds=90.0)
    host.submit(session)
    await within(agent.began.wait())
    draining = asyncio.create_task(asyncio.to_thread(host.drain))
    await within(asyncio.to_thread(host._closing.wait))
    agent.go.set()
    await within(draining)

    assert (await task_of(db, await opening(db, session))).status == "completed"
    # The next one is left to others, who may have it at once.
    assert (await task_of(db, waiting)).status == "queued"
    hosts.start(echo).submit(session)
    await idle(db, session)
    assert await broken(db) == []


class Stepping:
    """An agent of two steps; its first attempt waits between them."""

    def __init__(self) -> None:
        self.finished = Flag()
        self.ran: Counter[int] = Counter()
        self.leave: Callable[[], None] = lambda: None

    async def run(self, task: RunningTask) -> Answer:
        say(task, "first")
        await self._step(task, 0)
        if not self.finished.is_set():
            self.finished.set()
            self.leave()
            await asyncio.Event().wait()
        await self._step(task, 1)
        return say(task, "second")

    async def _step(self, task: RunningTask, no: int) -> None:
        if (await task.journal.begin(step(no))).outcome == "run":
            self.ran[no] += 1
            await asyncio.sleep(0.001)  # its beginning is on its way to the table
            await task.journal.finish(step(no), {"no": no})


async def test_a_drain_hands_over_what_takes_longer(hosts: Hosts, db: Database) -> None:
    agent = Stepping()
    session = await new_session(db)
    host = hosts.start(agent.run)
    agent.leave = host._stop.set  # at once: the step that is finished is not written yet
    host.submit(session)
    await within(agent.finished.wait())
    await within(asyncio.to_thread(host.drain))

    found = await columns(db, session)
    assert (found.status, found.attempts, found.claims) == ("running", 0, 1)
    assert (found.lease_until, found.lease_token) == (None, None)

    hosts.start(agent.run).submit(session)
    await idle(db, session)
    assert agent.ran == {0: 1, 1: 1}
    assert await broken(db) == []
    assert await kinds_of(db, session) == [
        "task_queued",
        "task_started",
        "agent_start",
        *["message_start", "message_end"] * 2,
        "task_restarted",
        "agent_start",
        *["message_start", "message_end"] * 2,
        "state_changed",
        "task_completed",
    ]
    kept = await sessions.messages(db, ME, session, limit=10)
    assert [m.message["content"] for m in kept if m.message["role"] == "assistant"] == [
        [{"type": "text", "text": word}] for word in ("first", "second")
    ]


async def test_a_drain_gives_back_a_claim_that_was_on_its_way(
    hosts: Hosts, db: Database, watcher: psycopg.AsyncConnection[Any]
) -> None:
    agent = Waiting()
    session = await new_session(db)
    host = hosts.start(agent.run)
    async with watcher.transaction():
        await watcher.execute("select from sessions where id = %s for update", [session])
        host.submit(session)
        await until(lambda: waits_for_a_lock(db, "claim"))
        draining = asyncio.create_task(asyncio.to_thread(host.drain))
        await within(asyncio.to_thread(host._closing.wait))
    await within(draining)

    assert not agent.began.is_set()
    found = await columns(db, session)
    assert (found.attempts, found.lease_until) == (0, None)


async def waits_for_a_lock(db: Database, statement: str) -> bool:
    """Whether a statement that begins with this name does."""
    row = await db.row(
        text(
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
            " and datname = current_database() and query ~ :named"
        ),
        {"named": rf"^\s*/\* {statement}"},
    )
    return row is not None and row[0] > 0


async def test_a_drain_does_not_cut_off_the_end_of_a_task(
    hosts: Hosts,
    db: Database,
    redis: Redis,
    watcher: psycopg.AsyncConnection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.host.LAST_NEWS_SECONDS", PATIENCE)
    agent = Waiting()
    session = await new_session(db)
    task = await opening(db, session)
    host = hosts.start(agent.run)
    async with redis.pubsub() as frames:
        await frames.subscribe(channel(session))
        host.submit(session)
        await within(agent.began.wait())
        async with watcher.transaction():
            await watcher.execute("select from sessions where id = %s for update", [session])
            agent.go.set()
            await until(lambda: waits_for_a_lock(db, "(write|end)"))
            draining = asyncio.create_task(asyncio.to_thread(host.drain))
            await within(asyncio.to_thread(host._closing.wait))
        await within(draining)
        assert (await task_of(db, task)).status == "completed"
        async with asyncio.timeout(PATIENCE):
            async for frame in frames.listen():
                if frame["type"] == "message" and b'"task_completed"' in frame["data"]:
                    break


# -- backpressure -------------------------------------------------------------------------------


async def test_a_full_host_lets_its_callers_wait(hosts: Hosts, db: Database) -> None:
    agent = Waiting()
    first, second = await new_session(db), await new_session(db)
    host = hosts.start(agent.run, max_in_flight=1)
    host.submit(first)
    await within(agent.began.wait())
    entered, returned = threading.Event(), threading.Event()

    def submit() -> None:
        entered.set()
        host.submit(second)
        returned.set()

    threading.Thread(target=submit, daemon=True).start()
    await within(asyncio.to_thread(entered.wait))
    assert not await asyncio.to_thread(returned.wait, 0.2)
    agent.go.set()
    await within(asyncio.to_thread(returned.wait))
    await idle(db, second)


async def test_a_full_host_lets_its_callers_go_when_it_closes(hosts: Hosts, db: Database) -> None:
    agent = Waiting()
    first, second = await new_session(db), await new_session(db)
    host = hosts.start(agent.run, max_in_flight=1)
    host.submit(first)
    await within(agent.began.wait())
    waiting = asyncio.create_task(asyncio.to_thread(host.submit, second))
    host.close()

    await within(waiting)
    agent.go.set()
    await idle(db, first)
    assert (await task_of(db, await opening(db, second))).status == "queued"


# -- what breaks --------------------------------------------------------------------------------


@pytest.fixture
async def terminated() -> AsyncIterator[Flag]:
    """Set when this process is told to end."""
    flag, loop = Flag(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, flag.set)
    yield flag
    loop.remove_signal_handler(signal.SIGTERM)


async def test_a_service_that_dies_ends_the_process(
    hosts: Hosts, db: Database, terminated: Flag
) -> None:
    agent = Waiting()
    session = await new_session(db)
    host = hosts.start(agent.run, sweep_seconds=0.05, drain_seconds=90.0)
    host.submit(session)
    await within(agent.began.wait())
    await db.run(text("alter table sessions rename column hints to renamed"))
    try:
        await within(terminated.wait())
        # Nobody waits for a host that works no more.
        await within(asyncio.to_thread(host.submit, session))
        await within(asyncio.to_thread(host.drain))
        assert host.failure is not None
    finally:
        await db.run(text("alter table sessions rename column renamed to hints"))


async def test_a_service_that_dies_ends_a_drain(hosts: Hosts, db: Database) -> None:
    agent = Waiting()
    session = await new_session(db)
    host = hosts.start(agent.run, sweep_seconds=0.05, drain_seconds=3600.0)
    host.submit(session)
    await within(agent.began.wait())
    host.begin_to_drain()
    await db.run(text("alter table sessions rename column hints to renamed"))
    try:
        await within(asyncio.to_thread(host.drain))
    finally:
        await db.run(text("alter table sessions rename column renamed to hints"))


async def test_who_waits_for_the_provider_holds_no_connection(hosts: Hosts, db: Database) -> None:
    """Of twelve calls one is under way, the others wait; all that this worker has is a single
    connection, and leases that must be renewed."""
    asking, go = Counter[str](), Flag()

    async def run(task: RunningTask) -> Answer:
        if task.action.get("text") == "ask":
            asking["calls"] += 1
            options = StreamOptions(api_key="key", session_id=str(task.session_id))
            ask = ModelCall(task.resources.model, task.user_id, LlmContext(), options)
            assert task.resources.limiter is not None
            async with task.resources.limiter.admit(ask):
                await go.wait()
        return await echo(task)

    async def all_ask() -> bool:
        return asking["calls"] == 12

    async def renewed() -> bool:
        return bool((await leases())[0] > last)

    async def leases() -> Any:
        """The first and the last lease of those who wait."""
        row = await db.row(
            text("select min(lease_until), max(lease_until) from sessions where id = any(:ids)"),
            {"ids": many[:-1]},
        )
        assert row is not None
        return row

    host = hosts.start(run, model_concurrency=1, database_pool=2, heartbeat_seconds=0.1)
    many = [await new_session(db, started=True) for _ in range(13)]
    for session in many[:-1]:
        await accept(db, session, "ask")
        host.submit(session)
    await until(all_ask)
    last = (await leases())[1]
    await until(renewed)
    for number in range(5):
        await accept(db, many[-1], str(number))
        host.submit(many[-1])
        await idle(db, many[-1])
    go.set()
    for session in many:
        await idle(db, session)

    assert asking["calls"] == 12  # and no lease was lost


async def test_a_line_to_redis_that_was_reset_ends_no_service(
    hosts: Hosts, db: Database, redis: Redis, terminated: Flag
) -> None:
    """It says that it is there several times a second, over a line that is idle in between."""
    homes = f"fireside:homes:{hosts.settings.queue}"
    told = 0.0

    async def told_again() -> bool:
        return terminated.is_set() or await redis.zcount(homes, told, "+inf") > 0

    async def refused_often() -> bool:
        return terminated.is_set() or link.refused > 30

    session = await new_session(db)
    async with SlowLink(hosts.settings.redis_url.get_secret_value()).running() as link:
        host = hosts.start(echo, redis_url=SecretStr(link.url))
        for _ in range(5):
            await until(told_again)
            link.reset()
            seconds, micros = await redis.time()
            told = seconds * 1000 + micros / 1000 + GONE_SECONDS * 1000
        await until(told_again)
        link.refuses = True
        link.reset()
        await until(refused_often)
        link.refuses = False
        assert host.failure is None
        host.submit(session)
        await idle(db, session)
        await within(asyncio.to_thread(host.drain))

    assert host.failure is None
    assert not terminated.is_set()


class Stubborn:
    """An agent that can't be cancelled, until the test is over."""

    def __init__(self) -> None:
        self.began = Flag()
        self.over = Flag()

    async def run(self, task: RunningTask) -> Answer:
        self.began.set()
        while not self.over.is_set():
            try:
                await self.over.wait()
            except asyncio.CancelledError:
                task.emit(AgentStart())
        return Answer("", {})


async def test_an_agent_that_blocks_cancellation_does_not_keep_the_worker(
    hosts: Hosts, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Half of it goes by waiting for the agent; the other half is for all else.
    monkeypatch.setattr("worker.rota.HAND_OVER_SECONDS", 4.0)
    agent = Stubborn()
    session = await new_session(db)
    host = hosts.start(agent.run)
    host.submit(session)
    await within(agent.began.wait())
    try:
        await within(asyncio.to_thread(host.drain))
        found = await columns(db, session)
        assert (found.attempts, found.lease_until) == (0, None)
    finally:
        agent.over.set()
    hosts.start(echo).submit(session)
    await idle(db, session)
    assert await broken(db) == []


async def test_an_agent_that_blocks_cancellation_does_not_keep_its_session(
    hosts: Hosts, db: Database
) -> None:
    agent = Stubborn()
    session = await new_session(db)
    again = await accept(db, session)

    async def run(task: RunningTask) -> Answer:
        return await (echo if task.task_id == again else agent.run)(task)

    hosts.start(run, task_seconds=0.1).submit(session)
    try:
        await idle(db, session)
        task = await task_of(db, await opening(db, session))
        assert task.error is not None
        assert task.error["code"] == "task_timeout"
    finally:
        agent.over.set()


async def raise_after_events(task: RunningTask) -> Answer:
    say(task, "half")
    raise ValueError("secret")


async def raise_within_a_step(task: RunningTask) -> Answer:
    await task.journal.begin(step())
    raise RuntimeError("secret")


async def cancel_itself(task: RunningTask) -> Answer:
    raise asyncio.CancelledError


async def give_nothing(task: RunningTask) -> Answer:
    return None  # type: ignore[return-value]


async def give_what_is_no_json(task: RunningTask) -> Answer:
    return Answer("", state={"found": {1, 2}})


async def name_a_journal_error(task: RunningTask) -> Answer:
    raise JournalError("a journal of its own")


async def fail(task: RunningTask) -> Answer:
    raise TaskFailed("no_such_choice", "there is no such choice")


async def end_itself(task: RunningTask) -> Answer:
    raise SystemExit(1)


def not_even_start(task: RunningTask) -> Any:
    raise OSError("secret")


async def test_whatever_an_agent_raises_fails_its_task_alone(hosts: Hosts, db: Database) -> None:
    runs: list[Any] = [
        raise_after_events,
        raise_within_a_step,
        cancel_itself,
        give_nothing,
        give_what_is_no_json,
        name_a_journal_error,
        end_itself,
        not_even_start,
        fail,
    ]
    of = {await new_session(db): run for run in runs}
    after = {await accept(db, session) for session in of}

    async def first_fails(task: RunningTask) -> Answer:
        return await (echo if task.task_id in after else of[task.session_id])(task)

    host = hosts.start(first_fails)
    for session in of:
        host.submit(session)
    for session, run in of.items():
        await idle(db, session)
        task = await task_of(db, await opening(db, session))
        assert (run.__name__, task.status, task.claims) == (run.__name__, "failed", 1)
        assert task.error is not None
        assert task.error["code"] == ("no_such_choice" if run is fail else "agent_failed")
        assert "secret" not in task.error["message"]
    for one in after:
        assert (await task_of(db, one)).status == "completed"
    assert host.failure is None
    assert await broken(db) == []


async def test_an_event_that_is_no_json_loses_the_attempt_and_nothing_after_it_is_written(
    hosts: Hosts, db: Database, logs: list[Any]
) -> None:
    async def run(task: RunningTask) -> Answer:
        task.emit(ToolExecutionStart("call", "look", {"at": {1, 2}}))
        return await echo(task)

    session = await new_session(db)
    host = hosts.start(run, max_attempts=1)

    async def over() -> bool:
        host.submit(session)
        return (await sessions.get(db, ME, session)).status == "idle"

    await until(over)
    assert await kinds_of(db, session) == ["task_queued", "task_restarted", "task_dead"]
    lost = [entry for entry in logs if entry["event"] == "attempt lost"]
    assert ["TypeError" in entry["error"] for entry in lost] == [True]


@pytest.mark.parametrize("long", [False, True])
async def test_a_run_goes_on_when_postgres_is_back(
    hosts: Hosts, db: Database, postgres_server: EmbeddedPostgres, logs: list[Any], long: bool
) -> None:
    began, go = Flag(), Flag()
    starts: list[StepStart] = []

    async def run(task: RunningTask) -> Answer:
        say(task, "before")
        starts.append(await task.journal.begin(step(0, "external")))
        if starts[-1].outcome == "run":
            await task.journal.finish(step(0, "external"), {"no": 0})
            began.set()
            await go.wait()
            await task.journal.begin(step(1, "external"))
        return say(task, "after")

    def said(event: str) -> bool:
        return any(entry["event"] == event for entry in logs)

    async def has_run_out() -> bool:
        with contextlib.suppress(StoreUnavailable):  # this pool's connections were cut as well
            await db.run(RUN_OUT, {"s": session})
            return True
        return False

    session = await new_session(db)
    host = hosts.start(run, heartbeat_seconds=0.1, outage_seconds=0.5 if long else 30.0)
    host.submit(session)
    await within(began.wait())
    postgres_server.stop()
    go.set()
    try:
        await until(lambda: said("postgres is away"))
        # Longer than the lease either way; what counts is the patience with an outage.
        doubt_after(host, 0.5)
        if long:
            await until(lambda: said("attempt lost"))
        else:
            await asyncio.sleep(1.0)
        doubt_after(host, 30.0)
        host._outage.patience = 30.0  # it may take its time to come back
    finally:
        postgres_server.start()
    if long:
        await until(has_run_out)

    async def over() -> bool:
        await asyncio.to_thread(host.submit, session)
        with contextlib.suppress(StoreUnavailable):  # this pool's connections were cut as well
            return (await sessions.get(db, ME, session)).status == "idle"
        return False

    await until(over)
    assert [start.outcome for start in starts] == (["run", "done"] if long else ["run"])
    kinds = await kinds_of(db, session)
    assert kinds.count("task_restarted") == long
    assert kinds.count("task_completed") == 1
    assert await broken(db) == []


async def test_a_task_that_kills_each_of_its_attempts_ends_as_dead_and_the_session_goes_on(
    hosts: Hosts, db: Database
) -> None:
    session = await new_session(db)
    after = await accept(db, session)

    async def poison(task: RunningTask) -> Answer:
        if task.task_id != after:
            # What can't be written ends an attempt, and is no fault of the lease or of Postgres.
            task.emit(ToolExecutionStart("call", "look", {"at": {1, 2}}))
            await task.journal.begin(step(0, "external"))
        return await echo(task)

    host = hosts.start(poison, max_attempts=2)

    async def over() -> bool:
        host.submit(session)
        return (await sessions.get(db, ME, session)).status == "idle"

    await until(over)
    task = await task_of(db, await opening(db, session))
    assert (task.status, task.claims) == ("dead", 3)
    assert (await task_of(db, after)).status == "completed"
    assert await broken(db) == []


# -- frames -------------------------------------------------------------------------------------


async def test_a_frame_is_published_when_its_row_is_there(
    hosts: Hosts, db: Database, redis: Redis
) -> None:
    session = await new_session(db)
    task = await opening(db, session)
    async with redis.pubsub() as frames:
        await frames.subscribe(channel(session))
        hosts.start(echo).submit(session)
        seen: list[int] = []
        async with asyncio.timeout(PATIENCE):
            async for frame in frames.listen():
                if frame["type"] != "message":
                    continue
                stored = {event.seq for event in await events_of(db, session)}
                lines = decode_lines(frame["data"])
                seen += [line.seq for line in lines if line.seq is not None]
                assert set(seen) <= stored
                if b'"state_changed"' in frame["data"]:
                    assert (await sessions.get(db, ME, session)).view["state"] == {"said": "hello"}
                    assert (await task_of(db, task)).status == "completed"
                if b'"task_completed"' in frame["data"]:
                    break
    assert seen == list(range(2, len(seen) + 2))
