"""Hearing what is published on channels of Redis, which keeps none of it for who was not there."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.ending import goes_on
from shared.redis_pool import redis_said
from shared.trouble import Trouble

log = structlog.get_logger(__name__)

_AGAIN_SECONDS = 1.0
"""How long it waits before it listens again, after Redis was away."""


async def hear_for_ever(
    redis: Redis,
    handlers: Mapping[str, Callable[[Mapping[str, Any]], None]],
    *,
    unheard: str,
    hearing: asyncio.Event | None = None,
) -> None:
    """Give each message to its channel's handler, until cancelled.

    Args:
        unheard: what the log says where Redis is away.
        hearing: set while messages are heard.
    """
    hearing = hearing or asyncio.Event()
    trouble = Trouble(log, unheard)
    while goes_on():
        try:
            async with redis.pubsub() as pubsub:
                await pubsub.subscribe(**handlers)
                hearing.set()
                trouble.is_over()
                async for _ in pubsub.listen():
                    pass  # each message goes to its channel's handler
        except (RedisError, OSError) as error:
            trouble.goes_on(redis_said(error))
        finally:
            hearing.clear()
        await asyncio.sleep(_AGAIN_SECONDS)
