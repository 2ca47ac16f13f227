"""The sweep as it runs beside a gateway or a worker."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import text
from structlog.testing import capture_logs

from deploy.local.ports import free_port
from deploy.local.valkey import EmbeddedValkey
from shared.encoding import dumps, loads
from shared.ending import end_all
from shared.levels import LEVELS, key_of
from shared.queue import Hints, envelope, hint_of
from shared.redis_pool import connect_redis
from shared.settings import Settings, load_settings
from shared.store.database import Database
from shared.sweep import sweep_for_ever
from tests.shared.sessions import new_session
from tests.waiting import until

MAKE_DUE = text("update sessions set hint_at = clock_timestamp() - interval '1 s'")


async def next_hint(redis: Redis, settings: Settings) -> UUID | None:
    taken: list[bytes] = []

    async def came() -> bool:
        if isinstance(one := await redis.rpop(settings.queue), bytes):
            taken.append(one)
        return bool(taken)

    await until(came)
    return hint_of(loads(taken[0]))


async def test_what_waits_is_hinted_again_and_again(
    db: Database, redis: Redis, settings: Settings
) -> None:
    session = await new_session(db)
    sweeping = asyncio.create_task(sweep_for_ever(db, Hints(settings, redis), every=0.01))

    for _ in range(3):
        await db.run(MAKE_DUE)
        assert await next_hint(redis, settings) == session

    await end_all([sweeping])
    assert await redis.llen(settings.queue) == 0


async def test_a_queue_that_is_away_does_not_end_the_sweep(
    db: Database, redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{free_port()}/0")
    away = connect_redis(load_settings())
    session = await new_session(db)
    with capture_logs() as logs:
        sweeping = asyncio.create_task(sweep_for_ever(db, Hints(settings, away), every=0.01))

        async def failed_again() -> bool:
            await db.run(MAKE_DUE)
            return len(logs) > 1

        await until(failed_again)
    await end_all([sweeping])

    assert {entry["event"] for entry in logs} == {"sweep failed"}
    back = asyncio.create_task(sweep_for_ever(db, Hints(settings, redis), every=0.01))
    await db.run(MAKE_DUE)
    assert await next_hint(redis, settings) == session
    await end_all([back])
    await away.aclose()


async def test_a_sweep_ends_whenever_it_is_cancelled(
    db: Database, redis: Redis, settings: Settings
) -> None:
    await new_session(db)
    hints = Hints(settings, redis)
    choice = random.Random(11)
    for _ in range(60):
        await db.run(MAKE_DUE)
        sweeping = asyncio.create_task(sweep_for_ever(db, hints, every=0.001))
        await asyncio.sleep(choice.random() * 0.006)

        sweeping.cancel()

        _, pending = await asyncio.wait([sweeping], timeout=5)
        assert pending == set()


MANY = text(
    """
    insert into sessions (user_id, agent, character_id, open_tasks, hints, hint_at)
    select user_id, agent, character_id, 1, 5, clock_timestamp() + interval '25 s'
    from sessions, generate_series(1, :count)
    """
)
"""Sessions like the one that is there, which were hinted in vain for minutes."""

NOT_KNOWN = text("update pg_class set reltuples = 0, relpages = 300 where relname = 'sessions'")
"""What a vacuum leaves behind that came by before those sessions were there: statistics of none."""

HINTS = text(
    "select hints, hint_at > clock_timestamp() as later, count(*) from sessions group by 1, 2"
)


@asynccontextmanager
async def sweeping(db: Database, hints: Hints, *, every: float = 0.05) -> AsyncIterator[None]:
    task = asyncio.create_task(sweep_for_ever(db, hints, every=every))
    try:
        yield
    finally:
        await end_all([task])


async def hinted(redis: Redis, settings: Settings) -> set[UUID | None]:
    """The sessions whose hints stand in the queue."""
    return {hint_of(loads(one)) for one in await messages(redis, settings)}


async def messages(redis: Redis, settings: Settings) -> list[bytes]:
    """All that waits in the queue, on whatever level."""
    keys = [key_of(settings.queue, level) for level in range(LEVELS)]
    async with redis.pipeline() as pipe:
        for key in keys:
            pipe.lrange(key, 0, -1)
        return [one for found in await pipe.execute() for one in found]


async def counts(db: Database) -> list[tuple[int, bool, int]]:
    """How many sessions have had so many hints, and whether the next one is due later."""
    return sorted(tuple(row) for row in await db.rows(HINTS))


async def nobody_put_off(db: Database) -> None:
    """Between two sweeps the one session that waits is due again."""

    async def is_due() -> bool:
        return await counts(db) == [(0, False, 1)]

    await until(is_due)


async def several_sweeps() -> None:
    """Give those sweeps their time that must not be seen to do anything."""
    await asyncio.sleep(0.5)


async def several_failed(logs: Sequence[object]) -> None:
    await until(lambda: len(logs) > 3)


async def test_a_redis_that_is_away_puts_nobody_off(
    db: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{free_port()}/0")
    away = connect_redis(load_settings())
    await new_session(db)
    await db.run(MAKE_DUE)
    with capture_logs() as logs:
        async with sweeping(db, Hints(settings, away)):
            await several_failed(logs)
            await nobody_put_off(db)
    await away.aclose()


async def test_a_redis_that_is_full_puts_nobody_off(
    db: Database, redis: Redis, settings: Settings
) -> None:
    await new_session(db)
    await db.run(MAKE_DUE)
    await redis.config_set("maxmemory", 1)
    try:
        with capture_logs() as logs:
            async with sweeping(db, Hints(settings, redis)):
                await several_failed(logs)
                await nobody_put_off(db)
        assert "maxmemory" in logs[0]["error"]
    finally:
        await redis.config_set("maxmemory", 0)


async def test_a_hint_that_stands_in_the_queue_is_not_lost(
    db: Database, redis: Redis, settings: Settings
) -> None:
    await new_session(db)
    await db.run(MANY, {"count": 9})
    await redis.lpush(settings.queue, dumps(envelope(uuid4(), settings.queue)))
    async with sweeping(db, Hints(settings, redis)):
        await several_sweeps()

    assert await redis.llen(settings.queue) == 1
    assert (5, True, 9) in await counts(db)


async def test_a_hint_that_was_just_taken_from_the_queue_is_not_lost(
    db: Database, redis: Redis, settings: Settings
) -> None:
    session = await new_session(db)
    async with sweeping(db, Hints(settings, redis)):
        for _ in range(2):
            began = time.monotonic()
            await db.run(text("update sessions set hint_at = clock_timestamp()"))
            assert await next_hint(redis, settings) == session

        # Not at the sweep after the one that hinted it, but when it is due.
        assert await next_hint(redis, settings) == session
        assert time.monotonic() - began > 1.9


@pytest.mark.parametrize(
    "put_off",
    ["quarantined = true", "ready_at = clock_timestamp() + interval '1 minute'"],
)
async def test_who_is_put_off_on_purpose_is_not_hinted(
    db: Database, redis: Redis, settings: Settings, put_off: str
) -> None:
    await new_session(db)
    await db.run(MANY, {"count": 9})
    await db.run(text(f"update sessions set {put_off}"))
    async with sweeping(db, Hints(settings, redis)):
        await several_sweeps()

    assert (5, True, 9) in await counts(db)


@pytest.mark.parametrize("count", [1_000, 10_000])
async def test_all_who_wait_are_hinted_soon_after_redis_came_back_empty(
    db: Database,
    redis: Redis,
    settings: Settings,
    valkey_server: EmbeddedValkey,
    count: int,
) -> None:
    await new_session(db)
    await db.run(MANY, {"count": count - 1})
    await db.run(NOT_KNOWN)
    hints = Hints(settings, redis)
    # As a fleet has it: each process sweeps every second.
    async with sweeping(db, hints, every=1.0), sweeping(db, hints, every=1.0):
        await asyncio.to_thread(valkey_server.kill)
        try:
            await asyncio.sleep(1.5)
        finally:
            await asyncio.to_thread(valkey_server.start)
        began = time.monotonic()

        async def all_are_hinted() -> bool:
            with suppress(RedisError):
                return len(await messages(redis, settings)) >= count
            return False

        # Without being doubted their hints would be due 25 s after they were last put off.
        await until(all_are_hinted, 20)
        took = time.monotonic() - began

    print(f"{count} waiting sessions were hinted {took:.2f} s after Redis came back")
    assert len(await hinted(redis, settings)) == count
    assert len(await messages(redis, settings)) < 2 * count
