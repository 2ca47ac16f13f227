"""One exchange with Postgres: any number of statements sent at once, and all of their answers.

What is sent together is one transaction, which Postgres begins with the first statement and
commits behind the last: one round trip, and no moment at which Postgres holds locks and waits for
the client to go on. In it each statement sees what was committed before it, not before the first.
"""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import abc
from psycopg.abc import PQGen
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.generators import fetch_many, send
from psycopg.pq import ConnStatus, ExecStatus, Format
from psycopg.pq.abc import PGconn, PGresult
from sqlalchemy import TextClause, text

from shared.store.connection import PLANNED_ANEW, Connection

MOST_PREPARED = 200
"""Statements that one connection keeps prepared, each for one choice of its parameters' types."""

_PARAMETER = re.compile(r"(?<![:\w\\]):(\w+)(?!:)")

_GOOD = {ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK}


class Row(tuple[Any, ...]):
    """A row; its columns are attributes as well."""

    __slots__ = ()
    _names: tuple[str, ...]

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def _asdict(self) -> dict[str, Any]:
        return dict(zip(self._names, self, strict=True))


@dataclass(frozen=True, slots=True)
class Result:
    """What a statement gave: its rows, and how many rows it touched."""

    rows: Sequence[Row]
    touched: int

    @property
    def first(self) -> Row | None:
        """Its first row, or None."""
        return self.rows[0] if self.rows else None


_KEPT = {PLANNED_ANEW}


def kept(sql: str) -> TextClause:
    """A statement that runs all the time: each connection has Postgres keep it, with its plan.

    The plan is made once, without the values of its parameters, and goes by indexes wherever it
    can, so the statement has to be one that finds rows by their keys: no filter that may be null,
    no limit that decides the way.
    """
    clause = text(sql)
    _KEPT.add(clause.text)
    return clause


async def exchange(
    connection: Connection,
    statements: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    binary: bool = False,
) -> list[Result]:
    """Carry statements out in one transaction and one round trip; none is open on the connection.

    Args:
        statements: each with the values of its `:name` parameters.
        binary: have the answers as Postgres keeps them, which is less work for many rows.

    Raises:
        psycopg.Error: the first one that failed; nothing of any was committed.
        KeyError: a parameter has no value.
    """
    transformer = Transformer(connection)
    first = 0
    if connection.keeps_plans and not _KEPT.issuperset(sql for sql, _ in statements):
        statements, first = [(PLANNED_ANEW, {}), *statements], 1
    requests = [
        _request(connection, transformer, *statement, binary=binary) for statement in statements
    ]
    pgconn = connection.pgconn
    pgconn.enter_pipeline_mode()
    try:
        groups = await connection.wait(_talk(pgconn, requests))
    finally:
        _leave(pgconn)
    return _results(connection, transformer, requests, groups)[first:]


@dataclass(frozen=True, slots=True)
class _Request:
    """A statement as it is sent; `name` is that of the prepared one, `new` where it is not yet."""

    sql: bytes
    values: Sequence[Any]
    types: tuple[int, ...]
    formats: Sequence[Any]
    name: bytes
    new: bool
    form: Format

    def send(self, pgconn: PGconn) -> None:
        """Put it into the connection's buffer."""
        if self.new:
            pgconn.send_prepare(self.name, self.sql, self.types)
        if self.name:
            pgconn.send_query_prepared(self.name, self.values, self.formats, self.form)
        else:
            pgconn.send_query_params(self.sql, self.values, self.types, self.formats, self.form)


def _request(
    connection: Connection,
    transformer: abc.Transformer,
    statement: str,
    parameters: Mapping[str, Any],
    *,
    binary: bool,
) -> _Request:
    sql, names = _positional(statement)
    given = [parameters[name] for name in names]
    values = transformer.dump_sequence(given, [PyFormat.AUTO] * len(given))
    types, formats = transformer.types or (), transformer.formats or ()
    name, new = _prepared(connection, sql, types) if statement in _KEPT else (b"", False)
    form = Format.BINARY if binary else Format.TEXT
    return _Request(sql, values, types, formats, name, new, form)


@functools.lru_cache(maxsize=1000)
def _positional(statement: str) -> tuple[bytes, tuple[str, ...]]:
    """A statement with $1, $2, ... for its parameters, and their names in that order."""
    names: dict[str, int] = {}

    def numbered(found: re.Match[str]) -> str:
        return f"${names.setdefault(found[1], len(names) + 1)}"

    return _PARAMETER.sub(numbered, statement).replace("\\:", ":").encode(), tuple(names)


def _prepared(connection: Connection, sql: bytes, types: tuple[int, ...]) -> tuple[bytes, bool]:
    """The name under which the statement is prepared, empty where it is not; whether it is new."""
    if not connection.prepares:
        return b"", False
    key = (sql, types)
    known = connection.prepared.get(key)
    if known is not None:
        return known, False
    if len(connection.prepared) >= MOST_PREPARED:
        return b"", False
    return b"fireside_%d" % next(connection.names), True


def _talk(pgconn: PGconn, requests: Sequence[_Request]) -> PQGen[list[list[PGresult]]]:
    """Send all in one piece, so that a process which is frozen leaves nothing half said."""
    for request in requests:
        request.send(pgconn)
    pgconn.pipeline_sync()
    yield from send(pgconn)
    groups: list[list[PGresult]] = []
    while True:
        group = yield from fetch_many(pgconn)
        if not group:
            raise psycopg.OperationalError("an answer of Postgres is missing")
        if group[0].status == ExecStatus.PIPELINE_SYNC:
            return groups
        groups.append(group)


def _leave(pgconn: PGconn) -> None:
    """Have the connection as it was; one on which answers are still to come is of no use."""
    try:
        if pgconn.status == ConnStatus.OK:
            pgconn.exit_pipeline_mode()
    except psycopg.OperationalError:
        pgconn.finish()


def _results(
    connection: Connection,
    transformer: abc.Transformer,
    requests: Sequence[_Request],
    groups: Sequence[list[PGresult]],
) -> list[Result]:
    _note_prepared(connection, requests, groups)
    for group in groups:
        if group[-1].status == ExecStatus.FATAL_ERROR:
            raise error_from_result(group[-1], encoding=connection.info.encoding)
        if group[-1].status not in _GOOD:
            raise psycopg.InternalError(f"unexpected result: {group[-1].status}")
    results = iter(groups)
    return [_result(transformer, request, results) for request in requests]


def _note_prepared(
    connection: Connection, requests: Sequence[_Request], groups: Sequence[list[PGresult]]
) -> None:
    """Remember what is prepared now: that stays, also where the statement itself was refused."""
    results = iter(groups)
    for request in requests:
        made = next(results, None) if request.new else None
        if made is not None and made[-1].status == ExecStatus.COMMAND_OK:
            connection.prepared[request.sql, request.types] = request.name
        next(results, None)


def _result(
    transformer: abc.Transformer, request: _Request, results: Iterator[list[PGresult]]
) -> Result:
    if request.new:
        next(results)
    result = next(results)[-1]
    touched = result.command_tuples or 0
    if result.status != ExecStatus.TUPLES_OK:
        return Result((), touched)
    columns = tuple((result.fname(number) or b"").decode() for number in range(result.nfields))
    transformer.set_pgresult(result)
    return Result(transformer.load_rows(0, result.ntuples, _row_type(columns)), touched)


@functools.lru_cache(maxsize=1000)
def _row_type(columns: tuple[str, ...]) -> type[Row]:
    places = {name: property(itemgetter(no)) for no, name in enumerate(columns)}
    return type("Row", (Row,), {"__slots__": (), "_names": columns, **places})
