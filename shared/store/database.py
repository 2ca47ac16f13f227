"""Connections to Postgres: the pool, single statements, transactions, and what goes wrong."""

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import psycopg
from sqlalchemy import Row as SqlRow
from sqlalchemy import TextClause, text
from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from shared.errors import InvalidRequest, StoreUnavailable
from shared.schema import head_revision, is_older
from shared.settings import Settings
from shared.store.connection import (
    BEGIN,
    BEGIN_POOLED,
    SET_LIMITS,
    WITHOUT_LIMITS,
    Connection,
    connect,
    connect_pooled,
)
from shared.store.exchange import Result, Row, exchange
from shared.store.lending import Lending, Lent

Parameters = Mapping[str, Any]
AnyRow: TypeAlias = Row | SqlRow[*tuple[Any, ...]]
Rows = Sequence[AnyRow]
RawConnection: TypeAlias = psycopg.AsyncConnection[Any]

_UNAVAILABLE_CLASSES = ("08", "53", "55", "57", "58")
"""SQLSTATE classes: connection, resources, object in use (lock time-out), operator's doing, and
what the server's own machine refuses it (a disk that fails)."""

_UNAVAILABLE = {"25006", "40001", "40P01", "42501"}
"""Single states: read-only, lost to another transaction (two), and no right to a table, as after a
restore by another user."""


@dataclass(slots=True)
class Gate:
    """Whether statements may run now.

    `closed` says why not, None while they may. `inspect` looks at each new connection before
    anything runs on it, and may close the gate.
    """

    closed: str | None = None
    inspect: Callable[[RawConnection], Awaitable[None]] | None = None

    def check(self) -> None:
        """Raise StoreUnavailable while the gate is closed."""
        if self.closed is not None:
            raise StoreUnavailable(self.closed)


