"""Memories: writing them, finding those that may bear on a cue, keeping them to the branch.

Every statement names the user and the character (or the session under whose lock it runs), so rows
may be spread by either. Their vectors are `shared.store.vectors`'.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.encoding import dumps_text, well_formed
from shared.memories import DEFAULT_LANGUAGE, NewMemory, Standing, pairs
from shared.store.database import Database, Parameters
from shared.store.exchange import kept

CUE_CHARACTERS = 2_000
CUE_WORDS = 48
"""What is looked at of a cue: its beginning, and so many different words."""

# A speaker's name is a word of what they say: questions name people.
_WORDS = """to_tsvector(cast(m.language as regconfig),
                case when m.speaker = '' then m.text else m.speaker || ': ' || m.text end)
            || array_to_tsvector(m.pairs)"""

# Parts of the statement that ends a task; `fence` is its row under the lease. Turns that were on
# the branch which the new messages leave (after an undo) are recalled no more.
NEW_TURNS = f"""off_branch as (
        update memories m set on_branch = false
        from fence
        where m.session_id = :session and m.on_branch
            and m.no > coalesce(cast(:head as bigint), 0) and m.no < fence.first_message
    ), new_memories as (
        insert into memories (user_id, character_id, session_id, kind, no, part, sources, role,
            speaker, text, language, words, said_at, valid_from)
        select fence.user_id, fence.character_id, :session, 'turn', fence.first_message + m.ord - 1,
            m.part, array[fence.first_message + m.ord - 1], m.role, m.speaker, m.text, m.language,
            {_WORDS}, fence.at, fence.at
        from fence, jsonb_to_recordset(cast(:memories as jsonb)) as m(ord integer, part smallint,
            role text, speaker text, text text, language text, pairs text[])
    )"""

_ADD = text(
    f"""/* memories add */
    insert into memories (user_id, character_id, session_id, kind, no, part, sources, role,
        speaker, text, language, words, importance, said_at, valid_from, valid_to)
    select c.user_id, c.id, m.session_id, m.kind, m.no, m.part, m.sources, m.role, m.speaker,
        m.text, m.language, {_WORDS}, m.importance, coalesce(m.said_at, clock_timestamp()),
        coalesce(m.valid_from, m.said_at, clock_timestamp()), m.valid_to
    from characters c, rows from (
        jsonb_to_recordset(cast(:memories as jsonb)) as (session_id uuid, kind text, no bigint,
            part smallint, sources bigint[], role text, speaker text, text text, language text,
            pairs text[], importance real, said_at timestamptz, valid_from timestamptz,
            valid_to timestamptz)
    ) with ordinality as m(session_id, kind, no, part, sources, role, speaker, text, language,
        pairs, importance, said_at, valid_from, valid_to, ord)
    where c.id = :character and c.user_id = :user
        and (m.session_id is null or exists (
            select from sessions s where s.id = m.session_id and s.user_id = :user))
    order by m.ord
    returning id
    """
)

# The words of a cue, and each of them (and any) as a query, which finds it by bisection.
_ASKED = """said as materialized (
        select (array(
            select lexeme from unnest(to_tsvector(cast(:language as regconfig), :cue))
            union all select unnest(cast(:pairs as text[]))))[1:cast(:most_words as int)] as words
    ), asked as materialized (
        select words, queries, cast(array_to_string(queries, ' | ') as tsquery) as any_word
        from said cross join lateral (
            select array(
                select cast('''' || replace(replace(word, '\\', '\\\\'), '''', '''''')
                    || '''' as tsquery)
                from unnest(words) as word) as queries) as q
    )"""

# What may be recalled. Of a session that was taken back by an undo, nothing behind its head: there
# are few of those, so they are looked for once and not with each memory.
_RECALLABLE = """m.on_branch
            and (m.valid_to is null or m.valid_to > clock_timestamp())
            and (m.kind = 'turn' and m.session_id = :session
                 and m.no >= :shown_from) is not true
            and (m.session_id is null or m.no is null
                 or m.session_id <> all(array(
                    select s.id from sessions s
                    where s.character_id = :character and s.user_id = :user
                        and coalesce(s.head_message, 0) < s.next_message - 1))
                 or m.no <= (select s.head_message from sessions s where s.id = m.session_id))"""

# Which words of the cue a memory has is looked at only where it has any.
_COLUMNS = """m.id, m.session_id, m.kind, m.no, m.part, m.role, m.speaker, m.text, m.importance,
        m.said_at, length(m.words) as length,
        case when m.words @@ asked.any_word then array(
            select word from unnest(asked.words, asked.queries) as one(word, query)
            where m.words @@ query) end as hits,
        case when m.model = :model and vector_dims(m.vector) = :dimension
            then -(m.vector <#> cast(:vector as halfvec)) end as likeness"""

# A character with nothing to recall has one row without a memory, and so has a crowded one.
_RECALL = kept(
    f"""/* recall */
    with {_ASKED}, crowd as materialized (
        select exists (
            select from crowds where character_id = :character and user_id = :user) as crowded
    )
    select crowd.crowded, {_COLUMNS}
    from asked cross join crowd left join memories m
        on not crowd.crowded and m.user_id = :user and m.character_id = :character
            and {_RECALLABLE}
    """
)

# In a form that no index has: by that of a character Postgres would read a crowded one whole after
# all, for it expects few rows.
_OF_OWNER = "m.user_id || '' = :user and m.character_id::text = :character_name"

# A crowded character is not read whole. Its words are found by keys that are its own, its vectors
# by the graph, which knows no characters. The newest stand for all where z-scores are taken, and
# may have no keys yet.
_RECALL_SOME = f"""/* recall some */
    with {_ASKED}, worded as (
        select found.id from asked cross join unnest(asked.words) as word cross join lateral (
            select id from memories
            where keys is not null
                and keys @> array[hashtextextended(:character_name || word, 0)]
            limit :per_word) as found
    ), near as materialized (
        select m.id, m.session_id, m.no from memories m
        where m.keys is not null and vector_dims(m.vector) = {{dimension}}
            and {_OF_OWNER} and m.model = :model and m.on_branch
        order by (m.vector::halfvec({{dimension}})) <#> cast(:vector as halfvec({{dimension}}))
        limit :near
    ), beside as (
        select m.id from near
        join memories m on m.session_id = near.session_id
            and m.no between near.no - 1 and near.no + 1
    ), newest as (
        select id from memories
        where user_id = :user and character_id = :character order by said_at desc limit :newest
    )
    select {_COLUMNS}
    from (select id from worded union select id from near union select id from beside
          union select id from newest) as found
    join memories m on m.id = found.id
    cross join asked
    where {_OF_OWNER} and {_RECALLABLE}
    """

# Enough for the wanted ones behind what the graph finds of other characters.
_WANDER = text(
    """/* recall wander */
    select set_config('hnsw.iterative_scan', 'relaxed_order', true),
        set_config('hnsw.ef_search', '100', true)
    """
)

PER_WORD = 64
NEAR = 128
NEWEST = 100
"""How many memories of a crowded character are looked at: for each word of the cue, with their
neighbours by their vectors, and of the newest."""

_FOLLOW_BRANCH = text(
    """/* memories follow branch */
    with recursive path as (
        select m.no, m.parent from sessions s
        join messages m on m.session_id = s.id and m.no = s.head_message
        where s.id = :session and s.user_id = :user
        union all
        select m.no, m.parent from path p
        join messages m on m.session_id = :session and m.no = p.parent
    )
    update memories m set on_branch = not m.on_branch
    where m.session_id = :session and m.user_id = :user
        and m.on_branch <> (m.sources <@ array(select no from path))
    """
)

_DELETE_OF_SESSION = text(
    """/* memories delete */
    delete from memories where session_id = :session and user_id = :user
        and kind in ('turn', 'summary')
    """
)

# What a character has learned is its own, and outlives the conversation.
_RELEASE_OF_SESSION = text(
    """/* memories release */
    update memories set session_id = null, no = null, sources = '{}'
    where session_id = :session and user_id = :user
    """
)

_DELETE_OF_CHARACTER = [
    text(f"/* memories delete */ delete from {table} "
         "where character_id = :character and user_id = :user")
    for table in ("memories", "crowds")
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Vector:
    """A vector as text, `[0.1,...]`, of unit length, with the name of the model that made it."""

    model: str
    dimension: int
    text: str


@dataclass(frozen=True, slots=True)
class Cue:
    """What is to be recalled, by whom, and what they see already.

    `session_id` is the session that asks: of its turns, those from message `shown_from` on are in
    its window.
    """

    user_id: str
    character_id: UUID
    text: str
    language: str = DEFAULT_LANGUAGE
    session_id: UUID | None = None
    shown_from: int = 1


async def add(
    db: Database, user_id: str, character_id: UUID, memories: Sequence[NewMemory]
) -> list[UUID]:
    """Write memories of one character; their ids, none where it is not the user's."""
    async with db.transaction() as connection:
        return await add_within(connection, user_id, character_id, memories)


async def add_within(
    connection: AsyncConnection, user_id: str, character_id: UUID, memories: Sequence[NewMemory]
) -> list[UUID]:
    """The same, in the caller's transaction."""
    parameters = {
        "user": user_id,
        "character": character_id,
        "memories": dumps_text([_new(memory) for memory in memories]),
    }
    return list((await connection.execute(_ADD, parameters)).scalars())


def _new(memory: NewMemory) -> dict[str, Any]:
    return {
        "session_id": memory.session_id,
        "kind": memory.kind,
        "no": memory.no,
        "part": memory.part,
        "sources": list(memory.sources),
        "role": memory.role,
        "speaker": memory.speaker,
        "text": memory.text,
        "language": memory.language,
        "pairs": pairs(memory.text),
        "importance": memory.importance,
        "said_at": memory.said_at,
        "valid_from": memory.valid_from,
        "valid_to": memory.valid_to,
    }


async def recall(db: Database, cue: Cue, vector: Vector | None) -> list[Standing]:
    """The memories that may bear on a cue, in no order; of most characters these are all.

    Args:
        vector: the cue's. Memories whose vector is another model's are found by words alone.
    """
    said = well_formed(cue.text[:CUE_CHARACTERS]).replace("\0", "")
    parameters = {
        "user": cue.user_id,
        "character": cue.character_id,
        "cue": said,
        "language": cue.language,
        "pairs": pairs(said),
        "most_words": CUE_WORDS,
        "session": cue.session_id,
        "shown_from": cue.shown_from,
        "model": None if vector is None else vector.model,
        "dimension": 0 if vector is None else vector.dimension,
        "vector": None if vector is None else vector.text,
    }
    rows = await db.rows(_RECALL, parameters, binary=True)
    if rows[0].crowded:
        return await _recalled_of_crowd(db, cue, vector, parameters)
    return [Standing._make(row[1:]) for row in rows if row.id is not None]


async def _recalled_of_crowd(
    db: Database, cue: Cue, vector: Vector | None, parameters: Parameters
) -> list[Standing]:
    sizes = {"per_word": PER_WORD, "near": NEAR, "newest": NEWEST}
    parameters = {**parameters, **sizes, "character_name": str(cue.character_id)}
    statement = _recall_some(vector.dimension if vector else 0)
    _, found = await db.together((_WANDER, {}), (statement, parameters))
    return [Standing._make(row) for row in found.rows]


def _recall_some(dimension: int) -> TextClause:
    """An index on vectors is on those of one length, so that must stand in the statement."""
    return text(_RECALL_SOME.format(dimension=int(dimension) or 1))


async def follow_branch(connection: AsyncConnection, user_id: str, session_id: UUID) -> int:
    """After a session's head was moved: recall what lies on the new branch and nothing else.

    New messages need no call: the end of a task sees to what they leave behind.

    Returns:
        How many memories changed.
    """
    parameters = {"user": user_id, "session": session_id}
    return (await connection.execute(_FOLLOW_BRANCH, parameters)).rowcount


async def leave_session(connection: AsyncConnection, user_id: str, session_id: UUID) -> None:
    """What becomes of memories when their session is deleted: its words go, what was learned
    stays with the character."""
    parameters = {"user": user_id, "session": session_id}
    await connection.execute(_DELETE_OF_SESSION, parameters)
    await connection.execute(_RELEASE_OF_SESSION, parameters)


async def delete_of_character(
    connection: AsyncConnection, user_id: str, character_id: UUID
) -> None:
    """Delete all memories of a character."""
    parameters = {"user": user_id, "character": character_id}
    for statement in _DELETE_OF_CHARACTER:
        await connection.execute(statement, parameters)
