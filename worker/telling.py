"""Telling clients what attempts give: in order, many at a time, and beside the durable writes.

An attempt never waits for Redis. What can't be told is dropped, and clients find it in the log.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias
from uuid import UUID

import structlog

from shared.ending import ended_within
from shared.errors import QueueUnavailable
from shared.events import AttemptNews, Delta, Publisher
from shared.records import Claim, Event

log = structlog.get_logger(__name__)

MAX_WAITING = 20_000
"""Pieces of news that may wait for Redis; what comes on top of them is dropped."""

_BATCH = 200

_PAUSE_SECONDS = 0.01
"""Between two batches: what comes meanwhile goes together, at a small part of the cost. News that
come alone do not wait."""

_Attempt: TypeAlias = tuple[UUID, int]


class Telling:
    """The way of all news of this process's attempts to Redis.

    The text so far is kept in Redis piece by piece. From a message of which a piece was lost
    nothing more is kept, up to the next message's beginning: no text is better than a wrong one.
    """

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._waiting: deque[AttemptNews] = deque()
        self._torn: OrderedDict[_Attempt, int] = OrderedDict()
        self._dropped = 0
        self._wake = asyncio.Event()

    def tell(self, claim: Claim, entries: Sequence[Event | Delta]) -> None:
        """Take news of an attempt; never waits."""
        news = AttemptNews(claim.fence.session_id, claim.task_id, claim.attempt, entries)
        if len(self._waiting) >= MAX_WAITING:
            self._drop([news], "too much waits")
            return
        self._waiting.append(news)
        self._wake.set()

    async def send_for_ever(self) -> None:
        """Send what comes, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._send_waiting()
            await asyncio.sleep(_PAUSE_SECONDS)

    async def send_the_rest(self, seconds: float) -> None:
        """Send what waits, for so many seconds at the most."""
        await ended_within(seconds, self._send_waiting())

    async def _send_waiting(self) -> None:
        while self._waiting:
            count = min(_BATCH, len(self._waiting))
            batch = [self._with_its_text(self._waiting.popleft()) for _ in range(count)]
            try:
                kept = await self._publisher.attempts(batch)
            except QueueUnavailable as error:
                self._drop(batch, str(error))
                continue
            except asyncio.CancelledError:
                for news in batch:  # some of it may have been told, some not
                    self._tear(news)
                raise
            for news, is_kept in zip(batch, kept, strict=True):
                if not is_kept:
                    self._tear(news)
            if self._dropped:
                log.info("clients are told again", not_told=self._dropped)
                self._dropped = 0

    def _drop(self, batch: Sequence[AttemptNews], reason: str) -> None:
        if not self._dropped:
            log.warning("clients are not told, they find it in the log", error=reason)
        self._dropped += len(batch)
        for news in batch:
            self._tear(news)

    def _tear(self, news: AttemptNews) -> None:
        """Of the last message that these news are about, a piece is lost."""
        messages = [number for entry in news.entries if (number := _message_of(entry)) is not None]
        if not messages:
            return
        attempt = (news.task_id, news.attempt)
        self._torn[attempt] = max(messages[-1], self._torn.get(attempt, 0))
        self._torn.move_to_end(attempt)
        if len(self._torn) > MAX_WAITING:
            self._torn.popitem(last=False)

    def _with_its_text(self, news: AttemptNews) -> AttemptNews:
        """The news, marked if no text can be kept of them."""
        attempt = (news.task_id, news.attempt)
        torn = self._torn.get(attempt)
        if torn is None:
            return news
        begun = any(
            isinstance(entry, Delta) and entry.offset == 0 and entry.message > torn
            for entry in news.entries
        )
        if begun:
            del self._torn[attempt]
        return replace(news, lost=not begun)


def _message_of(entry: Event | Delta) -> int | None:
    """The message whose text so far an entry changes."""
    if isinstance(entry, Delta):
        return entry.message
    return int(entry.data["number"]) if entry.type == "message_end" else None
