"""Telling clients and workers what was committed: events and hints, after the commit, unhurried.

A request never waits for Redis. What can't be told is dropped: the sweep hints again, and the log
has the events.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import structlog

from shared.events import Publisher
from shared.levels import FIRST
from shared.queue import Hints
from shared.records import Event
from shared.trouble import Trouble

log = structlog.get_logger(__name__)

MAX_WAITING = 10_000
"""Announcements that may wait for Redis; the oldest are dropped beyond it."""

_BATCH = 200


@dataclass(frozen=True, slots=True)
class _News:
    session_id: UUID
    events: Sequence[Event]
    hint: bool
    cancelled: UUID | None
    joins: bool
    level: int


class Announcer:
    """Sends what it is told in the order it is told, many at a time."""

    def __init__(self, hints: Hints, publisher: Publisher) -> None:
        self._hints = hints
        self._publisher = publisher
        self._waiting: deque[_News] = deque(maxlen=MAX_WAITING)
        self._wake = asyncio.Event()
        self._trouble = Trouble(log, "announcements dropped")

    @property
    def waiting(self) -> int:
        """Announcements that were not sent yet."""
        return len(self._waiting)

    def tell(
        self,
        session_id: UUID,
        events: Sequence[Event] = (),
        *,
        hint: bool = False,
        cancelled: UUID | None = None,
        joins: bool = False,
        level: int = FIRST,
    ) -> None:
        """Announce a change that is committed; never waits.

        Args:
            hint: the session has something for a worker to do.
            cancelled: a task that was asked to stop.
            joins: an action came that may join the running task.
            level: where in the queue the hint is to wait.
        """
        self._waiting.append(_News(session_id, events, hint, cancelled, joins, level))
        self._wake.set()

    async def send_for_ever(self) -> None:
        """Send what comes, and what waits already, until cancelled."""
        self._wake.set()
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._send_waiting()

    async def send_the_rest(self, seconds: float) -> None:
        """Send what waits, for so many seconds at the most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._send_waiting()

    async def _send_waiting(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
            with self._trouble.catch():
                # Events first: a worker that has its hint tells more events at once, and listeners
                # that see a number too high read the log for the one that is still on its way.
                await self._publisher.events_of_many((n.session_id, n.events) for n in batch)
                levels = _levels(batch)
                await self._hints.send(levels, levels, home=True)
                for news in batch:
                    if news.cancelled is not None:
                        await self._publisher.cancel(news.session_id, news.cancelled)
                    if news.joins:
                        await self._publisher.joining(news.session_id)


def _levels(batch: Sequence[_News]) -> dict[UUID, int]:
    """The sessions to hint, each on the best level that was told for it."""
    levels: dict[UUID, int] = {}
    for news in batch:
        if news.hint:
            levels[news.session_id] = min(news.level, levels.get(news.session_id, news.level))
    return levels
