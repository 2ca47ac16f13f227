"""An attempt written to Postgres and told over Redis."""

from collections.abc import Sequence

import structlog

from shared.errors import QueueUnavailable
from shared.events import Delta, Publisher
from shared.records import Claim, Event, Joined, JoinMode, NewEvent, Outcome, Step, Written
from shared.store import leases
from shared.store.database import Database

log = structlog.get_logger(__name__)


class PostgresTasks:
    """The TaskStore of the fleet; each write is fenced and renews the lease."""

    def __init__(self, db: Database, publisher: Publisher, *, lease_seconds: float) -> None:
        self._db = db
        self._publisher = publisher
        self._lease_seconds = lease_seconds

    async def write(
        self, claim: Claim, events: Sequence[NewEvent], steps: Sequence[Step]
    ) -> Written:
        """Append events and journal steps; raises LeaseLost or StoreUnavailable."""
        return await leases.write(self._db, claim, events, steps, lease_seconds=self._lease_seconds)

    async def join(self, claim: Claim, modes: Sequence[JoinMode], no: int) -> list[Joined]:
        """Take waiting actions into the task; raises LeaseLost or StoreUnavailable."""
        return await leases.join(self._db, claim, modes, no)

    async def end(self, claim: Claim, outcome: Outcome) -> Written:
        """End the task; raises LeaseLost or StoreUnavailable."""
        return await leases.end(self._db, claim, outcome)

    async def tell(self, claim: Claim, entries: Sequence[Event | Delta]) -> None:
        """Publish; what Redis does not take, clients find in the log."""
        try:
            await self._publisher.attempt(
                claim.fence.session_id, claim.task_id, claim.attempt, entries
            )
        except QueueUnavailable as error:
            log.warning("frames not published", task_id=str(claim.task_id), error=str(error))
