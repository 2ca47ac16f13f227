"""Changing a schema that others are using: one statement, one transaction, no queue behind it."""

import re
import time

import structlog
from alembic import op
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

log = structlog.get_logger(__name__)

LOCK_SECONDS = 1
"""How long a statement waits for a table. Whoever comes meanwhile waits behind it."""

PAUSE_SECONDS = 2.0
TRIES = 150

_INDEX = re.compile(r"create index concurrently if not exists (\w+)", re.IGNORECASE)
_LOCKED = {"55P03", "40P01"}
"""SQLSTATEs: the lock was not to be had in time, or a deadlock was broken up."""

_INVALID = text(
    """
    select 1 from pg_index i join pg_class c on c.oid = i.indexrelid
    where c.relname = :name and pg_table_is_visible(c.oid) and not i.indisvalid
    """
)


def run_apart(statements: str) -> None:
    """Run each statement (they are separated by semicolons) as a transaction of its own.

    A migration that is broken off has done some of them and is run again from its start, so each
    must say `if not exists` or do no harm the second time. An index is built `concurrently`.

    Raises:
        OperationalError: a table could not be locked for five minutes; somebody's transaction
            stays open for that long.
    """
    context = op.get_context()
    connection = context.connection
    assert connection is not None
    with context.autocommit_block():
        for statement in filter(None, (part.strip() for part in statements.split(";"))):
            if (index := _INDEX.match(statement)) is not None:
                _build(connection, index[1], statement)
            else:
                _run(connection, statement)
        connection.execute(text("reset lock_timeout"))


def _build(connection: Connection, name: str, statement: str) -> None:
    """Build an index. Reads and writes go on meanwhile, so it may wait for as long as it takes."""
    connection.execute(text("set lock_timeout = 0"))
    if connection.execute(_INVALID, {"name": name}).first() is not None:
        # What a build that was broken off left behind: kept up to date, but never used.
        connection.execute(text(f'drop index concurrently "{name}"'))
    connection.execute(text(statement))


def _run(connection: Connection, statement: str) -> None:
    connection.execute(text(f"set lock_timeout = '{LOCK_SECONDS}s'"))
    for left in reversed(range(TRIES)):
        try:
            connection.execute(text(statement))
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) not in _LOCKED or not left:
                raise
            table = statement.partition("\n")[0]
            log.warning("a table is in use, trying again", statement=table)
            time.sleep(PAUSE_SECONDS)
        else:
            return
