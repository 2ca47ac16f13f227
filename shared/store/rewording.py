"""The words of memories that an older release has written, read anew.

These statements are of all users, as those of their vectors are. A memory is changed only where its
words come out different, and nothing else of it is, so it may be done at any time and again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text

from shared.encoding import dumps_text
from shared.memories import words_of
from shared.store.database import Database
from shared.store.memories import KEYS, WORDS

_PAGE = text(
    """/* words page */
    select id, speaker, text from memories where id > :after order by id limit :limit
    """
)

# Before their memories, as where one is changed or a character is deleted, and in one order.
_LOCK_OWNERS = text(
    """/* words owners */
    select id from characters
    where id in (select character_id from memories where id = any(cast(:ids as uuid[])))
    order by id for no key update
    """
)

# What was changed meanwhile was read by the release that changed it. Locked in the order of their
# ids, in which vectors are put as well. Whoever holds a memory as it was reads it again, for its
# character has changed.
_READ_ANEW = text(
    f"""/* words anew */
    with read as materialized (
        select m.id, m.text, {WORDS} as words
        from (
            select old.id, old.language, old.speaker, old.text, v.spelled, v.signs
            from jsonb_to_recordset(cast(:memories as jsonb)) as v(id uuid, text text,
                spelled text, signs text[])
            join memories old on old.id = v.id and old.text = v.text
            order by old.id for update of old) as m
    ), changed as (
        update memories m set words = read.words,
            keys = case when m.keys is not null then {KEYS.format(words="read.words")} end
        from read
        where m.id = read.id and m.text = read.text and m.words <> read.words
        returning m.character_id
    ), owners as (
        update characters set updated_at = clock_timestamp()
        where id in (select character_id from changed)
    )
    select count(*) from changed
    """
)


@dataclass(frozen=True, slots=True)
class Worded:
    """A memory as far as its words go."""

    id: UUID
    speaker: str
    text: str


async def page(db: Database, *, after: UUID, limit: int) -> list[Worded]:
    """Memories by id from `after` on."""
    return [Worded(*row) for row in await db.rows(_PAGE, {"after": after, "limit": limit})]


async def read_anew(db: Database, memories: Sequence[Worded]) -> int:
    """Give memories the words that this release finds in them; how many had others.

    Those without scripts that know no blanks are passed over: their words are what they were.
    """
    read = [(one, words_of(one.speaker, one.text)) for one in memories]
    others = [
        {"id": str(one.id), "text": one.text, **words}
        for one, words in read
        if words["spelled"] is not None
    ]
    if not others:
        return 0
    ids = {"ids": [one["id"] for one in others]}
    _, result = await db.together(
        (_LOCK_OWNERS, ids), (_READ_ANEW, {"memories": dumps_text(others)})
    )
    ((count,),) = result.rows
    return int(count)
