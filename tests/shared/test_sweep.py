"""The sweep as it runs beside a gateway or a worker."""

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import text
from structlog.testing import capture_logs

from deploy.local.valkey import EmbeddedValkey
from shared import sweep
from shared.encoding import JsonObject, dumps, loads
from shared.ending import end_all
from shared.levels import LEVELS, key_of
from shared.queue import Hints, envelope, hint_of
from shared.redis_pool import connect_redis
from shared.settings import Settings, load_settings
from shared.store import sweeps
from shared.store.database import Database
from shared.store.locks import SWEEP_LOCK
from shared.sweep import sweep_for_ever
from tests.shared.sessions import MAKE_DUE, MAKE_DUE_ONCE, new_session
from tests.waiting import PATIENCE, until

LOST = "shared.sweep.LOST_SECONDS"


class Asking(Hints):
    """Counts the sweeps: each begins by asking whether the queue is empty."""

    asked = 0

    async def is_empty(self) -> bool:
        self.asked += 1
        return await super().is_empty()

    async def several_sweeps(self) -> None:
        """Let sweeps come by that must not be seen to do anything: three whole ones."""
        before = self.asked
        await until(lambda: self.asked > before + 4)


async def next_hint(redis: Redis, settings: Settings) -> UUID | None:
    taken: list[bytes] = []

    async def came() -> bool:
        if isinstance(one := await redis.rpop(settings.queue), bytes):
            taken.append(one)
        return bool(taken)

    await until(came)
    return hint_of(loads(taken[0]))


async def test_what_waits_is_hinted_again_and_again(
    db: Database, redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LOST, 3600)
    session = await new_session(db)
    hints = Asking(settings, redis)
    async with sweeping(db, hints, every=0.01):
        for _ in range(3):
            await db.run(MAKE_DUE_ONCE)
            assert await next_hint(redis, settings) == session
        await hints.several_sweeps()

    assert await redis.llen(settings.queue) == 0


async def test_a_queue_that_is_away_does_not_end_the_sweep(
    db: Database,
    redis: Redis,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    closed_port: int,
) -> None:
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{closed_port}/0")
    away = connect_redis(load_settings())
    session = await new_session(db)
    hints = Asking(settings, away)
    with capture_logs() as logs:
        async with sweeping(db, hints, every=0.01):
            await hints.several_sweeps()

    (told,) = logs
    assert told["event"] == "sweep failed"
    assert told["error"].startswith("Redis is not available: ")
    async with sweeping(db, Hints(settings, redis), every=0.01):
        await db.run(MAKE_DUE)
        assert await next_hint(redis, settings) == session
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

        _, pending = await asyncio.wait([sweeping], timeout=PATIENCE)
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


async def length(redis: Redis, settings: Settings) -> int:
    """How many messages those are."""
    async with redis.pipeline() as pipe:
        for level in range(LEVELS):
            pipe.llen(key_of(settings.queue, level))
        return sum(await pipe.execute())


async def counts(db: Database) -> list[tuple[int, bool, int]]:
    """How many sessions have had so many hints, and whether the next one is due later."""
    return sorted(tuple(row) for row in await db.rows(HINTS))


async def nobody_put_off(db: Database) -> None:
    """Between two sweeps the one session that waits is due again."""

    async def is_due() -> bool:
        return await counts(db) == [(0, False, 1)]

    await until(is_due)


