"""How fast tasks end: workers count together in Redis, gateways ask. Losing it loses a guess."""

import asyncio
import time

from redis.asyncio import Redis
from redis.exceptions import RedisError

_SECONDS = 10
"""How long one counter counts; clocks of several machines need not agree better."""

_COUNTERS = 3
"""How many full counters are looked at, beside the one that counts now."""


_ASK_SECONDS = 1.0
"""How long a gateway waits for the figure: it counts what is open in the same round."""


def _key(counter: int) -> str:
    return f"fireside:ended:{counter}"


class Pace:
    """Counts the tasks that this process ends."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._ended = 0

    def ended(self) -> None:
        """Count one more; never waits."""
        self._ended += 1

    async def tell_for_ever(self, every: float = 1.0) -> None:
        """Tell once in a while, until cancelled; what can't be told is dropped."""
        while True:
            await asyncio.sleep(every)
            await self.tell()

    async def tell(self) -> None:
        """Add what was counted to everyone's."""
        counted, self._ended = self._ended, 0
        if not counted:
            return
        key = _key(int(time.time()) // _SECONDS)
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.incrby(key, counted)
                pipe.expire(key, _SECONDS * (_COUNTERS + 2))
                await pipe.execute()
        except (RedisError, OSError):
            return


async def ends_per_second(redis: Redis) -> float | None:
    """How many tasks ended per second lately, over all workers; None where Redis does not say
    so within a second."""
    now = time.time()
    current = int(now) // _SECONDS
    try:
        async with asyncio.timeout(_ASK_SECONDS):
            counts = await redis.mget([_key(current - back) for back in range(_COUNTERS + 1)])
        ended = sum(int(count) for count in counts if count is not None)
    except (RedisError, OSError, ValueError):
        return None
    return ended / (_COUNTERS * _SECONDS + now % _SECONDS)
