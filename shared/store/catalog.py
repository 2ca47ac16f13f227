"""What workers announce and the gateway offers: agents, stories, and the compiled stories."""

from collections.abc import Sequence

from sqlalchemy import text

from shared.encoding import dumps_text
from shared.errors import NotFound
from shared.records import CatalogEntry
from shared.store.database import Database

_ANNOUNCE = text(
    """/* catalog announce */
    insert into catalog (kind, name, title, description, details)
    select distinct on (kind, name) kind, name, title, description, details
    from rows from (
        jsonb_to_recordset(cast(:entries as jsonb))
            as (kind text, name text, title text, description text, details jsonb)
    ) with ordinality as x(kind, name, title, description, details, ord)
    order by kind, name, ord desc
    on conflict (kind, name) do update set title = excluded.title,
        description = excluded.description, details = excluded.details,
        announced_at = clock_timestamp()
    """
)

_ALL = text(
    """/* catalog all */
    select kind, name, title, description, details from catalog order by kind, name
    """
)

_KEEP_STORY = text(
    """/* story keep */
    insert into stories (hash, name, compiled) values (:hash, :name, :compiled)
    on conflict (hash) do nothing
    """
)

_STORY = text("/* story */ select compiled from stories where hash = :hash")


async def announce(db: Database, entries: Sequence[CatalogEntry]) -> None:
    """Say what this worker can run; what was said before under the same names is replaced."""
    await db.run(_ANNOUNCE, {"entries": dumps_text(list(entries))})


async def entries(db: Database) -> list[CatalogEntry]:
    """All agents and stories, by kind and name."""
    return [CatalogEntry(*row) for row in await db.rows(_ALL)]


async def keep_story(db: Database, story_hash: str, name: str, compiled: str) -> None:
    """Keep a compiled story for as long as a session may need it."""
    await db.run(_KEEP_STORY, {"hash": story_hash, "name": name, "compiled": compiled})


async def compiled_story(db: Database, story_hash: str) -> str:
    """A compiled story by its hash; raises NotFound where it was never kept."""
    row = await db.row(_STORY, {"hash": story_hash})
    if row is None:
        raise NotFound("no such version of a story")
    return str(row.compiled)
