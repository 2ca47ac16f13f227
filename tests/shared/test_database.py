"""The pool: what becomes of errors, of cancelled callers, and of connections."""

import asyncio
import gc
import os
import random
import stat
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, ProgrammingError
from sqlalchemy.pool import QueuePool

from deploy.local.postgres import EmbeddedPostgres
from shared.budgets import main as list_budgets
from shared.errors import InvalidRequest, StoreUnavailable
from shared.records import NewAction
from shared.schema import head_revision
from shared.settings import get_settings, load_settings
from shared.store import actions, api_keys, claims, leases
from shared.store.connection import _ON_CONNECT
from shared.store.database import Database
from shared.store.exchange import kept
from tests.ports import promised_port
from tests.shared.invariants import broken
from tests.shared.locks import lock_waiters
from tests.shared.sessions import new_session
from tests.waiting import PATIENCE, until

ONE = text("select 1")


async def busy(watcher: psycopg.AsyncConnection[Any]) -> int:
    """Connections of the pool that run a statement or have a transaction open."""
    cursor = await watcher.execute(
        """
        select count(*) from pg_stat_activity
        where datname = current_database() and backend_type = 'client backend'
            and pid <> pg_backend_pid() and state <> 'idle'
        """
    )
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


def checked_out(db: Database) -> int:
    pool = db._lending.engine.sync_engine.pool
    assert isinstance(pool, QueuePool)
    return pool.checkedout() - len(db._lending._at_hand)


async def nothing_left(db: Database, watcher: psycopg.AsyncConnection[Any]) -> None:
    """The pool is whole and no transaction is open."""

    async def quiet() -> bool:
        return await busy(watcher) == 0

    await until(quiet)
    await until(lambda: checked_out(db) == 0)
    assert db._lending._open == len(db._lending._at_hand)


SETTINGS = text(
    """
    select current_setting('timezone'), current_setting('idle_in_transaction_session_timeout'),
        current_setting('lock_timeout'), current_setting('statement_timeout'),
        current_setting('jit')
    """
)


async def test_each_connection_has_its_limits(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "shared.store.connection._ON_CONNECT", _ON_CONNECT
    )  # not the tests' wide ones
    expected = ("UTC", "3s", "5s", "10s", "off")

    assert await db.row(SETTINGS) == expected
    async with db.transaction() as connection:
        assert (await connection.execute(SETTINGS)).one() == expected
    with pytest.raises(IntegrityError):
        async with db.transaction() as connection:
            await connection.execute(text("insert into souls select gen_random_uuid(), 1, ''"))
    assert await db.row(SETTINGS) == expected


async def test_rows_row_run(db: Database) -> None:
    numbers = text("select * from generate_series(1, :n) as x(number)")

    assert [row.number for row in await db.rows(numbers, {"n": 3})] == [1, 2, 3]
    assert await db.row(numbers, {"n": 3}) == (1,)
    assert await db.row(numbers, {"n": 0}) is None
    insert = text("insert into stories select :h || x, '', '' from generate_series(1, 4) x")
    assert await db.run(insert, {"h": "h"}) == 4


async def test_a_transaction_holds_together(db: Database) -> None:
    insert = text("insert into stories (hash, name, compiled) values (:hash, '', '')")
    hashes = text("select hash from stories order by 1")

    async with db.transaction() as connection:
        await connection.execute(insert, {"hash": "a"})
        await connection.execute(insert, {"hash": "b"})
        assert await db.rows(hashes) == []

    async def fail() -> None:
        async with db.transaction() as connection:
            await connection.execute(insert, {"hash": "c"})
            raise KeyError

    with pytest.raises(KeyError):
        await fail()

    assert await db.rows(hashes) == [("a",), ("b",)]


INSERT = text("insert into stories (hash, name, compiled) values (:hash, '', '')")
HASHES = text("select hash from stories order by 1")


async def test_what_is_sent_together_holds_together(db: Database) -> None:
    first, found, both = await db.together(
        (INSERT, {"hash": "a"}), (HASHES, {}), (text("select :n + 1 as a, 2 as a"), {"n": 1})
    )
    assert (first.rows, first.touched, first.first) == ((), 1, None)
    assert (list(found.rows), both.rows[0]) == ([("a",)], (2, 2))

    with pytest.raises(IntegrityError):
        await db.together((INSERT, {"hash": "b"}), (INSERT, {"hash": "a"}), (HASHES, {}))
    with pytest.raises(InvalidRequest):
        await db.together((INSERT, {"hash": "b"}), (INSERT, {"hash": "\0"}))

    assert await db.rows(HASHES) == [("a",)]
    assert checked_out(db) == 0


