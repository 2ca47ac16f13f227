"""An attempt written to Postgres and told over Redis."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from typing import TypeVar

from shared.allowance import NO_RULES, BudgetRules
from shared.errors import LeaseLost, StoreUnavailable
from shared.events import Delta
from shared.records import (
    Claim,
    Event,
    Fence,
    Joined,
    JoinMode,
    LedgerEntry,
    NewEvent,
    Outcome,
    Step,
    Written,
)
from shared.store import budgets, leases, outcomes
from shared.store.database import Database
from shared.store.outcomes import Progress
from worker.outage import Outage
from worker.telling import Telling

T = TypeVar("T")

SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 0.5
"""Seconds between two tries of a write that Postgres refused though it answers."""


class PostgresTasks:
    """The TaskStore of the fleet; each write is fenced, renews the lease, and is made once.

    A write that Postgres does not answer is sent again, as long as the outage's patience: whether
    the first copy was committed or never came, it stands in the log once.
    """

    def __init__(
        self,
        db: Database,
        telling: Telling,
        outage: Outage,
        *,
        lease_seconds: float,
        idle_seconds: float | None = None,
        rules: BudgetRules = NO_RULES,
    ) -> None:
        self._db = db
        self._telling = telling
        self._outage = outage
        self._lease_seconds = lease_seconds
        self._idle_seconds = idle_seconds
        self._rules = rules
        self._progress: dict[Fence, Progress] = {}

    async def write(
        self,
        claim: Claim,
        events: Sequence[NewEvent],
        steps: Sequence[Step],
        ledger: Sequence[LedgerEntry] = (),
    ) -> Written:
        """Append events, journal steps and enter calls of models; raises LeaseLost or
        StoreUnavailable."""
        progress = self._progress.setdefault(claim.fence, Progress())
        written = await self._surely(
            lambda: leases.write(
                self._db,
                claim,
                events,
                steps,
                lease_seconds=self._lease_seconds,
                writes=progress.writes,
                ledger=ledger,
            ),
            lambda: outcomes.of_write(self._db, claim, progress),
        )
        progress.count(events, written)
        return written

    async def join(self, claim: Claim, modes: Sequence[JoinMode], no: int) -> list[Joined]:
        """Take waiting actions into the task; raises LeaseLost or StoreUnavailable."""
        # Asked again for the same place, it gives what it gave before.
        return await self._surely(lambda: leases.join(self._db, claim, modes, no))

    async def end(self, claim: Claim, outcome: Outcome) -> Written:
        """End the task; raises LeaseLost or StoreUnavailable."""
        progress = self._progress.get(claim.fence, Progress())
        return await self._surely(
            lambda: leases.end(
                self._db,
                claim,
                outcome,
                writes=progress.writes,
                idle_seconds=self._idle_seconds,
            ),
            lambda: outcomes.of_end(self._db, claim, progress),
        )

    async def left(self, claim: Claim) -> Decimal | None:
        """What the task may still spend; raises StoreUnavailable."""
        return await budgets.left(self._db, claim.user_id, self._rules, key_id=claim.key_id)

    def forget(self, fence: Fence) -> None:
        """Keep nothing of a lease that is over."""
        self._progress.pop(fence, None)

    async def _surely(
        self,
        send: Callable[[], Awaitable[T]],
        made: Callable[[], Awaitable[T | None]] | None = None,
    ) -> T:
        """Send a write until it is known what became of it.

        Args:
            made: finds what a copy that was made before gave, or None where there is none.
        """
        deadline = time.monotonic() + self._outage.patience
        pause = SHORTEST_PAUSE
        answer = send
        while True:
            try:
                return await answer()
            except StoreUnavailable:
                left = deadline - time.monotonic()
                if left <= pause:
                    raise
                self._outage.noticed()
            await asyncio.sleep(pause)
            await self._outage.over(left)
            pause = min(pause * 2, LONGEST_PAUSE)
            if made is not None:
                answer = _again(send, made)

    async def tell(self, claim: Claim, entries: Sequence[Event | Delta]) -> None:
        """Have clients told; an attempt does not wait for it."""
        self._telling.tell(claim, entries)


def _again(
    send: Callable[[], Awaitable[T]], made: Callable[[], Awaitable[T | None]]
) -> Callable[[], Awaitable[T]]:
    """A further copy of a write; where it is refused, what the copy before it gave."""

    async def answer() -> T:
        try:
            return await send()
        except LeaseLost:
            found = await made()
            if found is None:
                raise
            return found

    return answer
