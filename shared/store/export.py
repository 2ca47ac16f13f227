"""All rows of one user, table by table, a page at a time."""

from collections.abc import AsyncIterator
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import TextClause, text

from shared.store.database import Database
from shared.store.owned import ALL, OF_CHARACTERS, OF_SESSIONS, Owned

ROWS_AT_ONCE = 500

_IDS = {
    "session_id": text("/* export sessions */ select id from sessions where user_id = :user"),
    "character_id": text("/* export characters */ select id from characters where user_id = :user"),
}


async def rows(
    db: Database, user_id: str, *, at_once: int = ROWS_AT_ONCE
) -> AsyncIterator[tuple[str, str]]:
    """Each row as the name of its table and JSON text; all rows of a table come together.

    Tables without a row of the user do not come. What is written meanwhile may come or not.

    Raises:
        StoreUnavailable: Postgres did not answer; what came before is not all.
    """
    for table in ALL:
        async for owner in _owners(db, user_id, table):
            async for row in _of_owner(db, table, user_id, owner, at_once):
                yield table.name, row


async def _owners(db: Database, user_id: str, table: Owned) -> AsyncIterator[UUID | None]:
    if table in OF_SESSIONS or table in OF_CHARACTERS:
        for row in await db.rows(_IDS[table.by], {"user": user_id}):
            yield row.id
    else:
        yield None


async def _of_owner(
    db: Database, table: Owned, user_id: str, owner: UUID | None, at_once: int
) -> AsyncIterator[str]:
    whose = {"user": user_id, "owner": owner, "limit": at_once, "hidden": list(table.hidden)}
    after: dict[str, Any] = {f"k{n}": None for n in range(len(table.keys))}
    while True:
        page = await db.rows(_page(table), whose | after)
        for row in page:
            yield row.row
        if len(page) < at_once:
            return
        after = {name: getattr(page[-1], name) for name in after}


@cache
def _page(table: Owned) -> TextClause:
    columns = ", ".join(f"t.{name}" for name, _ in table.keys)
    last = ", ".join(f"cast(:k{n} as {type_})" for n, (_, type_) in enumerate(table.keys))
    shown = ", ".join(f"t.{name}::text as k{n}" for n, (name, _) in enumerate(table.keys))
    return text(
        f"""/* export {table.name} */
        select (to_jsonb(t) - cast(:hidden as text[]))::text as row, {shown}
        from {table.name} t
        where {table.whose} and (cast(:k0 as text) is null or ({columns}) > ({last}))
        order by {columns} limit :limit
        """
    )
