"""The sweep: sessions that wait without a worker are hinted again, whatever lost their hint."""

import asyncio
import time

import structlog

from shared.errors import FiresideError
from shared.queue import Hints
from shared.store import clock, leases
from shared.store.database import Database

log = structlog.get_logger(__name__)

MEND_SECONDS = 30.0
"""How often it is looked whether the database's clock was set back."""


async def sweep_for_ever(db: Database, hints: Hints, *, every: float) -> None:
    """Sweep until cancelled; a database or a queue that is away is tried again.

    Args:
        every: seconds between two sweeps.
    """
    task = asyncio.current_task()
    mended_at = float("-inf")
    # Before Python 3.12 a cancellation that comes just as Redis takes a command is swallowed.
    while task is None or not task.cancelling():
        try:
            if time.monotonic() - mended_at > MEND_SECONDS:
                if mended := await clock.mend(db):
                    log.warning("the database's clock was set back", sessions=mended)
                mended_at = time.monotonic()
            found = await leases.sweep(db)
            await hints.send(found)
            if found:
                log.info("hinted again", sessions=len(found))
        except FiresideError as error:
            log.warning("sweep failed", error=str(error))
        await asyncio.sleep(every)
