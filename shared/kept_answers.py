"""Answers of models that Redis keeps by the hash of their request, and whose words they answer.

A hash says nothing of a request, but what was answered may. So each user has a list of the hashes
of their own requests, by which an erasure finds the answers; it is noted before an answer is kept
or used, and outlives it. Nothing here is needed: whatever is wrong with Redis, nothing was kept.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from shared.encoding import JsonObject, dumps, loads
from shared.store.traces import owner_of

log = structlog.get_logger(__name__)

LONGEST_SECONDS = 604_800
"""No answer is kept for longer, whatever an operator sets. A user's list is kept for this long
after it was last used."""

MOST_BYTES = 16_384
"""A longer answer is not kept, nor believed to be one of ours."""

PATIENCE_SECONDS = 0.25
"""How long a look or a note may take; a model call waits for both."""

AWAY_SECONDS = 2.0
"""How long Redis is left alone after it did not answer."""

_QUIET_SECONDS = 60.0
"""How often the log is told at the most: each call could else say the same."""

_SKEW_SECONDS = 60.0
"""By how much the clocks of two machines may differ: for so much longer a hash stays on a list."""

_AT_ONCE = 1_000

T = TypeVar("T")


class KeptAnswers:
    """The answers as one process reaches them; no method raises.

    Args:
        patience: seconds after which Redis is taken to be away.
    """

    def __init__(self, redis: Redis, *, patience: float = PATIENCE_SECONDS) -> None:
        self._redis = redis
        self._patience = patience
        self._away_until = 0.0
        self._quiet_until = 0.0

    async def get(self, user_id: str, key: str) -> JsonObject | None:
        """What was answered to this request, be it another user's; None where nothing is kept."""
        return await self._in_time(lambda: self._read(user_id, key))

    async def put(self, user_id: str, key: str, answer: JsonObject, seconds: int) -> None:
        """Keep what was answered to a user's request, if it is not too long."""
        value = dumps(answer)
        if len(value) <= MOST_BYTES:
            await self._in_time(lambda: self._write(user_id, key, value, seconds))

    async def _read(self, user_id: str, key: str) -> JsonObject | None:
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.getrange(_answer(key), 0, MOST_BYTES)
            pipe.ttl(_answer(key))
            value, left = await pipe.execute()
        if not value or len(value) > MOST_BYTES or left < 0:
            return None
        try:
            found = loads(value)
        except ValueError:
            return None
        if not isinstance(found, dict):
            return None
        await self._note(user_id, key, left)
        return found

    async def _write(self, user_id: str, key: str, value: bytes, seconds: int) -> None:
        seconds = min(seconds, LONGEST_SECONDS)
        await self._note(user_id, key, seconds)
        await self._redis.set(_answer(key), value, ex=seconds)

    async def _note(self, user_id: str, key: str, seconds: int) -> None:
        """Put a request on its user's list for so long, and take those off that have no answer any
        more."""
        now, name = time.time(), _list_of(owner_of(user_id))
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.zadd(name, {key: now + seconds})
            pipe.zremrangebyscore(name, "-inf", now - _SKEW_SECONDS)
            pipe.expire(name, LONGEST_SECONDS)
            await pipe.execute()

    async def _in_time(self, work: Callable[[], Awaitable[T]]) -> T | None:
        if time.monotonic() < self._away_until:
            return None
        try:
            async with asyncio.timeout(self._patience):
                return await work()
        except ResponseError as error:  # it is there: full, say, or the key is something else's
            self._complain(error)
        except (RedisError, OSError, TimeoutError) as error:
            self._away_until = time.monotonic() + AWAY_SECONDS
            self._complain(error)
        return None

    def _complain(self, error: Exception) -> None:
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + _QUIET_SECONDS
            reason = f"{type(error).__name__}: {error}"
            log.warning("answers of models are not kept", error=reason)


async def forget_answers(redis: Redis, owner: bytes) -> None:
    """Delete all answers to a user's requests, and the list; raises what redis-py raises.

    Args:
        owner: the user, as `owner_of` names one.
    """
    name = _list_of(owner)
    try:
        keys = cast("list[bytes]", await redis.zrange(name, 0, -1))
    except ResponseError:
        keys = []  # no list: then nothing was kept either
    for first in range(0, len(keys), _AT_ONCE):
        await redis.delete(*(_answer(key.decode()) for key in keys[first : first + _AT_ONCE]))
    await redis.delete(name)


def _answer(key: str) -> str:
    return f"fireside:answer:{key}"


def _list_of(owner: bytes) -> str:
    return f"fireside:answers-of:{owner.hex()}"
