"""One connection to Postgres: its limits, and an end to every wait for an answer."""

import asyncio
import contextlib
import itertools
import os
import socket
from collections.abc import Coroutine, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import psycopg
from psycopg.abc import Buffer, PQGen
from psycopg.types.datetime import TimestamptzLoader
from psycopg.types.json import set_json_loads

from shared.encoding import loads

T = TypeVar("T")

set_json_loads(loads)

# A frozen process must not hold a session's row lock for longer than a takeover may take, and a
# statement that waits for such a lock must give up rather than pile up behind it.
_LIMITS = {
    "idle_in_transaction_session_timeout": "3s",
    "lock_timeout": "5s",
    "statement_timeout": "10s",
}

# Statements that are kept prepared (see `exchange.kept`) are planned once for each connection. That
# may be in a database with hardly a row in it: the plan is to go from key to key by indexes all the
# same, for the rows come, and the plan stays.
_WAYS = ("enable_seqscan", "enable_hashjoin", "enable_mergejoin")
_OF_KEPT_PLANS = {"plan_cache_mode": "force_generic_plan", **dict.fromkeys(_WAYS, "off")}
_OF_OTHER_PLANS = {"plan_cache_mode": "auto", **dict.fromkeys(_WAYS, "on")}

# Where it can't do without what is switched off, Postgres before 18 takes it to cost ten thousand
# millions, and compiles the statement: 145 ms for one that takes 0.02 (15.18, a table of 50 rows).
_ON_CONNECT = "; ".join(
    [
        "set timezone = 'UTC'",
        "set jit = off",
        *(f"set {name} = '{value}'" for name, value in (_LIMITS | _OF_KEPT_PLANS).items()),
    ]
)

BEGIN = "; ".join(
    ["begin", *(f"set local {name} = '{value}'" for name, value in _OF_OTHER_PLANS.items())]
)

# Behind a pooler a connection is another one for each transaction: what is set must end with it.
# It goes with the `begin`, for no further round trip.
BEGIN_POOLED = "; ".join(
    ["begin", *(f"set local {name} = '{value}'" for name, value in _LIMITS.items())]
)


def _until_commit(settings: Mapping[str, str]) -> str:
    return "select " + ", ".join(
        f"set_config('{name}', '{value}', true)" for name, value in settings.items()
    )


# The same where statements are sent together, which no `begin` precedes.
SET_LIMITS = _until_commit(_LIMITS)
PLANNED_ANEW = _until_commit(_OF_OTHER_PLANS)

ANSWER_SECONDS = 12.0
"""The longest wait for an answer. Above the server's own limits, for where those can't help: it
is frozen, the network is gone without a word, or a pooler keeps a limit from being set."""

WITHOUT_LIMITS = "set lock_timeout = 0; set statement_timeout = 0"
"""For a connection of one's own, on which nothing else will run."""

STOP_SECONDS = 0.5
"""How long Postgres may take to stop a statement that nobody waits for; then the line is cut."""


