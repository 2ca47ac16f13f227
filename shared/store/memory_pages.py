"""Memories as their owner sees them: pages, a search by words, one of them, changing, deleting."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text

from shared.errors import NotFound
from shared.memories import DEFAULT_LANGUAGE, Memory, MemoryKind, words_of
from shared.store.database import AnyRow, Database
from shared.store.memories import KEYS
from shared.store.pages import check_before
from shared.unsegmented import asked_signs, spelled

QUERY_CHARACTERS = 500
_QUERY_WORDS = 32

_COLUMNS = """m.id, m.character_id, m.session_id, m.kind, m.no, m.part, m.sources, m.role,
    m.speaker, m.text, m.language, m.importance, m.said_at, m.valid_from, m.valid_to, m.on_branch,
    m.created_at"""

# The character's own memories come from an index that has them in this order, so that a page of a
# user with a hundred thousand reads a page of each character's and no more.
_WANTED = """m.user_id = :user and m.character_id = c.id
            and (cast(:kinds as text[]) is null or m.kind = any(cast(:kinds as text[])))
            and (cast(:session as uuid) is null or m.session_id = cast(:session as uuid))
            and (:closed or m.valid_to is null or m.valid_to > clock_timestamp())"""

_PAGE = text(
    f"""/* memories page */
    with last as materialized (
        select said_at, id from memories where id = :before and user_id = :user
    )
    select {_COLUMNS}
    from characters c cross join lateral (
        select * from memories m
        where {_WANTED}
            and (cast(:before as uuid) is null
                or (m.said_at, m.id) < (select said_at, id from last))
        order by m.said_at desc, m.id desc limit :limit) as m
    where c.user_id = :user
        and (cast(:character as uuid) is null or c.id = cast(:character as uuid))
    order by m.said_at desc, m.id desc limit :limit
    """
)

# Memories of a language without stems have words as they stand, so they are asked for like that,
# too; but not those that the query's language leaves out.
_WORDS = text(
    """/* memories query */
    select array(
        select lexeme from unnest(to_tsvector(cast(:language as regconfig), :text))
        union all select lexeme from unnest(to_tsvector('simple', :text))
            where length(to_tsvector(cast(:language as regconfig), lexeme)) > 0
        union all select unnest(cast(:signs as text[])))
    """
)

_SEARCH = text(
    f"""/* memories search */
    select {_COLUMNS}
    from memories m join characters c on c.id = m.character_id and c.user_id = m.user_id
    where {_WANTED} and (cast(:character as uuid) is null or c.id = cast(:character as uuid))
        and m.words @@ cast(:query as tsquery)
    order by ts_rank(m.words, cast(:query as tsquery)) desc, m.said_at desc, m.id
    limit :limit
    """
)

_ONE = text(
    f"/* memory */ select {_COLUMNS} from memories m where m.id = :memory and m.user_id = :user"
)

# A vector of other words would find what is not there any more. Until the new one comes, words do.
# Whoever holds the memory as it was reads it again, for its character has changed; that is locked
# first, as where it is deleted.
_CHANGE = text(
    f"""/* memory change */
    with words as materialized (
        select case when cast(:text as text) is not null then
            to_tsvector(cast(m.language as regconfig), coalesce(cast(:spelled as text),
                case when m.speaker = ''
                then cast(:text as text) else m.speaker || ': ' || cast(:text as text) end))
            || array_to_tsvector(cast(:signs as text[])) end as new
        from memories m where m.id = :memory and m.user_id = :user
    ), owner as (
        update characters c set updated_at = clock_timestamp()
        from memories m
        where m.id = :memory and m.user_id = :user and c.id = m.character_id
            and c.user_id = :user
        returning c.id
    )
    update memories m set
        text = coalesce(cast(:text as text), m.text),
        words = coalesce(words.new, m.words),
        vector = case when words.new is null then m.vector end,
        model = case when words.new is null then m.model end,
        keys = case when words.new is null or m.keys is null then m.keys
            else {KEYS.format(words="words.new")} end,
        importance = coalesce(cast(:importance as real), m.importance),
        valid_to = case
            when cast(:valid as boolean) is null then m.valid_to
            when cast(:valid as boolean) then null
            else greatest(m.valid_from, coalesce(m.valid_to, clock_timestamp())) end
    from words left join owner on true
    where m.id = :memory and m.user_id = :user
    returning {_COLUMNS}
    """
)

_DELETE = text("/* memory delete */ delete from memories where id = :memory and user_id = :user")

# What was said so far would bring back what goes with them. Whoever reads it already goes on from
# where the session no longer is, and so changes nothing.
_READ_NO_MORE = text(
    """/* memories read no more */
    update sessions set consolidated = next_message - 1, consolidation_tries = 0
    where id in (
        select id from sessions
        where character_id = :character and user_id = :user and consolidated < next_message - 1
        order by id for no key update)
    """
)

_DELETE_SOME = text(
    """/* memories delete some */
    delete from memories where ctid = any(array(
        select ctid from memories where user_id = :user and character_id = :character limit 5000))
    """
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which memories are asked for; None stands for all. `closed`: those, too, that are not true
    any more."""

    character_id: UUID | None = None
    session_id: UUID | None = None
    kinds: Sequence[MemoryKind] | None = None
    closed: bool = False

    def parameters(self, user_id: str) -> dict[str, Any]:
        """What a statement with these conditions takes."""
        return {
            "user": user_id,
            "character": self.character_id,
            "session": self.session_id,
            "kinds": None if self.kinds is None else list(self.kinds),
            "closed": self.closed,
        }


