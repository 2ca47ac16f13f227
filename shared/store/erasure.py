"""Deleting everything of a user, whatever runs meanwhile, and seeing to it that it is gone.

First all of the user's sessions are fenced off at once: their open tasks go, and no worker that
runs one can write any more. What there is much of is deleted a little at a time. One transaction
at the end takes the rest, the API keys with it, under the locks of all sessions: whoever can still
come back with a key can repeat it, and what has gone leaves nobody behind who could not.

What stands outside of the tables is cleared after that. A row keeps what it is told by until then.
"""

import contextlib
from dataclasses import dataclass, field
from functools import cache
from uuid import UUID, uuid4

from sqlalchemy import TextClause, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.errors import SessionBusy
from shared.store.database import Database
from shared.store.owned import ALL, API_KEYS, CHARACTERS, OF_SESSIONS, OF_USERS, SESSIONS, Owned
from shared.store.traces import Traces, note, owner_of
from shared.store.usage import forget

ROWS_AT_ONCE = 5_000
SESSIONS_AT_ONCE = 200
ROUNDS = 5
"""How often what has come meanwhile is deleted as well, before the user must stop first."""

_GOES_ON = "the user goes on making sessions or actions; stop that first"

_COUNTED = {"tasks", "early_cancels"}
"""Tables of which a session's row counts some rows: they go with it."""

RECENT_SECONDS = 600
"""Tasks that ended longer ago have left nothing outside of the tables."""

_LOCK = text(
    """/* erase lock */
    select id from sessions where user_id = :user order by id for update
    """
)

# Their tasks after their locks, and so with a newer snapshot: none is missed.
_FENCE = text(
    """/* erase fence */
    update sessions set epoch = epoch + 1, lease_token = null, lease_until = null, ready_at = null,
        open_tasks = 0, quarantined = false
    where user_id = :user
    """
)

_RECENT = text(
    """/* erase recent */
    select t.session_id, t.id, t.status in ('queued', 'running') as open, t.status = 'running'
    from tasks t join sessions s on s.id = t.session_id
    where s.user_id = :user and (t.finished_at is null
        or t.finished_at > clock_timestamp() - make_interval(secs => :seconds))
    """
)

_OPEN_TASKS = text(
    """/* erase open tasks */
    delete from tasks t using sessions s
    where s.id = t.session_id and s.user_id = :user and t.status in ('queued', 'running')
    """
)


@dataclass(slots=True)
class Erased:
    """What was deleted: rows by table, and the ids by which things outside were named.

    `open` are tasks that were waiting or running, as (session, task); `running` says that a
    worker may be busy with one of them. `recent` are the sessions that may still be hinted at.
    `cleared` says that nothing is left outside of the tables either; else somebody sees to it.
    """

    rows: dict[str, int] = field(default_factory=dict)
    sessions: set[UUID] = field(default_factory=set)
    tasks: set[UUID] = field(default_factory=set)
    recent: set[UUID] = field(default_factory=set)
    open: list[tuple[UUID, UUID]] = field(default_factory=list)
    running: bool = False
    cleared: bool = False
    id: UUID = field(default_factory=uuid4)

    def traces(self, user_id: str) -> Traces:
        """What it left outside of the tables."""
        return Traces(self.id, owner_of(user_id), self.sessions | self.tasks, set(self.recent))

    def count(self, table: str, rows: int) -> None:
        """Count deleted rows."""
        if rows:
            self.rows[table] = self.rows.get(table, 0) + rows


async def fence(db: Database, user_id: str, erased: Erased) -> None:
    """Take all of the user's sessions from whoever runs them, with all that waits in them."""
    of_user = {"user": user_id}
    async with db.transaction() as connection:
        erased.sessions.update((await connection.execute(_LOCK, of_user)).scalars())
        await connection.execute(_FENCE, of_user)
        recent = await connection.execute(_RECENT, of_user | {"seconds": RECENT_SECONDS})
        for session, task, is_open, runs in recent:
            erased.tasks.add(task)
            erased.recent.add(session)
            if is_open:
                erased.open.append((session, task))
            erased.running = erased.running or runs
        erased.count("tasks", (await connection.execute(_OPEN_TASKS, of_user)).rowcount)


