"""The sessions that a worker process holds: their leases renewed, their users heard.

One statement a second renews all leases and tells of cancels (`worker/renewal.py`); Redis tells of
them at once.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog
from redis.asyncio import Redis

from agent_core import AbortSignal
from shared.events import CANCEL_CHANNEL, JOIN_CHANNEL
from shared.hearing import hear_for_ever
from shared.records import Claim, Fence, Written
from shared.store import leases
from worker.outage import Outage
from worker.task_log import TaskLog

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Held:
    """A session that this process runs; `renewed_at` is this machine's monotonic clock."""

    claim: Claim
    task_log: TaskLog
    signal: AbortSignal
    renewed_at: float
    run: asyncio.Task[Written] | None = None
    handed_over: bool = False

    def lose(self, reason: str) -> None:
        """Stop the run, unless its end is being written: that write finds out by itself."""
        if not self.task_log.ending:
            self.task_log.lose(reason)

    def stop(self) -> None:
        """Cancel the run."""
        if self.run is not None:
            self.run.cancel()


class Holding:
    """What is held, by session.

    Args:
        lease_seconds: how long a lease lasts without being renewed.
        heartbeat_seconds: how often all are renewed, and looked at.
    """

    def __init__(
        self,
        redis: Redis,
        outage: Outage,
        *,
        lease_seconds: float,
        heartbeat_seconds: float,
    ) -> None:
        self._outage = outage
        self._redis = redis
        self._lease_seconds = lease_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._held: dict[UUID, Held] = {}

    def __iter__(self) -> Iterator[Held]:
        return iter(list(self._held.values()))

    def add(self, held: Held) -> None:
        """Hold a session from now on. A claim that stood in line for longer than its lease lasts
        is given two heartbeats before it is doubted."""
        asked = time.monotonic() + 2 * self._heartbeat_seconds - self._lease_seconds
        held.renewed_at = max(held.renewed_at, asked)
        self._held[held.claim.fence.session_id] = held

    def remove(self, held: Held) -> None:
        """Hold it no more."""
        del self._held[held.claim.fence.session_id]

    def fences(self) -> dict[UUID, Fence]:
        """What is held, by session; any thread may ask."""
        return {session_id: held.claim.fence for session_id, held in self._held.copy().items()}

    def renewed(self, pulse: leases.Pulse, fences: Mapping[UUID, Fence], began: float) -> None:
        """Hear what became of these leases, which were asked for when it `began`."""
        for session_id, fence in fences.items():
            held = self._held.get(session_id)
            if held is None or held.claim.fence != fence:
                continue
            if session_id not in pulse.held:
                held.lose("the lease is another worker's")
                continue
            held.renewed_at = began
            if session_id in pulse.queued:
                held.task_log.nudge()
            if session_id in pulse.cancelled:
                held.signal.set()

    async def stop_overdue(self) -> None:
        """Stop the runs whose lease was not renewed in time, also while a heartbeat hangs; for
        ever.

        The database's clock decides who holds a lease; this one only says when to doubt it. While
        Postgres is away nobody can take a lease, so there is nothing to doubt for a while. And a
        process that stood still asks first: what nobody has taken is still its own.
        """
        woke = 0.0
        while True:
            slept = time.monotonic()
            await asyncio.sleep(self._heartbeat_seconds)
            now = time.monotonic()
            if now - slept > 2 * self._heartbeat_seconds:
                woke = now
            self._lose_overdue(now, sure=max(self._outage.blameless_until, woke))

    def _lose_overdue(self, now: float, sure: float) -> None:
        # Not in the loop of its caller, which would keep alive what it looked at last: all that a
        # task had, for as long as nothing else runs.
        for held in self:
            if now - max(held.renewed_at, sure) > self._lease_seconds:
                held.lose("the lease could not be renewed in time")

    async def hear_users(self) -> None:
        """Hear at once what the next heartbeat would tell, for ever: cancels, and actions that may
        join."""
        await hear_for_ever(
            self._redis,
            {CANCEL_CHANNEL: self._cancel, JOIN_CHANNEL: self._nudge},
            unheard="users are not heard at once",
        )

    def _nudge(self, message: Mapping[str, Any]) -> None:
        held = self._of(message["data"].decode(errors="replace"))
        if held is not None:
            held.task_log.nudge()

    def _cancel(self, message: Mapping[str, Any]) -> None:
        session, _, task = message["data"].decode(errors="replace").partition(":")
        held = self._of(session)
        if held is not None and str(held.claim.task_id) == task:
            held.signal.set()

    def _of(self, session: str) -> Held | None:
        """What is held of a session; anyone may publish, so it may be no session's id."""
        try:
            return self._held.get(UUID(session))
        except ValueError:
            return None