class Connection(psycopg.AsyncConnection[Any]):
    """A connection on which nothing waits for ever, not even for a server that was frozen."""

    _late = False
    _cutting: asyncio.TimerHandle | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.answer_seconds: float | None = ANSWER_SECONDS
        """The longest wait for an answer here; None is without end."""
        self.prepares = False
        """Whether statements may be kept prepared (see `exchange`)."""
        self.prepared: dict[tuple[bytes, tuple[int, ...]], bytes] = {}
        """Names of prepared statements, by their text and their parameters' types."""
        self.keeps_plans = False
        """Whether statements are planned for good, unless they are preceded by `PLANNED_ANEW`."""
        self.names = itertools.count()
        """Numbers for further names: one that was used may be taken, whatever became of it."""

    async def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Wait for an answer; every statement, commit and rollback comes by here.

        Raises:
            psycopg.OperationalError: none came in time; the connection is closed then.
        """
        seconds = self.answer_seconds
        deadline = None
        if seconds is not None:
            deadline = asyncio.get_running_loop().call_later(seconds, self._give_up)
        try:
            if timeout is None:
                return await super().wait(gen, interval)
            return await super().wait(gen, interval, timeout)
        except psycopg.OperationalError as error:
            if self._late:
                raise psycopg.OperationalError(f"no answer in {seconds:g} s") from error
            raise
        finally:
            if deadline is not None:
                deadline.cancel()
            if self._cutting is not None:
                self._cutting.cancel()
                self._cutting = None

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """Ask Postgres to stop what runs here, and cut the line where it does not.

        The driver calls this when a caller was cancelled, and goes on to wait for the answer.
        """
        if self._cutting is None:
            self._cutting = asyncio.get_running_loop().call_later(STOP_SECONDS, self._cut)
        await super().cancel_safe(timeout=min(timeout, STOP_SECONDS))

    def _give_up(self) -> None:
        self._late = True
        stopping = asyncio.get_running_loop().create_task(self._stop())
        _stopping.add(stopping)
        stopping.add_done_callback(_stopping.discard)

    async def _stop(self) -> None:
        """Stop what runs, and the connection with it: a late request to stop may hit what is
        next."""
        with contextlib.suppress(psycopg.Error, OSError):
            await super().cancel_safe(timeout=STOP_SECONDS)
        self._cut()

    def _cut(self) -> None:
        """End the line from this side: whoever waits for an answer hears that it is closed."""
        with (
            contextlib.suppress(psycopg.Error, OSError),
            socket.socket(fileno=os.dup(self.pgconn.socket)) as line,
        ):
            line.shutdown(socket.SHUT_RDWR)


_stopping: set[asyncio.Task[None]] = set()
"""The loop itself keeps only weak references to tasks."""


class _Utc(TimestamptzLoader):
    """Times in UTC, whatever zone the server writes them in."""

    def load(self, data: Buffer) -> datetime:
        return super().load(data).astimezone(UTC)


async def connect(*arguments: Any, **options: Any) -> Connection:
    """Make a connection that is all this client's own, with its limits set.

    A caller that is cancelled meanwhile leaves nothing open: the driver keeps the socket of a
    connection whose making was cancelled until the garbage collector comes by, and Postgres waits
    a minute for the log-in to go on. So it is made all the same, and closed.
    """
    return await _whole(_connect(*arguments, **options))


async def connect_pooled(*arguments: Any, prepares: bool = False, **options: Any) -> Connection:
    """Make a connection to a transaction pooler: nothing of it outlasts a transaction.

    So nothing is set. A statement is prepared only where the pooler is one that sees to it that
    the next server knows it (`prepares`).
    """
    connection = await _whole(_connect_pooled(*arguments, **options))
    connection.prepares = prepares
    return connection


async def _whole(connecting: Coroutine[Any, Any, Connection]) -> Connection:
    making: asyncio.Task[Connection] = asyncio.create_task(connecting)
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        making.add_done_callback(_drop)
        raise


async def _connect(*arguments: Any, **options: Any) -> Connection:
    """One statement is one transaction already, so connections commit by themselves for good.

    Were it switched for each use, a caller that is cancelled at the switch would leave its
    connection lent out until the garbage collector comes by.
    """
    connection = await _bare(*arguments, **options)
    connection.prepares = connection.keeps_plans = True
    try:
        await connection.execute(_ON_CONNECT)
    except BaseException:
        await connection.close()
        raise
    return connection


async def _connect_pooled(*arguments: Any, **options: Any) -> Connection:
    connection = await _bare(*arguments, **options)
    if connection.info.parameter_status("TimeZone") not in {"UTC", "Etc/UTC"}:
        connection.adapters.register_loader("timestamptz", _Utc)
    return connection


async def _bare(*arguments: Any, **options: Any) -> Connection:
    """A connection on which the driver prepares nothing: after a rollback it would have Postgres
    forget all prepared statements, and ours with them."""
    return await Connection.connect(*arguments, autocommit=True, prepare_threshold=None, **options)


def _drop(making: asyncio.Task[Connection]) -> None:
    if not making.cancelled() and making.exception() is None:
        making.result().pgconn.finish()
