"""An attempt written to Postgres and told over Redis."""

from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from functools import partial
from typing import TypeVar

from shared.allowance import NO_RULES, BudgetRules
from shared.errors import LeaseLost
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

        async def send() -> Written:
            return await leases.write(
                self._db,
                claim,
                events,
                steps,
                lease_seconds=self._lease_seconds,
                writes=progress.writes,
                ledger=ledger,
            )

        made = partial(outcomes.of_write, self._db, claim, progress)
        written = await self._outage.outlast(send, _again(send, made))
        progress.count(events, written)
        return written

    async def join(self, claim: Claim, modes: Sequence[JoinMode], no: int) -> list[Joined]:
        """Take waiting actions into the task; raises LeaseLost or StoreUnavailable."""
        # Asked again for the same place, it gives what it gave before.
        return await self._outage.outlast(lambda: leases.join(self._db, claim, modes, no))

    async def end(self, claim: Claim, outcome: Outcome) -> Written:
        """End the task; raises LeaseLost or StoreUnavailable."""
        progress = self._progress.get(claim.fence, Progress())

        async def send() -> Written:
            return await leases.end(
                self._db,
                claim,
                outcome,
                writes=progress.writes,
                idle_seconds=self._idle_seconds,
            )

        made = partial(outcomes.of_end, self._db, claim, progress)
        return await self._outage.outlast(send, _again(send, made))

    async def left(self, claim: Claim) -> Decimal | None:
        """What the task may still spend; raises StoreUnavailable."""
        return await budgets.left(self._db, claim.user_id, self._rules, key_id=claim.key_id)

    def forget(self, fence: Fence) -> None:
        """Keep nothing of a lease that is over."""
        self._progress.pop(fence, None)

    def tell(self, claim: Claim, entries: Sequence[Event | Delta]) -> None:
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
