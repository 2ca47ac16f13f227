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
from shared.trouble import Trouble
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
        self._asked_at = 0.0
        self._answered = True
        self._stands_still = False
        self._trouble = Trouble(log, "heartbeat failed")
        self._failed = False
        self._tried_at_once = False

    async def renew_for_ever(self) -> None:
        """Renew every lease, hear of cancels, and stop the runs whose lease is gone; for ever."""
        self._loop = asyncio.get_running_loop()
        await on_own_loop(self._renew_for_ever, name="leases")

    # -- in the thread --------------------------------------------------------------------------

    async def _renew_for_ever(self) -> None:
        db = Database.from_settings(self._settings, most=LEASE_CONNECTIONS)
        try:
            while True:
                await self._pause()
                if self._loop_turns():
                    await self._renew(db)
        finally:
            await db.close()

    async def _pause(self) -> None:
        """Wait for the next time. Once an outage is over it is now: others may take over what has
        not been renewed."""
        began, seconds = time.monotonic(), self._settings.heartbeat_seconds
        if self._failed:
            over = asyncio.run_coroutine_threadsafe(self._outage.over(seconds), self._loop)
            await asyncio.wait({asyncio.wrap_future(over)}, timeout=seconds)
            if not self._outage.lasts and not self._tried_at_once:
                self._tried_at_once = True  # else it may be this connection alone that fails
                return
        await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))
        if time.monotonic() - began > 2 * seconds:
            self._asked_at = time.monotonic()  # the whole process stood still

    def _loop_turns(self) -> bool:
        """Whether the loop answers in time; it is asked anew once it has answered."""
        if self._answered:
            # Before it is asked: it may answer before the next line of this thread has its turn.
            self._answered, self._asked_at = False, time.monotonic()
            self._loop.call_soon_threadsafe(self._it_turns)
        still = time.monotonic() - self._asked_at
        if still <= LEASES_STOOD_STILL * self._settings.lease_seconds:
            self._stands_still = False
            return True
        if not self._stands_still:
            self._stands_still = True
            log.error(
                "the loop stands still: its sessions are left to others", seconds=round(still)
            )
        return False

    def _it_turns(self) -> None:
        """Called by the loop of the sessions."""
        self._answered = True

    async def _renew(self, db: Database) -> None:
        fences = self._holding.fences()
        if not fences:
            return
        began = time.monotonic()
        try:
            # A new connection may lead to another database: there no lease is of this epoch.
            self._gate.check()
            # A connection that is dead without a word must not cost what another could still save.
            async with asyncio.timeout(self._settings.lease_seconds / 2):
                pulse = await leases.heartbeat(
                    db, list(fences.values()), lease_seconds=self._settings.lease_seconds
                )
        except (FiresideError, TimeoutError) as error:
            self._trouble.goes_on(str(error) or "no answer in half a lease")
            self._failed = True
            self._loop.call_soon_threadsafe(self._outage.noticed)
        else:
            self._trouble.is_over()
            self._failed = self._tried_at_once = False
            self._loop.call_soon_threadsafe(self._holding.renewed, pulse, fences, began)
