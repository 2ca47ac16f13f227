"""The store through pgbouncer in transaction mode."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import text

from shared.errors import StoreUnavailable
from shared.migrate import migrate
from shared.records import NewAction, NewEvent, Step
from shared.settings import load_settings
from shared.store import actions, leases, sessions, sweeps
from shared.store.database import Database
from shared.store.exchange import kept
from tests.pgbouncer import PgBouncer
from tests.shared.invariants import broken
from tests.shared.sessions import LEASE, ME, claimed, finish, new_session, say
from tests.shared.test_memories import built_behind_a_backup
from tests.waiting import PATIENCE, until, within
from tests.wire import Wire

LIMITS = text(
    """
    select current_setting('idle_in_transaction_session_timeout'), current_setting('lock_timeout'),
        current_setting('statement_timeout')
    """
)


@pytest.fixture
async def pooled(
    postgres_url: str, pgbouncer: PgBouncer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Database]:
    """A pool of many connections, which share four."""
    monkeypatch.setenv("DATABASE_URL", pgbouncer.url_of(postgres_url.rpartition("/")[2]))
    monkeypatch.setenv("FIRESIDE_DATABASE_POOLER", "transaction")
    database = Database.from_settings(load_settings())
    yield database
    await database.close()


async def test_a_transaction_has_its_limits_and_leaves_none_behind(pooled: Database) -> None:
    for _ in range(7):  # as often as the driver would prepare a statement
        async with pooled.transaction() as connection:
            assert (await connection.execute(LIMITS)).one() == ("3s", "5s", "10s")
        assert await pooled.row(LIMITS) == ("0", "0", "0")
        _, found = await pooled.together((text("select 1"), {}), (LIMITS, {}))
        assert found.first == ("3s", "5s", "10s")
        assert await pooled.row(LIMITS) == ("0", "0", "0")


ONE_MORE = kept("select :n + 1")


@pytest.mark.parametrize(("pooler", "prepared"), [("transaction", 0), ("transaction_prepared", 1)])
async def test_statements_are_prepared_for_a_pooler_that_keeps_them(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, pooler: str, prepared: int
) -> None:
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    monkeypatch.setenv("FIRESIDE_DATABASE_POOLER", pooler)
    monkeypatch.setenv("FIRESIDE_DATABASE_POOL", "2")
    database = Database.from_settings(load_settings())
    for n in range(2):
        assert await database.row(ONE_MORE, {"n": n}) == (n + 1,)
        assert await database.row(text("select :n + 9"), {"n": n}) == (n + 9,)
    count = text("select count(*) from pg_prepared_statements")
    assert await database.row(count) == (prepared,)
    _, found = await database.together((text("select 1"), {}), (LIMITS, {}))
    assert (found.first, await database.row(LIMITS)) == (("3s", "5s", "10s"), ("0", "0", "0"))
    await database.close()


async def backends(watcher: psycopg.AsyncConnection[Any], state: str) -> int:
    """How many other connections of this database are in a state."""
    cursor = await watcher.execute(
        "select count(*) from pg_stat_activity where state = %s and pid <> pg_backend_pid()"
        " and datname = current_database()",
        (state,),
    )
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def until_backends(watcher: psycopg.AsyncConnection[Any], state: str, wanted: int) -> None:
    async def are_there() -> bool:
        return await backends(watcher, state) == wanted

    await until(are_there)


async def test_a_transaction_that_is_left_idle_is_ended(
    pooled: Database, watcher: psycopg.AsyncConnection[Any]
) -> None:
    session = await new_session(pooled)

    async def hold() -> None:
        async with pooled.transaction() as connection:
            await connection.execute(text("set local idle_in_transaction_session_timeout = '50ms'"))
            await connection.execute(text("select from sessions for update"))
            await until_backends(watcher, "idle in transaction", 0)
            await connection.execute(text("select 1"))

    with pytest.raises(StoreUnavailable):
        await hold()
    await say(pooled, session)


async def test_a_task_from_its_acceptance_to_its_end(pooled: Database) -> None:
    async def play(number: int) -> None:
        session = await new_session(pooled, started=True)
        for _ in range(3):
            await say(pooled, session)
            claim = await claimed(pooled, session)
            event = [NewEvent("turn_start", {"no": number})]
            step = Step(0, "model", "m", "pure", "hash", "done", {"no": number})
            await leases.write(pooled, claim, event, [step], lease_seconds=LEASE)
            pulse = await leases.heartbeat(pooled, [claim.fence], lease_seconds=LEASE)
            assert pulse.held == {session}
            await leases.release(pooled, claim.fence)
            again = await claimed(pooled, session)
            assert [one.output for one in again.steps] == [{"no": number}]
            await finish(pooled, again)
        assert (await sessions.get(pooled, ME, session)).status == "idle"

    await asyncio.gather(*(play(number) for number in range(30)))

    assert await broken(pooled) == []


async def test_an_action_that_comes_many_times_at_once_is_one(pooled: Database) -> None:
    session = await new_session(pooled, started=True)
    action = NewAction({"type": "say", "text": "hi"}, client_action_id="one")
    accepted = await asyncio.gather(
        *(actions.accept(pooled, ME, session, action) for _ in range(40))
    )

    assert len({one.task_id for one in accepted}) == 1
    assert sum(one.fresh for one in accepted) == 1


async def test_one_of_many_sweeps_at_a_time(pooled: Database) -> None:
    waiting = {await new_session(pooled) for _ in range(20)}
    # After so many hints the next one is due half a minute later, and not in the next second.
    due = "update sessions set hints = 5, hint_at = clock_timestamp() - interval '1 s'"
    await pooled.run(text(due))

    swept = await asyncio.gather(*(sweeps.sweep(pooled, limit=5) for _ in range(10)))
    while more := await sweeps.sweep(pooled):
        swept.append(more)

    found = [one for part in swept for one in part]
    assert (len(found), set(found)) == (20, waiting)


async def test_a_cancelled_caller_leaves_the_pooler_whole(
    pooled: Database, watcher: psycopg.AsyncConnection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where Postgres does not stop it in time the line is cut, and the statement sleeps on.
    monkeypatch.setattr("shared.store.connection.STOP_SECONDS", PATIENCE)
    for _ in range(6):  # more than the pooler has connections
        task = asyncio.create_task(pooled.row(text("select pg_sleep(60)")))
        await until_backends(watcher, "active", 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_backends(watcher, "active", 0)

    assert await within(pooled.row(text("select 1"))) == (1,)


async def test_a_pooler_that_was_restarted(pooled: Database, pgbouncer: PgBouncer) -> None:
    assert await pooled.row(text("select 1")) == (1,)
    await asyncio.to_thread(pgbouncer.restart)

    with pytest.raises(StoreUnavailable):
        await pooled.row(text("select 1"))
    assert await pooled.row(text("select 1")) == (1,)


async def test_the_schema_is_brought_up_to_date(
    postgres_url: str, pgbouncer: PgBouncer, pooled: Database
) -> None:
    url = pgbouncer.url_of(postgres_url.rpartition("/")[2])
    for _ in range(6):
        await asyncio.to_thread(migrate, url)


async def test_a_graph_that_waits_long_leaves_nothing_behind(
    pooled: Database, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await built_behind_a_backup(pooled, postgres_url, 9, monkeypatch)

    left = await asyncio.gather(*(pooled.row(LIMITS) for _ in range(30)))
    assert left == [("0", "0", "0")] * 30
    await pooled.run(text("drop index memories_near_9"))


async def test_times_are_in_utc_whatever_the_server_writes(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = postgres_url.rpartition("/")[2]
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as admin:
        await admin.execute(f"alter database {name} set timezone = 'Asia/Kolkata'")
        monkeypatch.setenv("DATABASE_URL", postgres_url)
        for pooler in ("transaction", "none"):
            monkeypatch.setenv("FIRESIDE_DATABASE_POOLER", pooler)
            db = Database.from_settings(load_settings())
            row = await db.row(text("select timestamptz '2026-01-02T03:04:05Z'"))
            await db.close()
            assert row is not None
            assert row[0].isoformat() == "2026-01-02T03:04:05+00:00"
        await admin.execute(f"alter database {name} reset timezone")


@pytest.mark.parametrize("pooler", ["none", "transaction"])
async def test_the_limits_cost_no_round_trip(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, pooler: str
) -> None:
    async with Wire(postgres_url) as wire:
        monkeypatch.setenv("DATABASE_URL", wire.url)
        monkeypatch.setenv("FIRESIDE_DATABASE_POOLER", pooler)
        db = Database.from_settings(load_settings())
        await db.row(text("select 1"))
        before = wire.round_trips
        await db.row(text("select 1"))
        single = wire.round_trips
        async with db.transaction() as connection:
            await connection.execute(text("select 1"))
        after = wire.round_trips
        session = await new_session(db)
        created = wire.round_trips
        await claimed(db, session)
        claimed_at = wire.round_trips
        await db.close()

    assert (single - before, after - single, claimed_at - created) == (1, 3, 1)
