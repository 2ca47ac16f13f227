"""Following sessions: one Redis subscription per process, however many listeners it has."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from shared.events import Line, channel, decode_lines

log = structlog.get_logger(__name__)

MAX_WAITING = 2_000
"""Lines that one listener may leave unread; beyond it the log is the quicker way to catch up."""

_CONFIRM_SECONDS = 2.0

_KEEP_ALIVE_CHANNEL = "fireside:gateways"


class Subscription:
    """One listener's share of a session's frames.

    `stale` is set where lines were lost, on a new connection to Redis or because the listener
    fell behind: it must read the log from its last `seq`. A listener that follows the numbers
    keeps `seen` at the last one it has dealt with, so that one which fell behind unnoticed can be
    found.
    """

    def __init__(self) -> None:
        self.seen: int | None = None
        self._lines: deque[Line] = deque()
        self._wake = asyncio.Event()
        self._stale = False

    def push(self, line: Line) -> None:
        """Give the listener a line; never waits."""
        if len(self._lines) >= MAX_WAITING:
            self.mark_stale()
            return
        self._lines.append(line)
        self._wake.set()

    def mark_stale(self) -> None:
        """Make the listener read the log."""
        self._lines.clear()
        self._stale = True
        self._wake.set()

    def take_stale(self) -> bool:
        """Whether the log must be read, once."""
        stale, self._stale = self._stale, False
        return stale

    def take(self) -> list[Line]:
        """All lines that have come, in order."""
        lines = list(self._lines)
        self._lines.clear()
        self._wake.clear()
        return lines

    async def wait(self, timeout: float) -> bool:
        """Wait for a line, or for `stale`; False after `timeout` seconds without either."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._wake.wait()
        return self._wake.is_set()


class Follower:
    """The process's one subscription; listeners come and go."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._pubsub: PubSub | None = None
        self._followed: dict[UUID, _Followed] = {}
        self._subscribed: set[UUID] = set()
        self._task: asyncio.Task[None] | None = None
        self._change = asyncio.Lock()

    async def start(self) -> None:
        """Begin to read; Redis may be away, it is tried again until it is back."""
        self._task = asyncio.create_task(self._read_for_ever(), name="follower")

    async def stop(self) -> None:
        """End reading and close the connection."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    @property
    def sessions(self) -> list[UUID]:
        """The sessions that have a listener."""
        return list(self._followed)

    def listeners(self, session_id: UUID) -> list[Subscription]:
        """Those who listen to a session now."""
        followed = self._followed.get(session_id)
        return list(followed.listeners) if followed else []

    def mark_stale(self, session_id: UUID) -> None:
        """Make a session's listeners read the log."""
        for subscription in self.listeners(session_id):
            subscription.mark_stale()

    async def mend(self) -> None:
        """Send again the commands that failed while redis-py itself got its connection back."""
        for session_id in self._subscribed ^ self._followed.keys():
            await self._bring_in_line(session_id)

    @asynccontextmanager
    async def follow(self, session_id: UUID) -> AsyncIterator[Subscription]:
        """Listen to a session; the subscription stands before the block begins.

        With Redis away the block begins all the same, after two seconds; the listener is told to
        read the log once the connection is back.
        """
        subscription = Subscription()
        followed = self._followed.setdefault(session_id, _Followed())
        followed.listeners.add(subscription)
        try:
            await self._bring_in_line(session_id)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CONFIRM_SECONDS):
                    await followed.stands.wait()
            # The listener reads the log after this anyway; only what is lost from now on counts.
            subscription.take_stale()
            yield subscription
        finally:
            followed.listeners.discard(subscription)
            if not followed.listeners and self._followed.get(session_id) is followed:
                del self._followed[session_id]
                await self._bring_in_line(session_id)

    async def _bring_in_line(self, session_id: UUID) -> None:
        """Subscribe or unsubscribe, whichever the listeners that there are now ask for.

        Under a lock, for the last listener may go while a new one comes: what counts is what is
        wanted when the command is sent. What is subscribed is our own account: redis-py's list of
        channels keeps a name until Redis has confirmed that it is gone.
        """
        async with self._change:
            pubsub = self._pubsub
            if pubsub is None:
                return  # the reader subscribes to all when it connects
            name = channel(session_id).encode()
            wanted = session_id in self._followed
            if wanted == (session_id in self._subscribed):
                return
            with contextlib.suppress(RedisError, OSError):
                await (pubsub.subscribe(name) if wanted else pubsub.unsubscribe(name))
                self._subscribed ^= {session_id}

    async def _read_for_ever(self) -> None:
        pause = 0.05
        while True:
            pubsub = self._redis.pubsub()
            try:
                async with self._change:
                    self._subscribed = set(self._followed)
                    names = [channel(session_id) for session_id in self._subscribed]
                    await pubsub.subscribe(_KEEP_ALIVE_CHANNEL, *names)
                    self._pubsub = pubsub
                async for message in pubsub.listen():
                    pause = 0.05
                    self._receive(message)
            except (RedisError, OSError) as error:
                log.warning("subscription lost", error=str(error), retry_in=pause)
            finally:
                self._pubsub = None
                with contextlib.suppress(RedisError, OSError):
                    await pubsub.aclose()  # type: ignore[no-untyped-call]
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)

    def _receive(self, message: dict[str, Any]) -> None:
        session_id = _session_of(message["channel"])
        followed = self._followed.get(session_id) if session_id else None
        if followed is None:
            return
        if message["type"] == "message":
            for line in decode_lines(message["data"]):
                for subscription in followed.listeners:
                    subscription.push(line)
        elif message["type"] == "subscribe":
            # A late or a second confirmation means that lines were lost before it. The first one,
            # in time, finds listeners that have not begun; they put the mark away themselves.
            for subscription in followed.listeners:
                subscription.mark_stale()
            followed.stands.set()


@dataclass(slots=True)
class _Followed:
    listeners: set[Subscription] = field(default_factory=set)
    stands: asyncio.Event = field(default_factory=asyncio.Event)


def _session_of(name: bytes) -> UUID | None:
    try:
        return UUID(name.decode().rpartition(":")[2])
    except ValueError:
        return None