async def test_each_statement_sees_what_was_committed_before_it(
    db: Database, watcher: psycopg.AsyncConnection[Any]
) -> None:
    await db.run(INSERT, {"hash": "a"})
    lock = text("select from stories where hash = 'a' for update")
    async with watcher.transaction():
        await watcher.execute("update stories set name = 'new' where hash = 'a'")
        running = asyncio.create_task(
            db.together((lock, {}), (text("select name from stories"), {}))
        )
        await lock_waiters(watcher)

    assert (await running)[1].first == ("new",)


ONE_MORE, TWO_MORE = kept("select :n + 1"), kept("select :n + 2")
DIVIDED = kept("select 2 / :n")
KEPT_DIVISIONS = text("select count(*) from pg_prepared_statements where statement like '%/ $1'")
PREPARED = text(
    """
    select statement, generic_plans, custom_plans from pg_prepared_statements
    where statement like 'select $1 +%' order by 1
    """
)
PLANNED = text("select current_setting('plan_cache_mode'), current_setting('enable_seqscan')")


async def test_what_runs_all_the_time_is_kept_with_its_plan(small: Database) -> None:
    for n in range(2):
        both = await small.together((ONE_MORE, {"n": n}), (TWO_MORE, {"n": n}))
        assert [answer.first for answer in both] == [(n + 1,), (n + 2,)]
    # Nothing makes Postgres forget them: neither a failure beside them nor what is rolled back.
    with pytest.raises(InvalidRequest):
        await small.together((ONE_MORE, {"n": 1}), (text("select 1 / :n"), {"n": 0}))
    with pytest.raises(IntegrityError):
        async with small.transaction() as connection:
            await connection.execute(text("insert into souls select gen_random_uuid(), 1, ''"))
    assert await small.row(ONE_MORE, {"n": 7}) == (8,)

    kept_ones = [tuple(row) for row in await small.rows(PREPARED)]
    assert kept_ones == [("select $1 + 1", 3, 1), ("select $1 + 2", 2, 0)]


async def test_what_is_refused_at_its_first_use_is_kept_once(small: Database) -> None:
    """A Postgres that refuses writes goes on refusing, and what it keeps takes room."""
    for _ in range(3):
        with pytest.raises(InvalidRequest):
            await small.together((ONE_MORE, {"n": 1}), (DIVIDED, {"n": 0}), (TWO_MORE, {"n": 1}))
    assert await small.row(DIVIDED, {"n": 2}) == (1,)

    names = [row[0] for row in await small.rows(PREPARED)]
    assert names == ["select $1 + 1"]  # what came behind the one that failed was not looked at
    assert await small.row(KEPT_DIVISIONS) == (1,)


async def test_all_else_is_planned_for_the_values_that_it_is_given(small: Database) -> None:
    for n in range(7):
        assert await small.row(text("select :n + 3"), {"n": n}) == (n + 3,)
    assert await small.rows(PREPARED) == []
    assert await small.row(PLANNED) == ("auto", "on")
    async with small.transaction() as connection:
        assert (await connection.execute(PLANNED)).one() == ("auto", "on")


async def test_a_parameter_without_a_value(db: Database) -> None:
    with pytest.raises(KeyError, match="hash"):
        await db.run(INSERT)

    assert checked_out(db) == 0


