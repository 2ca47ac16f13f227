"""The vectors of memories: which are missing, writing them, and characters too crowded to be read
whole.

These statements are of all users, like the sweep's: each database has its own embedding process.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text

from shared.store.database import AnyRow, Database
from shared.store.memories import KEYS
from shared.store.recall import CROWD, LONGEST_INDEXED

_COLUMNS = "id, user_id, character_id, speaker, said_at, text"

# From a random place on, so that two processes seldom take the same ones; where they do, the
# second one's vectors change nothing.
_MISSING = text(
    f"""/* vectors missing */
    select {_COLUMNS} from memories where vector is null and id > :after order by id limit :limit
    """
)

_STALE = text(
    f"""/* vectors stale */
    select {_COLUMNS} from memories
    where vector is not null and id > :after
        and (model <> :model or vector_dims(vector) <> :dimension)
    order by id limit :limit
    """
)

# Ids are random, so the first ones are a sample.
_SAMPLE = text(
    """/* vectors sample */
    select model, vector_dims(vector) as dimension from memories
    where id in (select id from memories order by id limit 1000) and vector is not null
    group by 1, 2 order by count(*) desc
    """
)

_KEYS = KEYS.format(words="m.words")

_PUT = text(
    f"""/* vectors put */
    update memories m set vector = cast(v.vector as halfvec), model = :model,
        keys = case when m.keys is not null or exists (
            select from crowds c where c.character_id = m.character_id) then {_KEYS} end
    from unnest(cast(:ids as uuid[]), cast(:texts as text[]), cast(:vectors as text[]))
        as v(id, text, vector)
    where m.id = v.id and m.text = v.text
    """
)

_IS_CROWDED = text(
    """/* crowd check */
    select count(*) >= :crowd and not exists (
        select from crowds where character_id = :character and user_id = :user)
    from (select from memories where user_id = :user and character_id = :character
          limit :crowd) as first_ones
    """
)

# Whoever deletes the character deletes this row as well: so it may only be made before that.
_CROWD = text(
    """/* crowd */
    insert into crowds (character_id, user_id)
    select id, user_id from characters where id = :character and user_id = :user for key share
    on conflict do nothing
    """
)

_GIVE_KEYS = text(
    f"""/* crowd keys */
    update memories m set keys = {_KEYS}
    where m.id in (
        select id from memories
        where user_id = :user and character_id = :character and keys is null limit :limit)
    """
)

# Among the newest, for all others have theirs.
_GIVE_LATE_KEYS = text(
    f"""/* crowd late keys */
    update memories m set keys = {_KEYS}
    where m.id in (
        select id from (
            select id, keys from memories
            where user_id = :user and character_id = :character
            order by said_at desc limit :newest) as newest
        where keys is null)
        and exists (select from crowds where character_id = :character and user_id = :user)
    """
)


@dataclass(frozen=True, slots=True)
class Unembedded:
    """A memory that is to have a vector."""

    id: UUID
    user_id: str
    character_id: UUID
    speaker: str
    said_at: datetime
    text: str


@dataclass(frozen=True, slots=True)
class Found:
    """A model whose vectors are there, and how many numbers they have."""

    model: str
    dimension: int


async def missing(db: Database, *, after: UUID, limit: int) -> list[Unembedded]:
    """Memories without a vector, by id from `after` on."""
    return _memories(await db.rows(_MISSING, {"after": after, "limit": limit}))


async def stale(
    db: Database, model: str, dimension: int, *, after: UUID, limit: int
) -> list[Unembedded]:
    """Memories with another model's vector, or one of another length, by id from `after` on."""
    parameters = {"model": model, "dimension": dimension, "after": after, "limit": limit}
    return _memories(await db.rows(_STALE, parameters))


def _memories(rows: Sequence[AnyRow]) -> list[Unembedded]:
    return [Unembedded(*row) for row in rows]


async def sample(db: Database) -> list[Found]:
    """Whose vectors there are, the most frequent first; from a sample of the memories."""
    return [Found(*row) for row in await db.rows(_SAMPLE)]


async def put(
    db: Database, model: str, memories: Sequence[Unembedded], vectors: Sequence[str]
) -> int:
    """Write vectors (as text, of unit length); how many memories still had the same words."""
    parameters = {
        "model": model,
        "ids": [memory.id for memory in memories],
        "texts": [memory.text for memory in memories],
        "vectors": list(vectors),
    }
    return await db.run(_PUT, parameters)


async def crowd(db: Database, user_id: str, character_id: UUID, *, crowd: int = CROWD) -> bool:
    """Give a character's memories keys if there have come to be many; whether that was so."""
    parameters = {"user": user_id, "character": character_id}
    found = await db.row(_IS_CROWDED, parameters | {"crowd": crowd})
    if found is None or not found[0]:
        return False
    await _give_keys(db, user_id, character_id)
    await db.run(_CROWD, parameters)
    # Those that got their vector in between.
    await _give_keys(db, user_id, character_id)
    return True


async def tend(db: Database, user_id: str, character_id: UUID) -> None:
    """See to a character of many memories, whether they have vectors or not: to all of them when
    there have come to be many, later to the newest."""
    if not await crowd(db, user_id, character_id):
        parameters = {"user": user_id, "character": character_id, "newest": CROWD}
        await db.run(_GIVE_LATE_KEYS, parameters)


async def _give_keys(db: Database, user_id: str, character_id: UUID) -> None:
    """In small steps: with its keys a memory enters the graph, at a millisecond or two each."""
    parameters = {"user": user_id, "character": character_id, "limit": 500}
    while await db.run(_GIVE_KEYS, parameters):
        pass


_BUILT = """
    select i.indisvalid or exists (
        select from pg_stat_progress_create_index p where p.index_relid = i.indexrelid)
    from pg_index i join pg_class c on c.oid = i.indexrelid
    where c.relname = %s and pg_table_is_visible(c.oid)
"""
"""Whether an index is there for use, or soon will be; no row where there is none of that name."""


async def index(db: Database, dimension: int) -> None:
    """Build the graph for vectors of this length, if there is none; others go on meanwhile.

    It takes as long as it takes: beside the work itself it waits for each transaction that is older
    than it, and a backup is one.
    """
    if not 1 <= dimension <= LONGEST_INDEXED:
        return
    async with db.raw(limited=False) as connection:
        name = f"memories_near_{dimension:d}"
        built = await (await connection.execute(_BUILT, [name])).fetchone()
        if built is not None and built[0]:
            return  # without the lock that would wait for a vacuum
        if built is not None:
            # What a build that was broken off left behind: kept up to date, but never used.
            await connection.execute(f"drop index concurrently if exists {name}")
        await connection.execute(
            f"create index concurrently if not exists {name} on memories "
            f"using hnsw ((vector::halfvec({dimension:d})) halfvec_ip_ops) "
            f"where keys is not null and vector_dims(vector) = {dimension:d}"
        )
