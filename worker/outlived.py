"""Attempts that their worker outlived: what ended them was no fault of their task."""

import asyncio

import structlog

from shared.errors import LeaseLost, StoreUnavailable
from shared.records import Claim
from shared.store import leases
from shared.store.database import Database
from shared.trouble import Trouble

log = structlog.get_logger(__name__)


class OutlivedAttempts:
    """Takes back, one after the other, attempts that ended with their lease or with Postgres.

    A claim counts its attempt at once, for a worker that is killed can't do so any more. One that
    was frozen, or that lost Postgres, and lives on knows better.

    Args:
        pause: seconds until the next try where Postgres is away.
    """

    def __init__(self, db: Database, *, pause: float) -> None:
        self._db = db
        self._pause = pause
        self._trouble = Trouble(log, "attempt not taken back yet")
        self._waiting: asyncio.Queue[Claim] = asyncio.Queue()

    def add(self, claim: Claim, cause: BaseException | None) -> None:
        """Take note of a lost attempt; one that was lost for another reason stays counted."""
        if isinstance(cause, LeaseLost | StoreUnavailable):
            self._waiting.put_nowait(claim)

    async def take_back_for_ever(self) -> None:
        """Take back what comes, until cancelled."""
        while True:
            if not await self._take_back(await self._waiting.get()):
                await asyncio.sleep(self._pause)

    async def _take_back(self, claim: Claim) -> bool:
        with self._trouble.catch():
            await leases.forgive(self._db, claim)
            return True
        self._waiting.put_nowait(claim)
        return False