async def test_a_url_with_an_encoding_that_the_driver_does_not_know(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", f"{postgres_url}?client_encoding=EUC_TW")
    db = Database.from_settings(load_settings())

    with pytest.raises(StoreUnavailable, match="not available: codec not available"):
        await db.run(ONE)
    await db.close()


async def test_a_user_without_rights_to_a_table(
    db: Database, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await db.run(text("create role lodger login password 'lodger'"))
    place = postgres_url.rpartition("@")[2]
    monkeypatch.setenv("DATABASE_URL", f"postgresql://lodger:lodger@{place}")
    lodgers = Database.from_settings(load_settings())

    with pytest.raises(StoreUnavailable, match="permission denied for table sessions"):
        await lodgers.row(text("select 1 from sessions"))

    await lodgers.close()
    await db.run(text("drop role lodger"))


async def test_a_command_over_a_schema_that_is_missing_says_what_to_do(
    postgres_server: EmbeddedPostgres,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DATABASE_URL", postgres_server.create_database("bare"))
    get_settings.cache_clear()
    try:
        code = await asyncio.to_thread(list_budgets, ["list"])
    finally:
        get_settings.cache_clear()

    assert (code, capsys.readouterr().err) == (
        1,
        f"fireside: the database's schema is missing, this release needs {head_revision()}: "
        "run python -m shared.migrate\n",
    )


async def test_a_row_has_its_columns_for_attributes(db: Database) -> None:
    row = await db.row(text(r"select 1 as one, '{\:a}'\:\:text[] as more, '12:30' as at"))

    assert row == (1, [":a"], "12:30")
    assert (row.one, row.more, row.at) == (1, [":a"], "12:30")
    assert row._asdict() == {"one": 1, "more": [":a"], "at": "12:30"}


async def test_a_database_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql://me:hunter2@127.0.0.1:{promised_port()}/none")
    db = Database.from_settings(load_settings())

    for attempt in (db.rows, db.row, db.run):
        with pytest.raises(StoreUnavailable, match="refused") as caught:
            await attempt(ONE)
        assert "\n" not in str(caught.value)
        assert "hunter2" not in str(caught.value)
    with pytest.raises(StoreUnavailable):
        async with db.transaction():
            pass
    await db.close()


@pytest.fixture
async def small(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    """A pool of two connections, for which callers wait long."""
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    monkeypatch.setenv("FIRESIDE_DATABASE_POOL", "2")
    database = Database.from_settings(load_settings(), wait_seconds=PATIENCE)
    yield database
    await database.close()


async def test_a_pool_that_is_exhausted(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    monkeypatch.setenv("FIRESIDE_DATABASE_POOL", "2")
    small = Database.from_settings(load_settings(), wait_seconds=0.1)

    async with small.transaction(), small.transaction():
        with pytest.raises(StoreUnavailable, match="no connection to Postgres became free in time"):
            await small.row(ONE)
        with pytest.raises(StoreUnavailable, match="no connection to Postgres became free in time"):
            async with small.transaction():
                pass

    assert await small.row(ONE) == (1,)
    await small.close()


async def test_whoever_waits_gets_the_next_that_comes_back(small: Database) -> None:
    async with small.transaction():
        async with small.transaction():
            waiting = asyncio.create_task(small.row(ONE))
            await asyncio.sleep(0)

        assert await waiting == (1,)


async def test_a_restart_of_postgres(db: Database, postgres_server: EmbeddedPostgres) -> None:
    async with db.transaction(), db.transaction(), db.transaction():
        pass  # three connections, none of which will be of use

    await asyncio.to_thread(postgres_server.restart)

    with pytest.raises(StoreUnavailable):
        await db.row(ONE)
    for _ in range(4):
        assert await db.row(ONE) == (1,)


async def test_a_connection_that_is_ended(
    db: Database, watcher: psycopg.AsyncConnection[Any]
) -> None:
    async def be_ended() -> None:
        async with db.transaction() as connection:
            pid = (await connection.execute(text("select pg_backend_pid()"))).scalar()
            await watcher.execute("select pg_terminate_backend(%s, 30000)", (pid,))
            await connection.execute(ONE)

    with pytest.raises(StoreUnavailable):
        await be_ended()

    assert await db.row(ONE) == (1,)
    assert checked_out(db) == 0


@pytest.mark.parametrize(
    "statement",
    [
        "set local lock_timeout = '10ms'; lock table stories",
        "set local statement_timeout = '10ms'; select pg_sleep(5)",
        "do $$ begin raise exception using errcode = '40P01'; end $$",
        "do $$ begin raise exception using errcode = '40001'; end $$",
        "do $$ begin raise exception using errcode = '53300'; end $$",
        "do $$ begin raise exception using errcode = '57P01'; end $$",
        "do $$ begin raise exception using errcode = '58030'; end $$",
        "set transaction read only; delete from stories",
    ],
)
async def test_what_may_well_succeed_later(
    db: Database, watcher: psycopg.AsyncConnection[Any], statement: str
) -> None:
    async def run() -> None:
        async with db.transaction() as connection:
            await connection.execute(text(statement))

    async with watcher.transaction():
        await watcher.execute("lock table stories in access share mode")
        with pytest.raises(StoreUnavailable):
            await run()


@pytest.mark.parametrize("statement", ["select no_such_column", "selec 1", "select from nowhere"])
async def test_a_wrong_statement_is_no_matter_of_time(db: Database, statement: str) -> None:
    with pytest.raises(ProgrammingError):
        await db.row(text(statement))


async def test_an_error_does_not_quote_what_users_wrote(db: Database) -> None:
    with pytest.raises(ProgrammingError) as caught:
        await db.row(text("select :told + 1 from nowhere"), {"told": "a secret"})

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("value", ["a\0b", "a\ud800b"])
async def test_text_that_postgres_can_not_hold(db: Database, value: str) -> None:
    with pytest.raises(InvalidRequest):
        await api_keys.create(db, value)
    with pytest.raises(InvalidRequest):
        await actions.accept(
            db, "me", await new_session(db), NewAction({"type": "say"}, client_action_id=value)
        )


async def test_a_number_that_is_out_of_range(db: Database) -> None:
    with pytest.raises(InvalidRequest, match=r"^a value can't be stored$"):
        await db.row(text("select cast(:n as int)"), {"n": 2**40})


def sockets() -> set[int]:
    """The sockets that this process has open, by inode."""
    found = set()
    for number in range(512):
        with suppress(OSError):
            status = os.fstat(number)
            if stat.S_ISSOCK(status.st_mode):
                found.add(status.st_ino)
    return found


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelled_while_connecting(db: Database) -> None:
    gc.disable()
    try:
        for turns in range(30):
            before = sockets()
            task = asyncio.create_task(db.row(ONE))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():  # where turns take long Postgres has answered by then
                assert task.result() == (1,)
                await db.close()
            await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))
            await asyncio.sleep(0)
            assert sockets() - before == set()
    finally:
        gc.enable()


async def test_cancelled_at_each_turn_of_the_loop(
    db: Database, watcher: psycopg.AsyncConnection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The driver gives way wherever it may, as it does when the loop is busy.
    monkeypatch.setattr("psycopg.waiting.MAX_BUSY_TIME", 0)

    async def transaction() -> None:
        async with db.transaction() as connection:
            await connection.execute(ONE)

    async def single() -> None:
        await db.row(ONE)

    gc.disable()
    try:
        for use in (transaction, single):
            for turns in range(40):
                await single()  # a connection is at hand: the last one was given up
                task = asyncio.create_task(use())
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                await nothing_left(db, watcher)
    finally:
        gc.enable()


async def test_cancelled_while_a_statement_runs(
    db: Database, watcher: psycopg.AsyncConnection[Any]
) -> None:
    task = asyncio.create_task(db.row(text("select pg_sleep(300)")))

    async def runs() -> bool:
        return await busy(watcher) == 1

    await until(runs)
    await cancelled(task)

    await nothing_left(db, watcher)
    assert await db.row(ONE) == (1,)


async def test_cancelled_while_waiting_for_a_session(
    db: Database, watcher: psycopg.AsyncConnection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where Postgres is slow to stop it the line is cut, and the claim is made by nobody.
    monkeypatch.setattr("shared.store.connection.STOP_SECONDS", PATIENCE)
    session = await new_session(db)
    async with watcher.transaction():
        await watcher.execute("select from sessions where id = %s for update", (session,))
        task = asyncio.create_task(
            claims.claim(db, session, lease_seconds=3, history=1), name="claim"
        )
        await lock_waiters(watcher)
        await cancelled(task)

    await nothing_left(db, watcher)
    claim = await claims.claim(db, session, lease_seconds=3, history=1)
    assert claim is not None
    assert claim.fence.epoch == 1


async def test_cancelled_between_two_statements(
    db: Database, watcher: psycopg.AsyncConnection[Any]
) -> None:
    session = await new_session(db)
    locked = asyncio.Event()

    async def hold() -> None:
        async with db.transaction() as connection:
            await connection.execute(text("select from sessions for update"))
            locked.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    await locked.wait()
    await cancelled(task)

    await nothing_left(db, watcher)
    assert await claims.claim(db, session, lease_seconds=3, history=1) is not None


async def test_cancelled_while_waiting_for_a_connection(small: Database) -> None:
    async with small.transaction(), small.transaction():
        waiting = [asyncio.create_task(small.row(ONE)) for _ in range(5)]
        await asyncio.sleep(0)
        for task in waiting[:4]:
            await cancelled(task)

    assert await waiting[4] == (1,)
    assert checked_out(small) == 0


async def test_cancelled_at_any_moment(db: Database, watcher: psycopg.AsyncConnection[Any]) -> None:
    session = await new_session(db)
    choice = random.Random(7)

    async def act(number: int) -> None:
        action = NewAction({"type": "say"}, client_action_id=f"{number % 40}")
        await actions.accept(db, "me", session, action)
        claim = await claims.claim(db, session, lease_seconds=3, history=5)
        if claim is not None:
            await leases.release(db, claim.fence)

    tasks = []
    for number in range(120):
        tasks.append(asyncio.create_task(act(number)))
        await asyncio.sleep(choice.random() * 0.002)
        choice.choice(tasks).cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)

    ended = [one for one in results if not isinstance(one, asyncio.CancelledError)]
    assert 0 < len(ended) < len(results)
    assert set(ended) == {None}
    await nothing_left(db, watcher)
    assert await broken(db) == []
