"""The worker's part, played step by step by a test through the same store and publisher."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self
from uuid import UUID

from redis.asyncio import Redis

from shared.errors import QueueUnavailable
from shared.events import AttemptNews, Delta, Publisher
from shared.records import Claim, Event, NewEvent, Outcome, Written
from shared.redis_pool import connect_redis
from shared.settings import Settings
from shared.store import claims, leases
from shared.store.database import Database
from tests.waiting import PATIENCE

LEASE_SECONDS = 30.0

_ENDS = {
    "completed": "task_completed",
    "failed": "task_failed",
    "cancelled": "task_cancelled",
    "dead": "task_dead",
}


class FakeWorker:
    """Claims sessions and writes to them what a test tells it to."""

    def __init__(self, db: Database, redis: Redis) -> None:
        self.db = db
        self.publisher = Publisher(redis)

    @classmethod
    @asynccontextmanager
    async def connected(cls, settings: Settings, db: Database) -> AsyncIterator[Self]:
        redis = connect_redis(settings)
        # What was sent and not answered in time would be sent again, and a delta told twice.
        options = redis.connection_pool.connection_kwargs
        options |= {"socket_timeout": PATIENCE, "socket_connect_timeout": PATIENCE}
        yield cls(db, redis)
        await redis.aclose()

    async def claim(self, session_id: str, *, lease_seconds: float = LEASE_SECONDS) -> Claim:
        """Take the session's next task."""
        claim = await claims.claim(
            self.db, UUID(session_id), lease_seconds=lease_seconds, history=100
        )
        assert claim is not None, "there is nothing to claim"
        return claim

    async def start(self, session_id: str, *, lease_seconds: float = LEASE_SECONDS) -> Claim:
        """Take the session's next task and say so."""
        claim = await self.claim(session_id, lease_seconds=lease_seconds)
        kind = "task_started" if claim.attempt == 1 else "task_restarted"
        await self.write(claim, NewEvent(kind, {"attempt": claim.attempt}))
        return claim

    async def write(self, claim: Claim, *events: NewEvent, publish: bool = True) -> list[Event]:
        """Append events, and publish them unless they are to be lost on the way."""
        written = await leases.write(self.db, claim, events, lease_seconds=LEASE_SECONDS)
        return await self._publish(claim, events, written, publish=publish)

    async def stream(self, claim: Claim, message: int, offset: int, text: str) -> None:
        """Publish a piece of text."""
        delta = Delta(message, offset, text)
        await self._tell(claim, [delta])

    async def end(
        self,
        claim: Claim,
        status: Any = "completed",
        *,
        publish: bool = True,
        result: dict[str, Any] | None = None,
        view: dict[str, Any] | None = None,
        messages: Sequence[dict[str, Any]] = (),
        error: dict[str, Any] | None = None,
    ) -> list[Event]:
        """End the task with its terminal event."""
        data: dict[str, Any] = {"result": result, "usage": None} if status == "completed" else {}
        data |= {"error": error} if error else {}
        events = [NewEvent(_ENDS[status], data)]
        outcome = Outcome(status, events, messages=messages, result=result, view=view, error=error)
        written = await leases.end(self.db, claim, outcome)
        return await self._publish(claim, events, written, publish=publish)

    async def answer(self, session_id: str, text: str = "Hello!") -> Claim:
        """Run the session's next task from its start to its end, its text in two pieces."""
        claim = await self.start(session_id)
        await self.write(claim, NewEvent("agent_start", {}))
        half = len(text) // 2
        await self.stream(claim, 0, 0, text[:half])
        await self.stream(claim, 0, half, text[half:])
        message = {"role": "assistant", "content": text}
        await self.write(claim, NewEvent("message_end", {"message": message}))
        result: dict[str, Any] = {
            "text": text,
            "messages": [1],
            "decision": None,
            "state": {},
            "choices": [],
        }
        await self.end(claim, result=result, messages=[message])
        return claim

    async def _publish(
        self, claim: Claim, events: Sequence[NewEvent], written: Written, *, publish: bool
    ) -> list[Event]:
        numbered = [
            Event(written.first_seq + i, event.type, claim.task_id, written.at, event.data)
            for i, event in enumerate(events)
        ]
        if publish:
            await self._tell(claim, numbered)
        return numbered

    async def _tell(self, claim: Claim, entries: Sequence[Event | Delta]) -> None:
        with contextlib.suppress(QueueUnavailable):  # as a worker does: the log has it
            news = AttemptNews(claim.fence.session_id, claim.task_id, claim.attempt, entries)
            await self.publisher.attempts([news])
