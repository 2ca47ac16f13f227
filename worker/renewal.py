"""Renews the leases of a worker process, however busy the loop is on which its sessions run.

A loop that reads hundreds of answers turns slowly, and what takes several turns takes seconds
there: longer than a lease lasts. Its sessions would be taken over, be paid for again, and make
others late.
"""

import asyncio
import time

import structlog

from shared.errors import FiresideError
from shared.own_loop import on_own_loop
from shared.settings import Settings
from shared.store import leases
from shared.store.database import Database, Gate
from worker.holding import Holding
from worker.outage import Outage

log = structlog.get_logger(__name__)

LEASE_CONNECTIONS = 1
"""So many of those that a process may open are for this."""

LEASES_STOOD_STILL = 3
"""A loop that stands still for so many leases is not busy, it is blocked: others had better go on
with its sessions."""


class Renewal:
    """Renews what is held from a thread of its own, over a connection of its own.

    Args:
        gate: whether statements may run now.
    """

    def __init__(self, settings: Settings, gate: Gate, outage: Outage, holding: Holding) -> None:
        self._settings = settings
        self._gate = gate
        self._outage = outage
        self._holding = holding
        self._loop: asyncio.AbstractEventLoop
        self._turned_at = 0.0
        self._failed = False

    async def renew_for_ever(self) -> None:
        """Renew every lease, hear of cancels, and stop the runs whose lease is gone; for ever."""
        self._loop = asyncio.get_running_loop()
        self._turned()
        await on_own_loop(self._renew_for_ever, name="leases")

    def _turned(self) -> None:
        self._turned_at = time.monotonic()

    # -- in the thread --------------------------------------------------------------------------

    async def _renew_for_ever(self) -> None:
        db = Database.from_settings(self._settings, most=LEASE_CONNECTIONS)
        try:
            while True:
                await self._pause()
                if self._turns():
                    await self._renew(db)
        finally:
            await db.close()

    async def _pause(self) -> None:
        """Wait for the next time. After an outage it is now: others may take over what has not been
        renewed."""
        if self._failed:
            over = self._outage.over(self._outage.patience)
            was_away = asyncio.run_coroutine_threadsafe(over, self._loop)
            if await asyncio.wrap_future(was_away) and not self._outage.lasts:
                return
        slept, seconds = time.monotonic(), self._settings.heartbeat_seconds
        await asyncio.sleep(seconds)
        if time.monotonic() - slept > 2 * seconds:
            self._turned()  # the whole process stood still, its loop as well

    def _turns(self) -> bool:
        """Whether the loop has turned lately; it is asked to say so again."""
        still = time.monotonic() - self._turned_at
        self._loop.call_soon_threadsafe(self._turned)
        if still <= LEASES_STOOD_STILL * self._settings.lease_seconds:
            return True
        log.error("the loop stands still: its sessions are left to others", seconds=round(still))
        return False

    async def _renew(self, db: Database) -> None:
        fences = self._holding.fences()
        if not fences:
            return
        began = time.monotonic()
        self._failed = False
        try:
            self._gate.check()
            pulse = await leases.heartbeat(
                db, list(fences.values()), lease_seconds=self._settings.lease_seconds
            )
        except FiresideError as error:
            log.warning("heartbeat failed", error=str(error))
            self._failed = True
            self._loop.call_soon_threadsafe(self._outage.noticed)
        else:
            self._loop.call_soon_threadsafe(self._holding.renewed, pulse, fences, began)
