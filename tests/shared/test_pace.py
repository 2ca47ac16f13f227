"""How fast tasks end, told by several processes."""

import asyncio

import pytest
from redis.asyncio import Redis

from shared.ending import end_all
from shared.pace import Pace, ends_per_second
from shared.redis_pool import connect_redis
from shared.settings import load_settings
from tests.waiting import until


async def test_what_all_processes_ended_is_counted_together(redis: Redis) -> None:
    assert await ends_per_second(redis) == 0
    paces = [Pace(redis), Pace(redis)]
    for pace in paces:
        for _ in range(30):
            pace.ended()
    telling = [asyncio.create_task(pace.tell_for_ever(every=0.01)) for pace in paces]

    async def both_have_told() -> bool:
        return (await ends_per_second(redis) or 0) >= 60 / 40

    await until(both_have_told)
    await end_all(telling)

    assert (await ends_per_second(redis) or 0) <= 60 / 30
    for key in await redis.keys("fireside:ended:*"):
        assert 0 < await redis.ttl(key) <= 60


class Counting(Pace):
    """Counts how often it has tried to tell of one more."""

    tried = 0

    async def tell(self) -> None:
        self.ended()
        await super().tell()
        self.tried += 1


async def test_without_redis_nobody_knows(
    closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{closed_port}/0")
    away = connect_redis(load_settings())
    pace = Counting(away)
    telling = asyncio.create_task(pace.tell_for_ever(every=0.0))

    assert await ends_per_second(away) is None
    await until(lambda: pace.tried > 1 or telling.done())
    assert not telling.done()
    await end_all([telling])
    await away.aclose()


async def test_what_someone_else_wrote_there_is_not_believed(redis: Redis) -> None:
    pace = Pace(redis)
    pace.ended()
    telling = asyncio.create_task(pace.tell_for_ever(every=0.01))
    keys: list[bytes | str] = []

    async def has_told() -> bool:
        keys[:] = await redis.keys("fireside:ended:*")
        return bool(keys)

    await until(has_told)
    await end_all([telling])
    await redis.set(keys[0], "many")

    assert await ends_per_second(redis) is None
