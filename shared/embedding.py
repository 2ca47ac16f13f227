"""Asking the embedding process for the vector of a text, by way of Redis.

A request is published, never kept: who hears of nobody that listens knows at once that the process
is away, and no words of a user stay in Redis. The answer comes on the asker's own channel.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.encoding import dumps, loads
from shared.hearing import hear_for_ever
from shared.store.recall import Vector

log = structlog.get_logger(__name__)

EMBED_CHANNEL = "fireside:embed"

ANSWER_SECONDS = 0.25
"""How long the vector of a cue is waited for. Without it the words alone find memories."""

AWAY_SECONDS = 5.0
"""For so long nobody is asked again after an answer that did not come."""

NOBODY_SECONDS = 1.0
"""For so long nobody is asked again where nobody listened: many servers have no such process."""

TEXT_CHARACTERS = 1_000


class Embeddings:
    """What one process asks for. `listen_for_ever` must run, or nothing is asked.

    Args:
        patience: seconds for which an answer is waited for.
    """

    def __init__(self, redis: Redis, *, patience: float = ANSWER_SECONDS) -> None:
        self._redis = redis
        self._patience = patience
        self._channel = f"{EMBED_CHANNEL}:{uuid4().hex}"
        self._waiting: dict[str, asyncio.Future[Vector]] = {}
        self._hearing = asyncio.Event()
        self._away_until = 0.0

    async def of(self, text: str) -> Vector | None:
        """The vector of a text; None where it can't be had in time. Never raises."""
        if not self._hearing.is_set() or time.monotonic() < self._away_until or not text.strip():
            return None
        key = uuid4().hex
        answer: asyncio.Future[Vector] = asyncio.get_running_loop().create_future()
        self._waiting[key] = answer
        request = {"id": key, "to": self._channel, "text": text[:TEXT_CHARACTERS]}
        try:
            async with asyncio.timeout(self._patience):
                if not await self._redis.publish(EMBED_CHANNEL, dumps(request)):
                    self._away_until = time.monotonic() + NOBODY_SECONDS
                    return None
                return await answer
        except (TimeoutError, RedisError, OSError) as error:
            self._away_until = time.monotonic() + AWAY_SECONDS
            log.warning("no vector of a cue", error=str(error) or "no answer in time")
            return None
        finally:
            del self._waiting[key]

    async def listen_for_ever(self) -> None:
        """Hear answers; a Redis that is away is tried again."""
        await hear_for_ever(
            self._redis,
            {self._channel: self._heard},
            unheard="vectors of cues are not heard",
            hearing=self._hearing,
        )

    def _heard(self, message: Mapping[str, Any]) -> None:
        """Take an answer. Anyone may publish, so it may be none."""
        try:
            data = loads(message["data"])
            vector = Vector(str(data["model"]), int(data["dimension"]), str(data["vector"]))
            waiting = self._waiting.get(data["id"])
        except (ValueError, TypeError, KeyError):
            return
        if waiting is not None and not waiting.done():
            waiting.set_result(vector)
