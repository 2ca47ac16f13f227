"""The tables as tests look at them: whole."""

from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import text

from shared.store.database import Database

TABLES = (
    "consolidation_lines",
    "consolidation_batches",
    "erasures",
    "crowds",
    "memories",
    "lineage",
    "retention",
    "early_cancels",
    "events",
    "messages",
    "steps",
    "tasks",
    "sessions",
    "souls",
    "characters",
    "stories",
    "catalog",
    "api_keys",
    "usage",
    "spending",
    "budgets",
)
"""All tables of the schema, those that refer to others first."""


async def dump(db: Database) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table."""
    found = {}
    for table in TABLES:
        rows = await db.rows(text(f"select to_jsonb(t) from {table} t order by to_jsonb(t)"))
        found[table] = [row[0] for row in rows]
    return found


def empty(url: str) -> None:
    """Delete every row, which is ten times quicker than another database."""
    with psycopg.connect(url) as connection:
        for table in TABLES:
            connection.execute(sql.SQL("delete from {}").format(sql.Identifier(table)))