async def erase(db: Database, user_id: str, erased: Erased, *, settle_seconds: float = 0.0) -> None:
    """Delete all rows of the user, who may be busy making more.

    With the last of them what is left outside of the tables is noted, for who clears that may
    not get to it.

    Args:
        settle_seconds: before that nothing can be cleared for good.

    Raises:
        SessionBusy: there are still some; the user has not stopped.
        StoreUnavailable: Postgres did not answer; call it again.
    """
    for _ in range(ROUNDS):
        await fence(db, user_id, erased)
        await _thin_out(db, user_id, erased)
        # A session may have been made of a character just now, or something else of the user's.
        with contextlib.suppress(IntegrityError, SessionBusy):
            await _end(db, user_id, erased, settle_seconds)
            return
    raise SessionBusy(_GOES_ON)


async def left(db: Database, user_id: str, sessions: set[UUID]) -> dict[str, int]:
    """How many rows each table still has of the user, or of sessions that were the user's."""
    async with db.transaction() as connection:
        return await _left_within(connection, user_id, sessions)


async def _left_within(
    connection: AsyncConnection, user_id: str, sessions: set[UUID]
) -> dict[str, int]:
    parameters = {"user": user_id, "ids": list(sessions)}
    found = {}
    for table in ALL:
        rows = (await connection.execute(_left(table), parameters)).scalar_one()
        if rows:
            found[table.name] = int(rows)
    return found


async def _thin_out(db: Database, user_id: str, erased: Erased) -> None:
    """Delete most of it, in transactions that hold nobody up."""
    ids = sorted(erased.sessions)
    for first in range(0, len(ids), SESSIONS_AT_ONCE):
        some = {"user": user_id, "ids": ids[first : first + SESSIONS_AT_ONCE]}
        for table in OF_SESSIONS:
            if table.name not in _COUNTED:
                while rows := await db.run(_some(table), some):
                    erased.count(table.name, rows)
    for table in OF_USERS:
        while rows := await db.run(_some(table), {"user": user_id}):
            erased.count(table.name, rows)


async def _end(db: Database, user_id: str, erased: Erased, settle_seconds: float) -> None:
    rest = Erased()
    async with db.transaction() as connection:
        await _delete_the_rest(connection, user_id, rest)
        erased.sessions |= rest.sessions
        if await _left_within(connection, user_id, erased.sessions):
            raise SessionBusy(_GOES_ON)
        await note(connection, erased.traces(user_id), settle_seconds)
    for table, rows in rest.rows.items():
        erased.count(table, rows)


async def _delete_the_rest(connection: AsyncConnection, user_id: str, erased: Erased) -> None:
    of_user = {"user": user_id}
    # Before all else: whoever makes something with a key holds it, and nobody can any more.
    keys = await connection.execute(_of_user(API_KEYS), of_user)
    erased.count(API_KEYS.name, keys.rowcount)
    sessions = set((await connection.execute(_LOCK, of_user)).scalars())
    erased.sessions |= sessions
    for table in OF_SESSIONS:
        parameters = of_user | {"ids": list(sessions)}
        erased.count(
            table.name, (await connection.execute(_of_sessions(table), parameters)).rowcount
        )
    for table in (*OF_USERS, SESSIONS, CHARACTERS):
        erased.count(table.name, (await connection.execute(_of_user(table), of_user)).rowcount)
    await forget(connection, user_id)


@cache
def _some(table: Owned) -> TextClause:
    if table.by == "user_id":
        found = f"select ctid from {table.name} where user_id = :user"
    else:
        found = f"""select t.ctid from sessions s join {table.name} t on t.session_id = s.id
            where s.id = any(cast(:ids as uuid[])) and s.user_id = :user"""
    return text(
        f"""/* erase some {table.name} */
        delete from {table.name} where ctid = any(array({found} limit {ROWS_AT_ONCE}))
        """
    )


@cache
def _of_sessions(table: Owned) -> TextClause:
    return text(
        f"""/* erase {table.name} */
        delete from {table.name} t using sessions s
        where s.id = t.session_id and s.id = any(cast(:ids as uuid[])) and s.user_id = :user
        """
    )


@cache
def _of_user(table: Owned) -> TextClause:
    return text(f"/* erase {table.name} */ delete from {table.name} t where t.user_id = :user")


@cache
def _left(table: Owned) -> TextClause:
    match table.by:
        case "user_id":
            whose = "t.user_id = :user"
        case "session_id":
            whose = "t.session_id = any(cast(:ids as uuid[]))"
        case "character_id":
            whose = "t.character_id in (select id from characters where user_id = :user)"
    return text(f"/* erase left {table.name} */ select count(*) from {table.name} t where {whose}")
