"""What erased users have left outside of the tables, noted until somebody has cleared it.

A note has no word of the user's in it, nor the name.
"""

import hashlib
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.store.database import Database

CLEAR_SECONDS = 30.0
"""How long a process may take to clear what one erasure has left; then it is another's turn."""

_NOTE = text(
    """/* traces note */
    insert into erasures (id, owner, names, hinted, clear_at)
    values (:id, :owner, cast(:names as uuid[]), cast(:hinted as uuid[]),
        clock_timestamp() + make_interval(secs => :seconds))
    """
)

_TAKE = text(
    """/* traces take */
    update erasures set clear_at = clock_timestamp() + make_interval(secs => :seconds)
    where id = (
        select id from erasures where clear_at <= clock_timestamp()
        order by clear_at limit 1 for update skip locked)
    returning id, owner, names, hinted
    """
)

_FORGET = text("/* traces forget */ delete from erasures where id = :id")


@dataclass(frozen=True, slots=True)
class Traces:
    """What the things are told by that one erasure has left.

    `owner` is the digest of the user's id. `names` are the ids of what was erased, `hinted` those
    of sessions that may still be hinted at.
    """

    id: UUID
    owner: bytes
    names: set[UUID]
    hinted: set[UUID]


def owner_of(user_id: str) -> bytes:
    """What stands for a user in a note that outlasts them for a while."""
    return hashlib.sha256(user_id.encode("utf-8", "surrogatepass")).digest()


async def note(connection: AsyncConnection, traces: Traces, settle_seconds: float) -> None:
    """Note them, in the transaction that deletes the last rows.

    Args:
        settle_seconds: before that nothing can be cleared for good.
    """
    noted = {
        "id": traces.id,
        "owner": traces.owner,
        "names": list(traces.names),
        "hinted": list(traces.hinted),
        "seconds": settle_seconds + CLEAR_SECONDS,
    }
    await connection.execute(_NOTE, noted)


async def take(db: Database) -> Traces | None:
    """Those that it is time to clear and nobody else is clearing, or None."""
    row = await db.row(_TAKE, {"seconds": CLEAR_SECONDS})
    return None if row is None else Traces(row.id, row.owner, set(row.names), set(row.hinted))


async def forget(db: Database, erasure_id: UUID) -> None:
    """They are cleared."""
    await db.run(_FORGET, {"id": erasure_id})
