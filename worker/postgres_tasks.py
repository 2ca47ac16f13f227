"""An attempt written to Postgres and told over Redis."""

from collections.abc import Sequence

from shared.events import Delta
from shared.records import Claim, Event, NewEvent, Outcome, Step, Written
from shared.store import leases
from shared.store.database import Database
from worker.telling import Telling


class PostgresTasks:
    """The TaskStore of the fleet; each write is fenced and renews the lease."""

    def __init__(self, db: Database, telling: Telling, *, lease_seconds: float) -> None:
        self._db = db
        self._telling = telling
        self._lease_seconds = lease_seconds

    async def write(
        self, claim: Claim, events: Sequence[NewEvent], steps: Sequence[Step]
    ) -> Written:
        """Append events and journal steps; raises LeaseLost or StoreUnavailable."""
        return await leases.write(self._db, claim, events, steps, lease_seconds=self._lease_seconds)

    async def end(self, claim: Claim, outcome: Outcome) -> Written:
        """End the task; raises LeaseLost or StoreUnavailable."""
        return await leases.end(self._db, claim, outcome)

    async def tell(self, claim: Claim, entries: Sequence[Event | Delta]) -> None:
        """Have clients told; an attempt does not wait for it."""
        self._telling.tell(claim, entries)
