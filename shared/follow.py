"""Following sessions: one Redis subscription per process, however many listeners it has."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import structlog
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from shared.events import KEYS_CHANNEL, Line, channel, decode_lines
from shared.redis_pool import redis_said
from shared.trouble import Trouble

log = structlog.get_logger(__name__)

MAX_WAITING = 2_000
"""Lines that one listener may leave unread; beyond it the log is the quicker way to catch up."""

MAX_WAITING_BYTES = 256 * 1024
"""Bytes of the same, beside one line that may be larger: a thousand listeners that read nothing
must not fill the memory."""

_KEYS_CHANNEL = KEYS_CHANNEL.encode()
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

    A process has thousands of them, mostly idle: nothing is made before it is needed.

    Args:
        on_news: called where lines or a loss come and nothing had been left untaken; must not
            raise. A listener that has one need not `wait`.
    """

    __slots__ = ("_begun", "_bytes", "_lines", "_news", "_on_news", "_stale", "_waiting", "seen")

    def __init__(self, on_news: Callable[[], None] | None = None) -> None:
        self.seen: int | None = None
        self._lines: list[Line] = []
        self._bytes = 0
        self._news = False
        self._on_news = on_news
        self._waiting: asyncio.Event | None = None
        self._stale = False
        self._begun = False

    def begin(self) -> None:
        """From here on the listener relies on being told of every loss."""
        self._begun = True

    def push(self, lines: Sequence[Line]) -> None:
        """Give the listener lines; never waits."""
        for line in lines:
            if len(self._lines) >= MAX_WAITING or self._bytes >= MAX_WAITING_BYTES:
                self.mark_stale()
                continue
            self._lines.append(line)
            self._bytes += len(line.frame)
        self._tell()

    def mark_stale(self) -> None:
        """Make the listener read the log; one that has not begun will read it anyway."""
        if self._begun:
            self._drop_lines()
            self._stale = True
            self._tell()

    @property
    def is_stale(self) -> bool:
        """Whether `take_stale` will say so."""
        return self._stale

    def take_stale(self) -> bool:
        """Whether the log must be read, once."""
        stale, self._stale = self._stale, False
        return stale

    def take(self) -> list[Line]:
        """All lines that have come, in order."""
        self._news = False
        return self._drop_lines()

    async def wait(self, timeout: float) -> bool:
        """Wait for a line, or for `stale`; False after `timeout` seconds without either."""
        if not self._news:
            self._waiting = asyncio.Event()
            try:
                async with asyncio.timeout(timeout):
                    await self._waiting.wait()
            except TimeoutError:
                pass
            finally:
                self._waiting = None
        return self._news

    def _drop_lines(self) -> list[Line]:
        lines, self._lines, self._bytes = self._lines, [], 0
        return lines

    def _tell(self) -> None:
        if self._news:
            return
        self._news = True
        if self._waiting is not None:
            self._waiting.set()
        if self._on_news is not None:
            self._on_news()


class _Followed:
    """Who listens to one session; `standing` is None once the subscription stands."""

    __slots__ = ("listeners", "standing")

    def __init__(self) -> None:
        self.listeners: list[Subscription] = []
        self.standing: asyncio.Event | None = asyncio.Event()

    def stands(self) -> None:
        """Let those who wait go on."""
        if self.standing is not None:
            self.standing.set()
            self.standing = None


class Follower:
    """The process's one subscription; listeners come and go.

    It has a connection to Redis of its own, on which one task reads and one writes. redis-py's
    PubSub would reconnect by itself, in whichever task sees the loss first, or in both at once.

    Args:
        ping_seconds: a quiet connection is asked this often whether it still stands; after three
            times as long without a word it is given up. A lost host closes nothing.
        on_keys_gone: called where API keys were deleted, and on each new connection, for they may
            have been while there was none; must not raise.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        ping_seconds: float = 5.0,
        on_keys_gone: Callable[[], None] | None = None,
    ) -> None:
        self._redis = redis
        self._ping_seconds = ping_seconds
        self._on_keys_gone = on_keys_gone
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
        subscription = self.add(session_id)
        try:
            await self.begin(session_id, subscription)
            yield subscription
        finally:
            self.remove(session_id, subscription)

    def add(self, session_id: UUID, on_news: Callable[[], None] | None = None) -> Subscription:
        """A new listener, to be begun and removed by who adds it: `follow` in its three parts."""
        followed = self._followed.get(session_id)
        if followed is None:
            followed = self._followed[session_id] = _Followed()
            self._bring_in_line(session_id)
        subscription = Subscription(on_news)
        followed.listeners.append(subscription)
        return subscription

    async def begin(self, session_id: UUID, subscription: Subscription) -> None:
        """Wait until the listener's subscription stands, for two seconds at the most."""
        standing = self._followed[session_id].standing
        if standing is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CONFIRM_SECONDS):
                    await standing.wait()
        subscription.begin()

    def remove(self, session_id: UUID, subscription: Subscription) -> None:
        """Let a listener go."""
        followed = self._followed[session_id]
        followed.listeners.remove(subscription)
        if not followed.listeners:
            del self._followed[session_id]
            self._bring_in_line(session_id)

    def _bring_in_line(self, session_id: UUID) -> None:
        self._changed.add(session_id)
        self._wake.set()

    async def _follow_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        pause = _SHORTEST_PAUSE
        trouble = Trouble(log, "subscription lost")
        while True:
            began = loop.time()
            self._changed.clear()
            connection = self._new_connection()
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    await connection.connect()  # type: ignore[no-untyped-call]
                trouble.is_over()
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._write(connection))
                    tasks.create_task(self._read(connection))
            except* (RedisError, OSError) as lost:
                trouble.goes_on(", ".join(redis_said(error) for error in lost.exceptions))
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
        if self._on_keys_gone is not None:
            await connection.send_command("SUBSCRIBE", KEYS_CHANNEL, check_health=False)
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
            case [b"message" | b"subscribe", bytes(name), _] if name == _KEYS_CHANNEL:
                if self._on_keys_gone is not None:
                    self._on_keys_gone()
                return
            case [kind, bytes(name), value] if followed := self._followed_by(name):
                pass
            case _:
                return  # an answer to PING, or of a session that nobody follows any more
        if kind == b"message" and isinstance(value, bytes):
            lines = decode_lines(value)
            for subscription in followed.listeners:
                subscription.push(lines)
        elif kind == b"subscribe":
            for subscription in followed.listeners:
                subscription.mark_stale()  # what was published before this moment may be lost
            followed.stands()

    def _followed_by(self, name: bytes) -> _Followed | None:
        try:
            return self._followed.get(UUID(name.decode().rpartition(":")[2]))
        except ValueError:
            return None
