"""What workers announce and the gateway offers: agents, stories, and the compiled stories."""

from collections.abc import Sequence

from sqlalchemy import text

from shared.encoding import dumps_text
from shared.errors import NotFound
from shared.records import CatalogEntry
from shared.store.database import Database

_INSERT = """insert into catalog (kind, name, title, description, details)
    select distinct on (kind, name) kind, name, title, description, details
    from rows from (
        jsonb_to_recordset(cast(:entries as jsonb))
            as (kind text, name text, title text, description text, details jsonb)
    ) with ordinality as x(kind, name, title, description, details, ord)
    order by kind, name, ord desc
    on conflict (kind, name) do update set announced_at = clock_timestamp()"""

_ANNOUNCE = text(
    f"""/* catalog announce */
    {_INSERT}, title = excluded.title,
        description = excluded.description, details = excluded.details
    """
)

# What is there stays as the worker that started last has said it: of two releases, each of which
# says again and again what it has, none takes the other's words back. A time ahead of now is from
# before the clock was set back.
_ANNOUNCE_AGAIN = text(
    f"""/* catalog announce again */
    {_INSERT}
    where catalog.announced_at not between
        clock_timestamp() - make_interval(secs => :every) and clock_timestamp()
    """
)

# Measured from the newest announcement: while no worker is there, all stays on offer, and what is
# accepted waits for one.
_ALL = text(
    """/* catalog all */
    select kind, name, title, description, details from catalog
    where least(announced_at, clock_timestamp()) > (
        select max(least(announced_at, clock_timestamp())) from catalog
        ) - make_interval(secs => :offered)
    order by kind, name
    """
)

ANNOUNCED = """exists (select from catalog where kind = 'agent' and name = :agent
                and announced_at > clock_timestamp() - make_interval(secs => :seconds))"""
"""Whether a worker has announced the agent within so many seconds."""

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


async def announce_again(db: Database, entries: Sequence[CatalogEntry], *, every: float) -> int:
    """Say that this worker is still there; how many entries nobody had said within `every` seconds.

    What others have said of them meanwhile stays.
    """
    return await db.run(_ANNOUNCE_AGAIN, {"entries": dumps_text(list(entries)), "every": every})


async def entries(db: Database, *, offered: float) -> list[CatalogEntry]:
    """The agents and stories on offer, by kind and name.

    Args:
        offered: so many seconds behind the newest announcement an entry is on offer no more.
    """
    return [CatalogEntry(*row) for row in await db.rows(_ALL, {"offered": offered})]


async def keep_story(db: Database, story_hash: str, name: str, compiled: str) -> None:
    """Keep a compiled story for as long as a session may need it."""
    await db.run(_KEEP_STORY, {"hash": story_hash, "name": name, "compiled": compiled})


async def compiled_story(db: Database, story_hash: str) -> str:
    """A compiled story by its hash; raises NotFound where it was never kept."""
    row = await db.row(_STORY, {"hash": story_hash})
    if row is None:
        raise NotFound("no such version of a story")
    return str(row.compiled)