class Database:
    """A pool of connections to one Postgres.

    Everything that fails because Postgres is away, overloaded or restarting is raised as
    `StoreUnavailable`, a value that Postgres has no form for as `InvalidRequest`; what is wrong
    with a statement itself stays SQLAlchemy's error.
    """

    def __init__(self, lending: Lending, gate: Gate | None = None, *, pooled: bool = False) -> None:
        self._lending = lending
        self._pooled = pooled
        self._begin = BEGIN_POOLED if pooled else BEGIN
        self.gate = gate or Gate()

    @classmethod
    def from_settings(
        cls, settings: Settings, *, most: int | None = None, wait_seconds: float = 10
    ) -> Self:
        """A pool as the settings say; nothing connects before the first statement.

        Args:
            most: connections; without it, as many as the settings allow a process.
            wait_seconds: how long a caller waits for a connection when all are lent out.
        """
        pooled = settings.database_pooler != "none"
        prepares = settings.database_pooler != "transaction"
        most = most or settings.database_pool
        gate = Gate()
        engine = create_async_engine(
            driver_url(settings.database_url.get_secret_value()),
            pool_size=most,
            max_overflow=0,
            pool_timeout=wait_seconds,
            pool_use_lifo=True,
            hide_parameters=True,  # what users wrote has no place in error messages
            connect_args={
                "connect_timeout": 5,
                "keepalives_idle": 5,
                "keepalives_interval": 2,
                "keepalives_count": 3,
                "tcp_user_timeout": 10_000,
                "application_name": "fireside",
                "async_creator_fn": functools.partial(
                    _inspected,
                    gate,
                    functools.partial(connect_pooled, prepares=prepares) if pooled else connect,
                ),
            },
        )
        lending = Lending(engine, most=most, wait_seconds=wait_seconds)
        return cls(lending, gate, pooled=pooled)

    @classmethod
    @asynccontextmanager
    async def opened(cls, settings: Settings) -> AsyncIterator[Self]:
        """The same for a block: at its end all connections are closed.

        Raises:
            StoreUnavailable: Postgres is away, or its schema is older than this release.
        """
        db = cls.from_settings(settings)
        try:
            await db.check_schema()
            yield db
        finally:
            await db.close()

    def beside_gate(self) -> "Database":
        """The same pool, whatever the gate says."""
        return Database(self._lending, pooled=self._pooled)

    async def rows(
        self,
        statement: TextClause,
        parameters: Parameters | None = None,
        *,
        binary: bool = False,
    ) -> Rows:
        """Run one statement as its own transaction; all rows that it gives.

        Args:
            binary: for many rows: they travel as Postgres keeps them, and are read faster.
        """
        return (await self._one(statement, parameters, binary=binary)).rows

    async def row(
        self, statement: TextClause, parameters: Parameters | None = None
    ) -> AnyRow | None:
        """Run one statement as its own transaction; its first row, or None."""
        return (await self._one(statement, parameters)).first

    async def run(self, statement: TextClause, parameters: Parameters | None = None) -> int:
        """Run one statement as its own transaction; the number of rows it touched."""
        return (await self._one(statement, parameters)).touched

    async def together(
        self, *statements: tuple[TextClause, Parameters], binary: bool = False
    ) -> Sequence[Result]:
        """Run statements as one transaction, in one round trip; what each of them gave.

        Each sees what was committed until it begins. None can depend on what the client makes of
        the one before it: a statement reads that from the tables. `binary` as of `rows`.
        """
        texts = [(statement.text, parameters) for statement, parameters in statements]
        if self._pooled:
            return (await self._exchange([(SET_LIMITS, {}), *texts], binary=binary))[1:]
        return await self._exchange(texts, binary=binary)

    async def _one(
        self, statement: TextClause, parameters: Parameters | None, *, binary: bool = False
    ) -> Result:
        return (await self._exchange([(statement.text, parameters or {})], binary=binary))[0]

    async def _exchange(
        self, statements: Sequence[tuple[str, Parameters]], *, binary: bool = False
    ) -> list[Result]:
        async with self._lent() as lent:
            try:
                return await exchange(lent.driver, statements, binary=binary)
            except psycopg.Error as error:
                raise await self._failed(lent, error, statements[-1][0]) from error
            except asyncio.CancelledError:
                # The request to stop what runs may come late, and hit what would be next here.
                await lent.connection.invalidate()
                raise

    async def _failed(self, lent: Lent, error: psycopg.Error, statement: str) -> Exception:
        """The error as SQLAlchemy raises it; a connection that is gone takes all others along."""
        if gone := lent.driver.closed:
            checked_out = await lent.connection.get_raw_connection()
            self._lending.engine.sync_engine.pool._invalidate(checked_out, error, _checkin=False)  # noqa: SLF001 - as the engine does it, for which it has no public name
            await self._lending.put_away()
        # What the driver says by itself leaves the connection in doubt.
        if gone or (isinstance(error, psycopg.OperationalError) and error.sqlstate is None):
            await lent.connection.invalidate(error)
        return DBAPIError.instance(
            statement,
            None,
            error,
            psycopg.Error,
            hide_parameters=True,
            connection_invalidated=gone,
        )

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Several statements that hold together; commits at the end of the block."""
        async with self._lent() as lent, lent.connection.begin():
            await lent.connection.exec_driver_sql(self._begin)
            yield lent.connection

    @asynccontextmanager
    async def raw(self, *, limited: bool = True) -> AsyncIterator[RawConnection]:
        """The driver's own connection; it is closed where anything goes wrong on it.

        Args:
            limited: False for what may wait for hours. That connection is closed in any case, so
                that nobody else waits without limits.
        """
        async with self._lent() as lent:
            try:
                if not limited:
                    await self._lift_limits(lent.driver)
                yield lent.driver
            except psycopg.Error as error:
                await lent.connection.invalidate()
                reason = " ".join(str(error).split())
                raise StoreUnavailable(f"Postgres is not available: {reason}") from error
            finally:
                if not limited:
                    await lent.connection.invalidate()

    async def _lift_limits(self, connection: Connection) -> None:
        """Behind a pooler Postgres limits no statement outside of a transaction, and what is set
        would stay on a connection of the pooler's that others use."""
        if not self._pooled:
            await connection.execute(WITHOUT_LIMITS)
        connection.answer_seconds = None

    @asynccontextmanager
    async def _lent(self) -> AsyncIterator[Lent]:
        with _translated():
            lent = await self._lending.take()
            try:
                self.gate.check()  # now, for a new connection may have closed it
                yield lent
            finally:
                await self._lending.give_back(lent)

    async def close(self) -> None:
        """Close all connections."""
        await self._lending.close()

    async def check_writable(self) -> None:
        """Raise StoreUnavailable where Postgres does not answer, or takes no writes: it is a
        replica, or was made read-only."""
        found = await self.row(text("/* check */ select current_setting('transaction_read_only')"))
        if found is None or found[0] != "off":
            raise StoreUnavailable("Postgres is not available: it is read-only")

    async def check_schema(self) -> None:
        """Raise StoreUnavailable where the schema is older than this release."""
        revision = await self.revision()
        if is_older(revision):
            raise StoreUnavailable(
                f"the database's schema is {revision or 'missing'}, this release needs "
                f"{head_revision()}: run python -m shared.migrate"
            )

    async def revision(self) -> str | None:
        """The schema's revision, or None where nothing was migrated yet."""
        db = self.beside_gate()
        exists = await db.row(text("select to_regclass('alembic_version') is not null"))
        if exists is None or not exists[0]:
            return None
        found = await db.row(text("select version_num from alembic_version"))
        return None if found is None else str(found[0])


def driver_url(url: str) -> str:
    """The URL with SQLAlchemy's name of the driver in it."""
    scheme, rest = url.split("://", 1)
    return f"postgresql+psycopg://{rest}" if scheme in {"postgresql", "postgres"} else url


async def _inspected(
    gate: Gate, connect: Callable[..., Awaitable[RawConnection]], *arguments: Any, **options: Any
) -> RawConnection:
    """A new connection that the gate has looked at."""
    connection = await connect(*arguments, **options)
    try:
        if gate.inspect is not None:
            await gate.inspect(connection)
    except BaseException:
        await connection.close()
        raise
    return connection


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except PoolTimeout as error:
        raise StoreUnavailable("no connection to Postgres became free in time") from error
    except DataError as error:
        # A NUL in a text, a number out of range: wrong input, wherever it came from.
        raise InvalidRequest("a value can't be stored") from error
    except DBAPIError as error:
        if is_unavailable(error):
            reason = " ".join(str(error.orig).split())
            raise StoreUnavailable(f"Postgres is not available: {reason}") from error
        raise
    except UnicodeEncodeError as error:
        raise InvalidRequest("half of a character can't be stored") from error


def is_unavailable(error: DBAPIError) -> bool:
    """Whether the same statement may well succeed later."""
    if error.connection_invalidated or isinstance(error, InterfaceError):
        return True
    state = getattr(error.orig, "sqlstate", None)
    if state is None:
        # Without a statement it was connecting: with a parameter in its URL that nobody knows.
        return isinstance(error, OperationalError) or error.statement is None
    return str(state).startswith(_UNAVAILABLE_CLASSES) or state in _UNAVAILABLE
