"""Following sessions: one Redis subscription per process, however many listeners it has."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID

import structlog
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from shared.events import Line, channel, decode_lines

log = structlog.get_logger(__name__)

MAX_WAITING = 2_000
"""Lines that one listener may leave unread; beyond it the log is the quicker way to catch up."""

_CONFIRM_SECONDS = 2.0
_CONNECT_SECONDS = 5.0
_STEADY_SECONDS = 10.0
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0


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
        self._begun = False

    def begin(self) -> None:
        """From here on the listener relies on being told of every loss."""
        self._begun = True

    def push(self, line: Line) -> None:
        """Give the listener a line; never waits."""
        if len(self._lines) >= MAX_WAITING:
            self.mark_stale()
            return
        self._lines.append(line)
        self._wake.set()

    def mark_stale(self) -> None:
        """Make the listener read the log; one that has not begun will read it anyway."""
        if self._begun:
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


@dataclass(slots=True)
class _Followed:
    listeners: set[Subscription] = field(default_factory=set)
    stands: asyncio.Event = field(default_factory=asyncio.Event)


class Follower:
    """The process's one subscription; listeners come and go.

    It has a connection to Redis of its own, on which one task reads and one writes. redis-py's
    PubSub would reconnect by itself, in whichever task sees the loss first, or in both at once.

    Args:
        ping_seconds: a quiet connection is asked this often whether it still stands; after three
            times as long without a word it is given up. A lost host closes nothing.
    """

    def __init__(self, redis: Redis, *, ping_seconds: float = 5.0) -> None:
        self._redis = redis
        self._ping_seconds = ping_seconds
        self._followed: dict[UUID, _Followed] = {}
        self._changed: set[UUID] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to read; Redis may be away, it is tried again until it is back."""
        self._task = asyncio.create_task(self._follow_for_ever(), name="follower")

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

    @asynccontextmanager
    async def follow(self, session_id: UUID) -> AsyncIterator[Subscription]:
        """Listen to a session; the subscription stands before the block begins.

        With Redis away the block begins all the same, after two seconds; the listener is told to
        read the log once the connection is back.
        """
        subscription = Subscription()
        followed = self._followed.get(session_id)
        if followed is None:
            followed = self._followed[session_id] = _Followed()
            self._bring_in_line(session_id)
        followed.listeners.add(subscription)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CONFIRM_SECONDS):
                    await followed.stands.wait()
            subscription.begin()
            yield subscription
        finally:
            followed.listeners.discard(subscription)
            if not followed.listeners:
                del self._followed[session_id]
                self._bring_in_line(session_id)

    def _bring_in_line(self, session_id: UUID) -> None:
        self._changed.add(session_id)
        self._wake.set()

    async def _follow_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        pause = _SHORTEST_PAUSE
        while True:
            began = loop.time()
            self._changed.clear()
            connection = self._new_connection()
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    await connection.connect()  # type: ignore[no-untyped-call]
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._write(connection))
                    tasks.create_task(self._read(connection))
            except* (RedisError, OSError) as lost:
                reasons = ", ".join(str(error) for error in lost.exceptions)
                log.warning("subscription lost", error=reasons, retry_in=pause)
            finally:
                await connection.disconnect(nowait=True)
            await asyncio.sleep(pause)
            lasted = loop.time() - began > _STEADY_SECONDS
            pause = _SHORTEST_PAUSE if lasted else min(pause * 2, _LONGEST_PAUSE)

    def _new_connection(self) -> AbstractConnection:
        """A connection of the client's kind, but one that never reconnects by itself.

        In protocol 2 a message is a plain list; in 3 redis-py formats each one for its own log.
        With a `socket_timeout` it would send by `wait_for`, which can swallow a cancellation
        before Python 3.12.
        """
        pool = self._redis.connection_pool
        options = pool.connection_kwargs | {
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "socket_timeout": None,
            "client_name": "fireside-follower",
        }
        return pool.connection_class(**options)

    async def _write(self, connection: AbstractConnection) -> None:
        """Subscribe to all that is followed, then to what comes, and ask when it is quiet.

        What counts is what is followed when the command is sent: the last listener may go while
        a new one comes. To subscribe twice is harmless, and gives the confirmation anew.
        """
        self._changed = set(self._followed)
        self._wake.set()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._ping_seconds):
                    await self._wake.wait()
            self._wake.clear()
            changed, self._changed = self._changed, set()
            come = [channel(one) for one in changed if one in self._followed]
            gone = [channel(one) for one in changed if one not in self._followed]
            if gone:
                await connection.send_command("UNSUBSCRIBE", *gone, check_health=False)
            if come:
                await connection.send_command("SUBSCRIBE", *come, check_health=False)
            if not changed:
                await connection.send_command("PING", check_health=False)

    async def _read(self, connection: AbstractConnection) -> None:
        while True:
            answer = await connection.read_response(
                timeout=3 * self._ping_seconds, disconnect_on_error=False
            )
            if answer is None:
                raise TimeoutError("Redis has not answered for long")
            self._receive(answer)

    def _receive(self, answer: object) -> None:
        match answer:
            case [kind, bytes(name), value] if followed := self._followed_by(name):
                pass
            case _:
                return  # an answer to PING, or of a session that nobody follows any more
        if kind == b"message" and isinstance(value, bytes):
            for line in decode_lines(value):
                for subscription in followed.listeners:
                    subscription.push(line)
        elif kind == b"subscribe":
            for subscription in followed.listeners:
                subscription.mark_stale()  # what was published before this moment may be lost
            followed.stands.set()

    def _followed_by(self, name: bytes) -> _Followed | None:
        try:
            return self._followed.get(UUID(name.decode().rpartition(":")[2]))
        except ValueError:
            return None