async def page(
    db: Database, user_id: str, wanted: Wanted, *, limit: int, before: UUID | None = None
) -> list[Memory]:
    """A user's memories, the newest first, from the one after `before` on.

    Raises:
        InvalidRequest: `before` was deleted meanwhile, and with it its place among them.
    """
    parameters = wanted.parameters(user_id) | {"limit": limit, "before": before}
    rows = await db.rows(_PAGE, parameters)
    if not rows and before is not None:
        await check_before(get(db, user_id, before), "memory")
    return [Memory(*row) for row in rows]


async def search(
    db: Database,
    user_id: str,
    wanted: Wanted,
    query: str,
    *,
    limit: int,
    language: str = DEFAULT_LANGUAGE,
) -> list[Memory]:
    """A user's memories that have words of a query, the best first.

    Args:
        language: the text search configuration by which the query's words are read.
    """
    asked = query[:QUERY_CHARACTERS]
    read = {"language": language, "text": spelled(asked), "signs": asked_signs(asked)}
    row = await db.row(_WORDS, read)
    found = [] if row is None else list(dict.fromkeys(row[0]))
    words = [_quoted(word) for word in found[:_QUERY_WORDS]]
    if not words:
        return []
    parameters = wanted.parameters(user_id) | {"limit": limit, "query": " | ".join(words)}
    return [Memory(*one) for one in await db.rows(_SEARCH, parameters)]


async def get(db: Database, user_id: str, memory_id: UUID) -> Memory:
    """One memory; raises NotFound where the user has none by that id."""
    return _found(await db.row(_ONE, {"memory": memory_id, "user": user_id}))


async def change(
    db: Database,
    user_id: str,
    memory_id: UUID,
    *,
    words: str | None = None,
    importance: float | None = None,
    valid: bool | None = None,
) -> Memory:
    """Change what a memory says, how much it matters, or whether it is still true.

    None leaves as it is. Raises NotFound.
    """
    # Who said it is never changed.
    speaker = "" if words is None else (await get(db, user_id, memory_id)).speaker
    parameters = {
        "memory": memory_id,
        "user": user_id,
        "text": words,
        **words_of(speaker, words or ""),
        "importance": importance,
        "valid": valid,
    }
    return _found(await db.row(_CHANGE, parameters))


async def delete(db: Database, user_id: str, memory_id: UUID) -> None:
    """Delete one memory; what was said stays in the transcript. Raises NotFound."""
    if not await db.run(_DELETE, {"memory": memory_id, "user": user_id}):
        raise NotFound("no such memory")


async def delete_all(db: Database, user_id: str, character_id: UUID) -> int:
    """Delete all memories of a character, some at a time; how many there were.

    No more is learned from what was said so far.
    """
    of_character = {"user": user_id, "character": character_id}
    await db.run(_READ_NO_MORE, of_character)
    total = 0
    while rows := await db.run(_DELETE_SOME, of_character):
        total += rows
    return total


def _quoted(word: str) -> str:
    """A word as a tsquery has it, whatever signs are in it."""
    escaped = word.replace("\\", "\\\\").replace("'", "''")
    return f"'{escaped}'"


def _found(row: AnyRow | None) -> Memory:
    if row is None:
        raise NotFound("no such memory")
    return Memory(*row)
