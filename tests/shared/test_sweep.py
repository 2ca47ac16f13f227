"""The sweep as it runs beside a gateway or a worker."""

import asyncio
import random
from contextlib import suppress
from uuid import UUID

import pytest
from redis.asyncio import Redis
from sqlalchemy import text
from structlog.testing import capture_logs

from deploy.local.ports import free_port
from shared.encoding import loads
from shared.queue import Hints, hint_of
from shared.redis_pool import connect_redis
from shared.settings import Settings, load_settings
from shared.store.database import Database
from shared.sweep import sweep_for_ever
from tests.shared.sessions import new_session

MAKE_DUE = text("update sessions set hint_at = clock_timestamp() - interval '1 s'")


async def next_hint(redis: Redis, settings: Settings) -> UUID | None:
    popped = await redis.brpop([settings.queue], timeout=4)
    assert popped is not None
    return hint_of(loads(popped[1]))


async def test_what_waits_is_hinted_again_and_again(
    db: Database, redis: Redis, settings: Settings
) -> None:
    session = await new_session(db)
    sweeping = asyncio.create_task(sweep_for_ever(db, Hints(settings, redis), every=0.01))

    for _ in range(3):
        await db.run(MAKE_DUE)
        assert await next_hint(redis, settings) == session

    sweeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sweeping
    assert await redis.llen(settings.queue) == 0


async def test_a_queue_that_is_away_does_not_end_the_sweep(
    db: Database, redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{free_port()}/0")
    away = connect_redis(load_settings())
    session = await new_session(db)
    with capture_logs() as logs:
        sweeping = asyncio.create_task(sweep_for_ever(db, Hints(settings, away), every=0.01))
        for _ in range(500):
            await db.run(MAKE_DUE)
            if len(logs) > 1:
                break
            await asyncio.sleep(0.01)
    sweeping.cancel()
    with suppress(asyncio.CancelledError):
        await sweeping

    assert {entry["event"] for entry in logs} == {"sweep failed"}
    back = asyncio.create_task(sweep_for_ever(db, Hints(settings, redis), every=0.01))
    await db.run(MAKE_DUE)
    assert await next_hint(redis, settings) == session
    back.cancel()
    with suppress(asyncio.CancelledError):
        await back
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
