"""Characters and the versions of their souls."""

from uuid import UUID

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.errors import NotFound, SessionBusy
from shared.levels import CHORE
from shared.records import Character
from shared.store import api_keys
from shared.store.database import AnyRow, Database
from shared.store.memories import delete_of_character
from shared.store.souls import FOLLOW

_COLUMNS = "id, agent, name, is_default, soul, soul_version, created_at, updated_at"

_DEFAULT = text(
    """/* character default */
    with made as (
        insert into characters (user_id, agent, name, is_default)
        values (:user, :agent, :name, true)
        on conflict (user_id, agent) where is_default do nothing
        returning id
    ), first_soul as (
        insert into souls (character_id, version, soul) select id, 1, '' from made
    )
    select id from made
    union all
    select id from characters where user_id = :user and agent = :agent and is_default
    """
)

_INSERT = text(
    f"""/* character insert */
    with made as (
        insert into characters (user_id, agent, name, soul)
        values (:user, :agent, :name, :soul) returning {_COLUMNS}
    ), first_soul as (
        insert into souls (character_id, version, soul) select id, 1, :soul from made
    )
    select {_COLUMNS} from made
    """
)

_BY_ID = text(
    f"/* character */ select {_COLUMNS} from characters where id = :character and user_id = :user"
)

_PAGE = text(
    f"""/* characters page */
    select {_COLUMNS} from characters
    where user_id = :user order by created_at desc, id desc limit :limit
    """
)

_UPDATE = text(
    f"""/* character update */
    update characters set
        name = coalesce(:name, name),
        soul = coalesce(:soul, soul),
        soul_version = soul_version + case when :soul is null or :soul = soul then 0 else 1 end,
        updated_at = clock_timestamp()
    where id = :character and user_id = :user
    returning {_COLUMNS}
    """
)

_KEEP_SOUL = text(
    f"""/* character keep soul */
    with written as (
        insert into souls (character_id, version, soul) values (:character, :version, :soul)
        on conflict do nothing
        returning character_id as id, version as soul_version
    ), {FOLLOW}
    select 1 from written
    """
)

# Sessions that the server made for the character stand in nobody's way.
_DELETE_CHORES = [
    text(
        f"""/* character delete chores {table} */
        delete from {table} where {column} in (
            select id from sessions
            where character_id = :character and user_id = :user and priority >= {CHORE}
            for update)
        """
    )
    for table, column in (
        ("events", "session_id"),
        ("messages", "session_id"),
        ("steps", "session_id"),
        ("sessions", "id"),
    )
]

_DELETE = text(
    """/* character delete */
    delete from characters where id = :character and user_id = :user returning id
    """
)


async def default_character(
    connection: AsyncConnection, user_id: str, agent: str, name: str
) -> UUID:
    """The user's default character of an agent, made at first use."""
    parameters = {"user": user_id, "agent": agent, "name": name}
    found = (await connection.execute(_DEFAULT, parameters)).scalar()
    if found is None:
        # Another transaction made it while this one waited: now it can be seen.
        found = (await connection.execute(_DEFAULT, parameters)).scalar_one()
    return UUID(str(found))


async def create(
    db: Database, user_id: str, agent: str, name: str, soul: str, *, key_id: str = ""
) -> Character:
    """Make a character with the first version of its soul.

    Args:
        key_id: the API key's id that it is made with, '' for none.

    Raises:
        KeyGone: the key is no more.
    """
    parameters = {"user": user_id, "agent": agent, "name": name, "soul": soul}
    async with db.transaction() as connection:
        await api_keys.hold(connection, user_id, key_id)
        return _found((await connection.execute(_INSERT, parameters)).first())


async def get(db: Database, user_id: str, character_id: UUID) -> Character:
    """One character; raises NotFound where the user has none by that id."""
    return _found(await db.row(_BY_ID, {"character": character_id, "user": user_id}))


async def page(db: Database, user_id: str, *, limit: int) -> list[Character]:
    """A user's characters, newest first."""
    rows = await db.rows(_PAGE, {"user": user_id, "limit": limit})
    return [Character(*row) for row in rows]


async def update(
    db: Database, user_id: str, character_id: UUID, *, name: str | None, soul: str | None
) -> Character:
    """Change the name, or write a new version of the soul; raises NotFound."""
    parameters = {"character": character_id, "user": user_id, "name": name, "soul": soul}
    async with db.transaction() as connection:
        character = _found((await connection.execute(_UPDATE, parameters)).first())
        await connection.execute(
            _KEEP_SOUL,
            {
                "character": character_id,
                "version": character.soul_version,
                "soul": character.soul,
                "user": user_id,
            },
        )
    return character


async def delete(db: Database, user_id: str, character_id: UUID) -> None:
    """Delete a character that no session uses.

    Raises:
        NotFound: the user has no such character.
        SessionBusy: a session still uses it.
    """
    parameters = {"character": character_id, "user": user_id}
    try:
        async with db.transaction() as connection:
            for statement in _DELETE_CHORES:
                await connection.execute(statement, parameters)
            row = (await connection.execute(_DELETE, parameters)).first()
            if row is not None:
                await delete_of_character(connection, user_id, character_id)
    except IntegrityError as error:
        raise SessionBusy("a session still uses this character; delete it first") from error
    if row is None:
        raise NotFound("no such character")


def _found(row: AnyRow | None) -> Character:
    if row is None:
        raise NotFound("no such character")
    return Character(*row)
