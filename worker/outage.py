"""Postgres away, as one worker sees it: one asks for all until it is back, and the log says so."""

import asyncio
import time

import structlog

from shared.errors import FiresideError
from shared.store.database import Database

log = structlog.get_logger(__name__)

ASK_SECONDS = 0.25
"""How often Postgres is asked whether it is back."""

SAY_SECONDS = 10.0
"""How often the log says that it is still away."""


class Outage:
    """Whether Postgres takes writes. A thousand tasks must not each try to find out.

    Args:
        patience: for how many seconds an outage keeps attempts waiting, and not their model calls
            to be paid again.
    """

    def __init__(self, db: Database, *, patience: float) -> None:
        self._db = db
        self.patience = patience
        self._began = self._ended = float("-inf")
        self._seen = False
        self._asking: asyncio.Task[None] | None = None

    @property
    def lasts(self) -> bool:
        """Whether Postgres was away when last seen; any thread may ask."""
        return self._asking is not None

    def noticed(self) -> None:
        """Hear that a statement failed: Postgres may be away, or it was that statement alone."""
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._ask())

    @property
    def blameless_until(self) -> float:
        """Until when nobody could renew a lease, on this machine's monotonic clock."""
        if self._seen:
            return min(time.monotonic(), self._began + self.patience)
        return self._ended

    async def over(self, patience: float) -> bool:
        """Wait until Postgres is back, for so many seconds at the most; whether it was away."""
        if self._asking is None:
            return False
        await asyncio.wait({self._asking}, timeout=patience)
        return True

    async def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})

    async def _ask(self) -> None:
        self._began = time.monotonic()
        said = 0.0
        try:
            while True:
                try:
                    await self._db.check_writable()
                    break
                except FiresideError as error:
                    self._seen = True
                    if not said or time.monotonic() - said > SAY_SECONDS:
                        said = time.monotonic()
                        log.warning("postgres is away", error=str(error))
                await asyncio.sleep(ASK_SECONDS)
            if self._seen:
                self._ended = self.blameless_until
                log.info("postgres is back", seconds=round(time.monotonic() - self._began, 1))
        finally:
            self._asking, self._seen = None, False
