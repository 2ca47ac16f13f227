"""Postgres away, as one worker sees it: one asks for all until it is back, and the log says so."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

import structlog

from shared.errors import StoreUnavailable
from shared.store.database import Database
from shared.trouble import Trouble

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

ASK_SECONDS = 0.25
"""How often Postgres is asked whether it is back."""

SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 0.5
"""Seconds between two tries of what Postgres refused though it answers."""


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

    async def outlast(
        self, ask: Callable[[], Awaitable[T]], again: Callable[[], Awaitable[T]] | None = None
    ) -> T:
        """Ask until Postgres answers, for as long as the patience; then raises StoreUnavailable.

        Args:
            again: asked from the second time on, where what was asked before may have been done.
        """
        deadline = time.monotonic() + self.patience
        pause = SHORTEST_PAUSE
        while True:
            try:
                return await ask()
            except StoreUnavailable:
                left = deadline - time.monotonic()
                if left <= pause:
                    raise
                self.noticed()
            await asyncio.sleep(pause)
            await self.over(left)
            pause = min(pause * 2, LONGEST_PAUSE)
            ask = again or ask

    def outlasting(self, read: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        """The same function, which waits for a Postgres that is away."""

        async def patiently(*args: P.args, **kwargs: P.kwargs) -> T:
            return await self.outlast(lambda: read(*args, **kwargs))

        return patiently

    async def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})

    async def _ask(self) -> None:
        self._began = time.monotonic()
        trouble = Trouble(log, "postgres is away")
        try:
            while True:
                with trouble.catch():
                    await self._db.check_writable()
                    break
                self._seen = True
                await asyncio.sleep(ASK_SECONDS)
            if self._seen:
                self._ended = self.blameless_until
        finally:
            self._asking, self._seen = None, False
