"""A worker as the home of sessions: it says that it has room, and hears the hints for it."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID, uuid4

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.ending import ended_within
from shared.hearing import hear_for_ever
from shared.homes import ANNOUNCE_SECONDS, Homes, heard

log = structlog.get_logger(__name__)


class Home:
    """What one worker process is to the sessions that may be in its memory.

    Args:
        has_room: whether a hint that comes now would begin at once.
        begin: takes a session and its hint's level.

    `silent` is set where another worker has said nothing for too long: it may have swallowed hints.
    """

    def __init__(
        self,
        redis: Redis,
        queue: str,
        *,
        has_room: Callable[[], bool],
        begin: Callable[[UUID, int], None],
    ) -> None:
        self.worker = uuid4().hex
        self.silent = asyncio.Event()
        self._redis = redis
        self._homes = Homes(redis, queue)
        self._has_room = has_room
        self._begin = begin
        self._listens = asyncio.Event()
        self._announced = False

    async def announce_for_ever(self) -> None:
        """Say again and again that it is there, as long as it has room, until cancelled.

        Who computes or is frozen does not say it in time and is passed over.
        """
        while True:
            try:
                await self._announce()
            except (RedisError, OSError):
                self._announced = True  # who knows
            await asyncio.sleep(ANNOUNCE_SECONDS)

    async def _announce(self) -> None:
        if self._listens.is_set() and self._has_room():
            self._announced = True
            if await self._homes.announce(self.worker):
                log.warning("a worker is silent")
                self.silent.set()
        elif self._announced:
            await self._homes.leave(self.worker)
            self._announced = False

    async def leave(self, seconds: float) -> None:
        """Say that it goes, for so many seconds at the most; else it is forgotten soon.

        Only once it announces itself no more: what was under way could come after this.
        """
        leaving = await ended_within(seconds, self._homes.leave(self.worker))
        failure = TimeoutError() if leaving.cancelled() else leaving.exception()
        if failure is not None:
            log.warning("still announced for a second", error=repr(failure))

    async def hear_for_ever(self) -> None:
        """Begin what is hinted here, until cancelled."""
        await hear_for_ever(
            self._redis,
            {self._homes.channel(self.worker): self._hear},
            unheard="hints come over the common queue only",
            hearing=self._listens,
        )

    def _hear(self, message: Mapping[str, Any]) -> None:
        hint = heard(message["data"])
        if hint is None:
            log.warning("dropped a message that is no hint", channel="home")
        else:
            self._begin(*hint)
