"""Calls of models that their attempt could not enter: it had lost its lease, or Postgres."""

import asyncio
from collections.abc import Sequence

import structlog

from shared.records import Claim, LedgerEntry
from shared.store import usage
from shared.store.database import Database
from shared.trouble import Trouble

log = structlog.get_logger(__name__)


class LateUsage:
    """Enters, one after the other, what came too late for its attempt.

    Args:
        pause: seconds until the next try where Postgres is away.
    """

    def __init__(self, db: Database, *, pause: float) -> None:
        self._db = db
        self._pause = pause
        self._trouble = Trouble(log, "calls of models not entered yet")
        self._waiting: asyncio.Queue[tuple[Claim, Sequence[LedgerEntry]]] = asyncio.Queue()
        self._entering: tuple[Claim, Sequence[LedgerEntry]] | None = None

    def add(self, claim: Claim, entries: Sequence[LedgerEntry]) -> None:
        """Take calls of an attempt. Those that were entered after all are not entered again."""
        self._waiting.put_nowait((claim, entries))

    async def enter_for_ever(self) -> None:
        """Enter what comes, until cancelled."""
        while True:
            self._entering = await self._waiting.get()
            entered = await self._enter(*self._entering)
            if not entered:
                self._waiting.put_nowait(self._entering)
            self._entering = None
            if not entered:
                await asyncio.sleep(self._pause)

    async def enter_the_rest(self, seconds: float) -> None:
        """Enter what is left as far as it can be done in so many seconds; say what can't."""
        left = [] if self._entering is None else [self._entering]  # it was cut off in the middle
        while not self._waiting.empty():
            left.append(self._waiting.get_nowait())
        try:
            async with asyncio.timeout(seconds):
                while left and await self._enter(*left[-1]):
                    left.pop()
        except TimeoutError:
            pass
        for claim, entries in left:
            log.error(
                "calls of models are missing in the ledger",
                task_id=str(claim.task_id),
                attempt=claim.attempt,
                calls=len(entries),
                tokens=sum(e.input + e.output + e.cache_read + e.cache_write for e in entries),
            )

    async def _enter(self, claim: Claim, entries: Sequence[LedgerEntry]) -> bool:
        with self._trouble.catch():
            await usage.append(self._db, claim, entries)
            return True
        return False
