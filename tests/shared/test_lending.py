"""How many connections are opened, for whom, and what becomes of those that wait for one."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import psycopg
import pytest
from sqlalchemy import text

from deploy.local.postgres import EmbeddedPostgres
from shared.errors import StoreUnavailable
from shared.settings import load_settings
from shared.store.database import Database
from shared.store.lending import FEW
from tests.waiting import until

ONE = text("select 1")
SLOW = text("select pg_sleep(0.5)")
EVER = text("select pg_sleep(9)")


Counted: TypeAlias = Callable[..., Awaitable[int]]


@pytest.fixture
async def connections(watcher: psycopg.AsyncConnection[Any]) -> Counted:
    """Tells how many of the pool's connections are open and in a state, as Postgres counts them.

    Those of the tests before may not all have ended there: a statement is stopped when Postgres
    comes to it.
    """
    here = "from pg_stat_activity where application_name = 'fireside'"
    before = [row[0] for row in await (await watcher.execute(f"select pid {here}")).fetchall()]

    async def counted(state: str = "%") -> int:
        cursor = await watcher.execute(
            f"select count(*) {here} and pid <> all(%s) and state like %s", (before, state)
        )
        row = await cursor.fetchone()
        assert row is not None
        return int(row[0])

    return counted


async def test_many_short_statements_share_a_few(
    db: Database, connections: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.store.lending.PATIENCE_SECONDS", 60)

    found = await asyncio.gather(*(db.row(ONE) for _ in range(100)))

    assert found == [(1,)] * 100
    assert await connections() == FEW


async def test_whoever_waits_for_slow_ones_gets_one_more(
    db: Database, connections: Counted
) -> None:
    slow = [asyncio.create_task(db.row(EVER)) for _ in range(2 * FEW)]
    await asyncio.sleep(0)

    assert await db.row(ONE) == (1,)

    async def all_run() -> bool:
        return await connections("active") == 2 * FEW

    await until(all_run)  # the last of them may have been opened at the same time as ours

    for task in slow:
        task.cancel()
    await asyncio.wait(slow)


async def test_no_more_than_the_settings_allow(
    postgres_url: str,
    connections: Counted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shared.store.lending.PATIENCE_SECONDS", 0)
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    monkeypatch.setenv("FIRESIDE_DATABASE_POOL", str(FEW + 2))
    async with Database.opened(load_settings()) as db:
        await asyncio.gather(*(db.row(SLOW) for _ in range(3 * FEW)))

        assert await connections() == FEW + 2


async def test_the_next_in_line_has_what_was_given_to_one_who_is_gone(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.store.lending.PATIENCE_SECONDS", 60)
    lending = db._lending
    lent = [await lending.take() for _ in range(FEW)]
    first, second = (asyncio.create_task(lending.take()) for _ in range(2))
    await asyncio.sleep(0)

    await lending.give_back(lent[0])
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first

    assert await second is lent[0]
    for one in lent:
        await lending.give_back(one)
    assert lending._open == len(lending._at_hand) == FEW


async def test_the_next_in_line_opens_one_for_one_that_broke(
    db: Database, connections: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.store.lending.PATIENCE_SECONDS", 60)
    slow = [asyncio.create_task(db.row(EVER)) for _ in range(FEW)]
    waiting = [asyncio.create_task(db.row(ONE)) for _ in range(3)]

    async def all_run() -> bool:
        return await connections("active") == FEW

    await until(all_run)
    slow[0].cancel()

    assert await asyncio.gather(*waiting) == [(1,)] * 3
    for task in slow:
        task.cancel()
    await asyncio.wait(slow)
    await until(lambda: db._lending._open == len(db._lending._at_hand))


async def test_all_in_line_hear_that_postgres_is_away(
    db: Database, postgres_server: EmbeddedPostgres
) -> None:
    await asyncio.gather(*(db.row(ONE) for _ in range(FEW)))
    await asyncio.to_thread(postgres_server.stop)
    try:
        found = await asyncio.gather(*(db.row(ONE) for _ in range(50)), return_exceptions=True)
    finally:
        await asyncio.to_thread(postgres_server.start)

    assert {type(one) for one in found} == {StoreUnavailable}
    assert await asyncio.gather(*(db.row(ONE) for _ in range(50))) == [(1,)] * 50


async def test_all_but_a_few_are_closed_when_they_are_not_needed_any_more(
    db: Database, connections: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.gather(*(db.row(SLOW) for _ in range(2 * FEW)))
    opened = await connections()
    assert opened > FEW

    monkeypatch.setattr("shared.store.lending.IDLE_SECONDS", 0)
    for _ in range(opened):
        assert await db.row(ONE) == (1,)

    async def a_few_are_left() -> bool:
        return await connections() == FEW

    await until(a_few_are_left)
    assert db._lending._open == len(db._lending._at_hand) == FEW