async def test_a_redis_that_is_away_puts_nobody_off(
    db: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{closed_port}/0")
    away = connect_redis(load_settings())
    await new_session(db)
    await db.run(MAKE_DUE)
    hints = Asking(settings, away)
    async with sweeping(db, hints):
        await hints.several_sweeps()
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
            hints = Asking(settings, redis)
            async with sweeping(db, hints):
                await hints.several_sweeps()
                await nobody_put_off(db)
        assert "maxmemory" in logs[0]["error"]
    finally:
        await redis.config_set("maxmemory", 0)


async def test_a_hint_that_stands_in_the_queue_is_not_lost(
    db: Database, redis: Redis, settings: Settings
) -> None:
    await new_session(db)
    await db.run(MANY, {"count": 9})
    # The one that they are like must not become due meanwhile, and be hinted for that.
    await db.run(text("update sessions set hint_at = (select max(hint_at) from sessions)"))
    await redis.lpush(settings.queue, dumps(envelope(uuid4(), settings.queue)))
    hints = Asking(settings, redis)
    async with sweeping(db, hints):
        await hints.several_sweeps()

    assert await redis.llen(settings.queue) == 1
    assert await counts(db) == [(0, True, 1), (5, True, 9)]


async def test_a_hint_that_was_just_taken_from_the_queue_is_not_lost(
    db: Database, redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sweep.LOST_SECONDS == 2
    monkeypatch.setattr(LOST, 20)  # no machine stands still for so long
    session = await new_session(db)
    hints = Asking(settings, redis)
    async with sweeping(db, hints):
        for _ in range(2):
            await db.run(MAKE_DUE_ONCE)
            assert await next_hint(redis, settings) == session

        # Not at the sweep after the one that hinted it, but when it was sent too long ago.
        await hints.several_sweeps()
        assert await messages(redis, settings) == []
        await db.run(text("update sessions set hint_at = hint_at - interval '21 s'"))
        assert await next_hint(redis, settings) == session
        assert await counts(db) == [(1, True, 1)]


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
    hints = Asking(settings, redis)
    async with sweeping(db, hints):
        await hints.several_sweeps()

    assert await messages(redis, settings) == []
    assert (5, True, 9) in await counts(db)


def rows_read(plan: JsonObject) -> float:
    """How many rows all nodes of an explained plan have seen."""
    removed = sum(plan.get(f"Rows Removed by {by}Filter", 0) for by in ("", "Join "))
    here = plan["Actual Loops"] * (plan["Actual Rows"] + removed)
    return float(here + sum(rows_read(one) for one in plan.get("Plans", [])))


async def test_a_sweep_does_not_read_all_sessions_for_each_that_it_hints(db: Database) -> None:
    """Or else a backlog would take a minute to be hinted where statistics know nothing of it."""
    count, limit = 3_000, 200
    await new_session(db)
    await db.run(MANY, {"count": count - 1})
    await db.run(MAKE_DUE)
    await db.run(NOT_KNOWN)
    explain = f"/* plan */ explain (analyze, buffers off, format json) {sweeps._SWEEP.text}"
    asked = {"lock": SWEEP_LOCK, "limit": limit, "grace": 0.0}

    found = await db.row(text(explain), asked)

    assert found is not None
    # It may compare those that it hints with each other.
    assert rows_read(found[0][0]["Plan"]) < 20 * count + 2 * limit**2 < limit * count / 4


async def test_all_who_wait_are_hinted_soon_after_redis_came_back_empty(
    db: Database, redis: Redis, settings: Settings, valkey_server: EmbeddedValkey
) -> None:
    count = 2_500
    await new_session(db)
    await db.run(MANY, {"count": count - 1})
    await db.run(NOT_KNOWN)
    hints = Hints(settings, redis)

    async def nobody_waits_on() -> bool:
        return all(hinted_before < 5 for hinted_before, *_ in await counts(db))

    async def all_are_hinted() -> bool:
        with suppress(RedisError):
            if await length(redis, settings) >= count:
                return len(await hinted(redis, settings)) == count
        return False

    with capture_logs() as logs:
        async with AsyncExitStack() as fleet:
            await asyncio.to_thread(valkey_server.kill)
            try:
                for _ in range(2):  # as a fleet has it: each process sweeps every second
                    await fleet.enter_async_context(sweeping(db, hints, every=1.0))
                await until(lambda: [one["event"] for one in logs].count("sweep failed") > 1)
            finally:
                began = time.monotonic()
                await asyncio.to_thread(valkey_server.start)
            # Without being doubted their hints would be due 25 s after they were last put off.
            await until(nobody_waits_on)
            await until(all_are_hinted, 2 * PATIENCE)
        took = time.monotonic() - began

    print(f"{count} waiting sessions were hinted {took:.2f} s after Redis came back")
    # Again after 1 s, after 2 more, and so on.
    each = 1 + math.ceil(math.log2(1 + took))
    assert count <= await length(redis, settings) <= each * count
