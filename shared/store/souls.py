"""Souls: the versions of a character's document, and every way to write a further one.

No version is ever changed: to undo is to write an earlier text again. Whoever writes locks the
character first, so that versions count without gaps and nothing is merged into what is not the
newest text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.errors import InvalidRequest, NotFound, Refused, VersionConflict
from shared.records import SoulEdit, SoulSource, SoulVersion
from shared.souls import check_size, merged
from shared.store.database import AnyRow, Database

log = structlog.get_logger(__name__)

KEPT_VERSIONS = 200
"""How many versions of one soul are kept, beside those that sessions still have."""

IDLE_MINUTES = 10
"""A session that nobody has used for so long begins anew: it takes a soul as it is written. What
a provider has cached of it has run out."""

_COLUMNS = "s.version, s.soul, s.source, s.task_id, s.restored, s.created_at"

_NEWEST = text(
    f"""/* soul newest */
    select {_COLUMNS}
    from characters c join souls s on s.character_id = c.id and s.version = c.soul_version
    where c.id = :character and c.user_id = :user
    """
)

_VERSION = text(
    f"""/* soul version */
    select {_COLUMNS}
    from characters c join souls s on s.character_id = c.id
    where c.id = :character and c.user_id = :user and s.version = :version
    """
)

_PAGE = text(
    f"""/* soul versions */
    select {_COLUMNS}
    from characters c join souls s on s.character_id = c.id
    where c.id = :character and c.user_id = :user
        and (cast(:before as int) is null or s.version < cast(:before as int))
    order by s.version desc limit :limit
    """
)

_LOCK = text(
    """/* soul lock */
    select c.soul, c.soul_version from characters c
    where c.id = :character and c.user_id = :user
    for no key update
    """
)

_LOCK_OF_SESSION = text(
    """/* soul lock of session */
    select c.id, c.soul, c.soul_version
    from characters c join sessions s on s.character_id = c.id
    where s.id = :session and s.user_id = :user and c.user_id = :user
    for no key update of c
    """
)

# What a new version brings about; `written` has its character's id and its number.
FOLLOW = f"""taken as (
        update sessions set soul_version = written.soul_version from written
        where sessions.id in (
            select i.id from sessions i
            where i.character_id = :character and i.user_id = :user and i.open_tasks = 0
                and i.updated_at < clock_timestamp() - interval '{IDLE_MINUTES} minutes'
            for no key update skip locked)
    ), gone as (
        delete from souls old using written
        where old.character_id = written.id
            and old.version <= written.soul_version - {KEPT_VERSIONS}
            and not exists (select from sessions u
                where u.character_id = written.id and u.soul_version = old.version)
    )"""

_WRITE = text(
    f"""/* soul write */
    with written as (
        update characters set soul = :soul, soul_version = soul_version + 1,
            updated_at = clock_timestamp()
        where id = :character and user_id = :user
        returning id, soul_version
    ), {FOLLOW}
    insert into souls as s (character_id, version, soul, source, task_id, restored)
    select id, soul_version, :soul, :source, :task, :restored from written
    returning {_COLUMNS}
    """
)

# What an undo goes back to: the version before the newest change. Where the newest is itself an
# undo, that is the one before the version that was taken back.
_BEFORE = text(
    f"""/* soul before */
    select {_COLUMNS}
    from characters c join souls s on s.character_id = c.id
    where c.id = :character and c.user_id = :user and s.version < (
        select coalesce(n.restored, n.version) from souls n
        where n.character_id = :character and n.version = :newest)
    order by s.version desc limit 1
    """
)


_TAKE = text(
    """/* soul take */
    update sessions set soul_version = :version where id = :session and user_id = :user
    """
)


@dataclass(frozen=True, slots=True)
class _Locked:
    """The newest text of a character that nobody else can write to for now."""

    character_id: UUID
    soul: str
    version: int


async def newest(db: Database, user_id: str, character_id: UUID) -> SoulVersion:
    """The newest version; raises NotFound where the user has no such character."""
    return _found(await db.row(_NEWEST, {"character": character_id, "user": user_id}))


async def version(db: Database, user_id: str, character_id: UUID, number: int) -> SoulVersion:
    """One version; raises NotFound where there is none (any more)."""
    parameters = {"character": character_id, "user": user_id, "version": number}
    return _found(await db.row(_VERSION, parameters), "no such version")


async def page(
    db: Database, user_id: str, character_id: UUID, *, limit: int, before: int | None = None
) -> list[SoulVersion]:
    """Versions from new to old, from the one before `before` on; raises NotFound."""
    parameters = {"character": character_id, "user": user_id, "limit": limit, "before": before}
    rows = await db.rows(_PAGE, parameters)
    if not rows:
        await newest(db, user_id, character_id)
    return [SoulVersion(*row) for row in rows]


async def write(
    db: Database, user_id: str, character_id: UUID, soul: str, *, expected: int | None = None
) -> SoulVersion:
    """Write a whole new text; the same text again is no new version.

    Args:
        expected: the version that the writer has read; None overwrites any.

    Raises:
        NotFound: the user has no such character.
        VersionConflict: the newest version is another one.
        SoulTooLarge: the text is too long.
    """
    return await _change(db, user_id, character_id, lambda _: soul, expected)


async def merge(
    db: Database,
    user_id: str,
    character_id: UUID,
    edits: Sequence[SoulEdit],
    *,
    expected: int | None = None,
) -> SoulVersion:
    """Change sections and leave the others; raises what `write` does, and InvalidRequest."""
    return await _change(db, user_id, character_id, lambda soul: merged(soul, edits), expected)


async def _change(
    db: Database,
    user_id: str,
    character_id: UUID,
    change: Callable[[str], str],
    expected: int | None,
) -> SoulVersion:
    async with db.transaction() as connection:
        locked = await _lock(connection, user_id, character_id, expected)
        soul = change(locked.soul)
        check_size(soul)
        if soul == locked.soul:
            return await _version(connection, user_id, locked, locked.version)
        return await _write(connection, user_id, locked, soul, "user")


async def roll_back(
    db: Database,
    user_id: str,
    character_id: UUID,
    number: int | None,
    *,
    expected: int | None = None,
) -> SoulVersion:
    """Write an earlier version's text again, as a new version.

    Args:
        number: the version; None undoes the newest change, and each further time one before it.

    Raises:
        NotFound: the user has no such character, or it no such version.
        InvalidRequest: there is nothing to undo.
        VersionConflict: the newest version is not the expected one.
    """
    async with db.transaction() as connection:
        locked = await _lock(connection, user_id, character_id, expected)
        if number is None:
            parameters = {"character": character_id, "user": user_id, "newest": locked.version}
            row = (await connection.execute(_BEFORE, parameters)).first()
            if row is None:
                raise InvalidRequest("there is no earlier version to go back to")
            taken = SoulVersion(*row)
        else:
            taken = await _version(connection, user_id, locked, number)
        return await _write(
            connection, user_id, locked, taken.soul, "restored", restored=taken.version
        )


async def merge_within(
    connection: AsyncConnection,
    user_id: str,
    session_id: UUID,
    task_id: UUID,
    edits: Sequence[SoulEdit],
    *,
    take: bool,
) -> None:
    """Merge what an agent has changed, inside the transaction that ends its task.

    What does not fit the newest text any more is left out, for the task has ended well all the
    same; the log tells of it.

    Args:
        take: whether the session takes the new version now.
    """
    parameters = {"session": session_id, "user": user_id}
    row = (await connection.execute(_LOCK_OF_SESSION, parameters)).first()
    if row is None:
        return
    locked = _Locked(*row)
    soul = locked.soul
    for edit in edits:
        try:
            soul = merged(soul, [edit])
        except Refused as error:
            log.warning("soul not changed", task_id=str(task_id), error=str(error))
    if soul == locked.soul:
        return
    written = await _write(connection, user_id, locked, soul, "agent", task_id=task_id)
    if take:
        await connection.execute(_TAKE, parameters | {"version": written.version})


async def _lock(
    connection: AsyncConnection, user_id: str, character_id: UUID, expected: int | None
) -> _Locked:
    parameters = {"character": character_id, "user": user_id}
    row = (await connection.execute(_LOCK, parameters)).first()
    if row is None:
        raise NotFound("no such character")
    if expected is not None and row.soul_version != expected:
        raise VersionConflict(
            f"the soul is at version {row.soul_version} by now, not at {expected}"
        )
    return _Locked(character_id, row.soul, row.soul_version)


async def _write(
    connection: AsyncConnection,
    user_id: str,
    locked: _Locked,
    soul: str,
    source: SoulSource,
    *,
    task_id: UUID | None = None,
    restored: int | None = None,
) -> SoulVersion:
    parameters = {
        "character": locked.character_id,
        "user": user_id,
        "soul": soul,
        "source": source,
        "task": task_id,
        "restored": restored,
    }
    return SoulVersion(*(await connection.execute(_WRITE, parameters)).one())


async def _version(
    connection: AsyncConnection, user_id: str, locked: _Locked, number: int
) -> SoulVersion:
    parameters = {"character": locked.character_id, "user": user_id, "version": number}
    return _found((await connection.execute(_VERSION, parameters)).first(), "no such version")


def _found(row: AnyRow | None, missing: str = "no such character") -> SoulVersion:
    if row is None:
        raise NotFound(missing)
    return SoulVersion(*row)
