"""Lending out connections of a pool: few of them, and without any ceremony of the pool's.

SQLAlchemy's pool runs each checkout and each return in a greenlet of its own. That costs more than
twice as much as a statement, and a task has a handful of them. It also opens a connection wherever
none is free, and each costs Postgres a process of megabytes and a plan of every statement.
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from time import monotonic

from psycopg.pq import TransactionStatus
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.store.connection import Connection

FEW = 4
"""So many are opened at once: they keep more cores busy than most servers have."""

PATIENCE_SECONDS = 0.25
"""Where the first in line has waited for so long one more is opened, and no more until it has been
waited for as long again: a line that is long and moves fast needs none."""

IDLE_SECONDS = 60.0
"""Who has not been lent out for so long is closed, but for a few."""


@dataclass(frozen=True, slots=True)
class Lent:
    """A connection as the pool knows it, and the driver's own."""

    connection: AsyncConnection
    driver: Connection

    def is_as_it_was(self) -> bool:
        """Whether it may be lent out again as it is: it is open, and nothing is open on it."""
        return (
            self.driver.pgconn.transaction_status == TransactionStatus.IDLE
            and not self.connection.invalidated
            and not self.connection.in_transaction()
        )


@dataclass(frozen=True, slots=True)
class _Waiter:
    """A caller in line. It is given a connection, or None: then it opens one."""

    given: asyncio.Future[Lent | None]
    since: float


class Lending:
    """The connections of an engine; what comes back goes to whoever waits longest.

    Else it is kept at hand, newest first.

    Args:
        most: connections that may be open.
        wait_seconds: how long a caller waits for one.
    """

    def __init__(self, engine: AsyncEngine, *, most: int, wait_seconds: float) -> None:
        self.engine = engine
        self._few = min(FEW, most)
        self._most = most
        self._wait_seconds = wait_seconds
        self._at_hand: deque[tuple[Lent, float]] = deque()
        self._open = 0
        """At hand, lent out, or about to be opened."""
        self._line: deque[_Waiter] = deque()
        self._watching: asyncio.TimerHandle | None = None

    async def take(self) -> Lent:
        """A connection for the caller alone, who gives it back.

        Raises:
            sqlalchemy.exc.TimeoutError: none became free in time.
            sqlalchemy.exc.DBAPIError: Postgres is not available.
        """
        if self._at_hand:
            return self._at_hand.pop()[0]
        if self._open < self._few:
            self._open += 1
            return await self._opened()
        return await self._given() or await self._opened()

    async def give_back(self, lent: Lent) -> None:
        """Take a connection back, whatever has become of it."""
        if not lent.is_as_it_was():
            await self._put_away(lent)
            return
        self._pass_on(lent)
        if len(self._at_hand) > self._few and self._at_hand[0][1] < monotonic() - IDLE_SECONDS:
            await self._put_away(self._at_hand.popleft()[0], close=True)

    async def put_away(self) -> None:
        """Keep none at hand: the pool decides about each before it is lent out again."""
        while self._at_hand:
            await self._put_away(self._at_hand.pop()[0])

    async def close(self) -> None:
        """Close all connections that are not lent out."""
        await self.put_away()
        await self.engine.dispose()

    async def _opened(self) -> Lent:
        """One from the pool, which is counted already."""
        try:
            connection = await self.engine.connect()
            driver = (await connection.get_raw_connection()).driver_connection
        except BaseException:
            self._pass_on(None)
            raise
        assert isinstance(driver, Connection)
        return Lent(connection, driver)

    async def _put_away(self, lent: Lent, *, close: bool = False) -> None:
        """Return it to the pool, even for a caller that is cancelled meanwhile."""
        try:
            await asyncio.shield(asyncio.create_task(_return(lent, close=close)))
        finally:
            self._pass_on(None)

    async def _given(self) -> Lent | None:
        """Wait in line; None where the caller is to open one."""
        given: asyncio.Future[Lent | None] = asyncio.get_running_loop().create_future()
        self._line.append(_Waiter(given, monotonic()))
        self._watch_line()
        try:
            async with asyncio.timeout(self._wait_seconds):
                return await given
        except BaseException as error:
            if given.done() and not given.cancelled():
                self._pass_on(given.result())
            if isinstance(error, TimeoutError):
                raise PoolTimeout("all connections are lent out") from error
            raise

    def _pass_on(self, lent: Lent | None) -> None:
        """Give it to the next in line, else keep it; None for what one that is open less allows."""
        while self._line:
            given = self._line.popleft().given
            if not given.done():
                given.set_result(lent)
                return
        if lent is None:
            self._open -= 1
        else:
            self._at_hand.append((lent, monotonic()))

    def _watch_line(self) -> None:
        if self._line and self._watching is None:
            loop = asyncio.get_running_loop()
            self._watching = loop.call_later(PATIENCE_SECONDS, self._grow)

    def _grow(self) -> None:
        """Have one more opened for the first in line, if it has waited for long."""
        self._watching = None
        while self._line and self._line[0].given.done():
            self._line.popleft()
        long_ago = monotonic() - PATIENCE_SECONDS
        if self._line and self._line[0].since <= long_ago and self._open < self._most:
            self._open += 1
            self._pass_on(None)
        self._watch_line()


async def _return(lent: Lent, *, close: bool) -> None:
    if close:
        await lent.connection.invalidate()
    await lent.connection.close()
