"""The sweep: sessions that wait without a worker are hinted again, whatever lost their hint."""

import asyncio

import structlog

from shared.errors import FiresideError
from shared.queue import Hints
from shared.store import leases, turns
from shared.store.database import Database

log = structlog.get_logger(__name__)


async def sweep_for_ever(db: Database, hints: Hints, *, every: float) -> None:
    """Sweep until cancelled; a database or a queue that is away is tried again.

    Args:
        every: seconds between two sweeps.
    """
    task = asyncio.current_task()
    # Before Python 3.12 a cancellation that comes just as Redis takes a command is swallowed.
    while task is None or not task.cancelling():
        try:
            found = await leases.sweep(db)
            await hints.send(found, await turns.levels(db, found))
            if found:
                log.info("hinted again", sessions=len(found))
        except FiresideError as error:
            log.warning("sweep failed", error=str(error))
        await asyncio.sleep(every)
