"""Memories: writing them, keeping them to the branch, and what becomes of them.

Every statement names the user and the character (or the session under whose lock it runs), so rows
may be spread by either. They are found by `shared.store.recall`; their vectors are
`shared.store.vectors`'.
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.encoding import dumps_text
from shared.memories import NewMemory, words_of
from shared.store.database import Database

WORDS = """to_tsvector(cast(m.language as regconfig), coalesce(m.spelled,
                case when m.speaker = '' then m.text else m.speaker || ': ' || m.text end))
            || array_to_tsvector(m.signs)"""
"""The words of a new memory `m`, which has those of `shared.memories.words_of`."""

KEY = "hashtextextended({character} || {word}, 0)"
"""By which the memories of a crowded character are found that have a word; its id is a text."""

_OF_MEMORY = KEY.format(character="m.character_id::text", word="word")
KEYS = f"array(select {_OF_MEMORY} from unnest(tsvector_to_array({{words}})) as word)"
"""The keys of a memory `m` by its words."""

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
            {WORDS}, fence.at, fence.at
        from fence, jsonb_to_recordset(cast(:memories as jsonb)) as m(ord integer, part smallint,
            role text, speaker text, text text, language text, spelled text, signs text[])
    )"""

_ADD = text(
    f"""/* memories add */
    insert into memories (user_id, character_id, session_id, kind, no, part, sources, role,
        speaker, text, language, words, importance, said_at, valid_from, valid_to)
    select c.user_id, c.id, m.session_id, m.kind, m.no, m.part, m.sources, m.role, m.speaker,
        m.text, m.language, {WORDS}, m.importance, coalesce(m.said_at, clock_timestamp()),
        coalesce(m.valid_from, m.said_at, clock_timestamp()), m.valid_to
    from characters c, rows from (
        jsonb_to_recordset(cast(:memories as jsonb)) as (session_id uuid, kind text, no bigint,
            part smallint, sources bigint[], role text, speaker text, text text, language text,
            spelled text, signs text[], importance real, said_at timestamptz,
            valid_from timestamptz, valid_to timestamptz)
    ) with ordinality as m(session_id, kind, no, part, sources, role, speaker, text, language,
        spelled, signs, importance, said_at, valid_from, valid_to, ord)
    where c.id = :character and c.user_id = :user
        and (m.session_id is null or exists (
            select from sessions s where s.id = m.session_id and s.user_id = :user))
    order by m.ord
    returning id
    """
)

_DELETE_OF_SESSION = text(
    """/* memories delete */
    delete from memories where session_id = :session and user_id = :user
        and kind in ('turn', 'summary')
    """
)

# What a character has learned is its own, and outlives the conversation. Whoever holds it need not
# read it again: where it was learned is asked of turns and summaries only.
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
        **words_of(memory.speaker, memory.text),
        "importance": memory.importance,
        "said_at": memory.said_at,
        "valid_from": memory.valid_from,
        "valid_to": memory.valid_to,
    }


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
