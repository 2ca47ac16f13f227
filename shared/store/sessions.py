"""Sessions as their owner sees them: making, listing, reading, deleting; events and messages."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, NoResultFound
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.allowance import BudgetRules
from shared.encoding import dumps_text
from shared.errors import InvalidRequest, NotFound
from shared.levels import CHORE
from shared.records import Accepted, Event, Message, NewAction, NewSession, Session
from shared.store import api_keys
from shared.store.actions import accept_within
from shared.store.characters import default_character
from shared.store.consolidation import hurry
from shared.store.database import AnyRow, Database
from shared.store.memories import leave_session
from shared.store.pages import check_before
from shared.store.usage import will_pay

START = NewAction(action={"type": "start"})
"""The action that opens every session; only the server makes it."""

_COLUMNS = """
    s.id, s.key, s.agent, s.story, s.character_id, s.title, s.metadata,
    case when s.open_tasks = 0 then 'idle'
         when exists (select from tasks t where t.session_id = s.id and t.status = 'running')
         then 'running' else 'queued' end as status,
    s.next_event - 1 as head_seq, s.first_event as first_seq, s.view, s.created_at, s.updated_at,
    s.priority
"""

# Sessions that the server made for its own chores are nobody's to see, or to delete.
_BY_ID = text(
    f"""/* session */
    select {_COLUMNS} from sessions s
    where s.id = :session and s.user_id = :user and s.priority < {CHORE}
    """
)
_BY_KEY = text(
    f"""/* session by key */
    select {_COLUMNS} from sessions s
    where s.key = :key and s.user_id = :user and s.priority < {CHORE}
    """
)

_PAGE = text(
    f"""/* sessions page */
    select {_COLUMNS} from sessions s
    where s.user_id = :user and s.priority < {CHORE}
        and (cast(:before as uuid) is null or (s.created_at, s.id) < (
        select b.created_at, b.id from sessions b where b.id = :before and b.user_id = :user))
    order by s.created_at desc, s.id desc limit :limit
    """
)

_INSERT = text(
    """/* session insert */
    insert into sessions (user_id, key, agent, story, story_hash, character_id, title, metadata,
        priority, soul_version)
    select :user, :key, :agent, :story, :story_hash, c.id, :title, cast(:metadata as jsonb),
        :priority, c.soul_version
    from characters c
    where c.id = :character and c.user_id = :user and c.agent = :agent
    on conflict (user_id, key) where key is not null do nothing
    returning id
    """
)

_CHARACTER_EXISTS = text(
    """/* session character exists */
    select 1 from characters where id = :character and user_id = :user and agent = :agent
    """
)

_MADE_BEFORE = text(
    f"""/* session made before */
    select {_COLUMNS}, o.id as opening_task
    from sessions s join tasks o on o.session_id = s.id and o.seq = 1
    where s.key = :key and s.user_id = :user and s.priority < {CHORE}
    """
)

_LOCK = text(
    f"""/* session lock */
    select id from sessions where id = :session and user_id = :user and priority < {CHORE}
    for update
    """
)

# Children go under the session's row lock: a worker's fenced write either came before and is
# deleted with the rest, or finds no row to fence with.
_DELETE = [
    text(statement)
    for statement in (
        "/* session delete events */ delete from events where session_id = :session",
        "/* session delete messages */ delete from messages where session_id = :session",
        "/* session delete steps */ delete from steps where session_id = :session",
        "/* session delete itself */ delete from sessions where id = :session and user_id = :user",
    )
]

_EVENTS = text(
    """/* session events */
    select e.seq, e.type, e.task_id, e.at, e.data
    from events e join sessions s on s.id = e.session_id
    where s.id = :session and s.user_id = :user and e.seq > :after
    order by e.seq limit :limit
    """
)

_RUNNING_TASK = text(
    """/* session running task */
    select id, claims from tasks
    where session_id = :session and user_id = :user and status = 'running'
    """
)

# Nothing moves a head back yet, so each message is of the current branch, and `before` needs no
# look. Who builds that looks for it on the way from the head, which costs all that is newer.
_MESSAGES = text(
    """/* session messages */
    with recursive path as (
        select m.no, m.parent, m.task_id, m.message, m.created_at, 1 as depth
        from sessions s join messages m on m.session_id = s.id and m.no =
            case when cast(:before as bigint) is null then s.head_message
                 else (select b.parent from messages b
                       where b.session_id = s.id and b.no = :before) end
        where s.id = :session and s.user_id = :user
        union all
        select m.no, m.parent, m.task_id, m.message, m.created_at, p.depth + 1
        from path p join messages m on m.session_id = :session and m.no = p.parent
        where p.depth < :limit
    )
    select no, parent, task_id, message, created_at from path order by no
    """
)

_MESSAGE_EXISTS = text(
    """/* session message exists */
    select 1 from sessions s join messages m on m.session_id = s.id
    where s.id = :session and s.user_id = :user and m.no = :before
    """
)

_HEADS = text(
    """/* heads */
    select id, next_event - 1 as head_seq from sessions where id = any(cast(:ids as uuid[]))
    """
)


async def create(
    db: Database,
    user_id: str,
    new: NewSession,
    character_name: str,
    *,
    most: int | None = None,
    rules: BudgetRules | None = None,
) -> tuple[Session, UUID, Accepted | None]:
    """Make a session with its opening task, or find the one that its key made before.

    Args:
        character_name: name of the default character, should it have to be made.
        most: how many open tasks the user may have.
        rules: as `actions.accept` takes them.

    Returns:
        The session, the opening task's id, and what to publish (None where nothing was made).

    Raises:
        InvalidRequest: the user has no such character of this agent.
        TooManyTasks: so many of the user's are open already; no session was made.
        BudgetSpent: nothing is left to pay from; no session was made.
        KeyGone: the API key that it is made with is no more.
    """
    try:
        return await _create(db, user_id, new, character_name, most, rules)
    except (IntegrityError, NoResultFound):
        # Meanwhile the character, or the session of this key, was deleted: now that can be seen.
        return await _create(db, user_id, new, character_name, most, rules)


async def _create(
    db: Database,
    user_id: str,
    new: NewSession,
    character_name: str,
    most: int | None,
    rules: BudgetRules | None,
) -> tuple[Session, UUID, Accepted | None]:
    async with db.transaction() as connection:
        await api_keys.hold(connection, user_id, new.key_id)
        character = new.character_id or await default_character(
            connection, user_id, new.agent, character_name
        )
        parameters = {
            "user": user_id,
            "key": new.key,
            "agent": new.agent,
            "story": new.story,
            "story_hash": new.story_hash,
            "character": character,
            "title": new.title,
            "metadata": dumps_text(new.metadata),
            "priority": new.priority,
        }
        made = (await connection.execute(_INSERT, parameters)).scalar()
        if made is not None:
            await hurry(connection, user_id, character, made)
            start = replace(START, key_id=new.key_id)
            accepted = await accept_within(connection, user_id, made, start, most=most, rules=rules)
            return await _get(connection, user_id, made), accepted.task_id, accepted
        if (row := (await connection.execute(_MADE_BEFORE, parameters)).first()) is not None:
            return *_made_before(row), None
        if (await connection.execute(_CHARACTER_EXISTS, parameters)).first() is None:
            raise InvalidRequest("character_id: no such character of this agent")
        raise NoResultFound("the session of this key was deleted meanwhile")


async def made_before(db: Database, user_id: str, key: str) -> tuple[Session, UUID] | None:
    """The session that a key made, and its opening task; None where it made none yet."""
    row = await db.row(_MADE_BEFORE, {"key": key, "user": user_id})
    return None if row is None else _made_before(row)


def _made_before(row: AnyRow) -> tuple[Session, UUID]:
    *session, opening_task = row
    return Session(*session), opening_task


async def _get(connection: AsyncConnection, user_id: str, session_id: UUID) -> Session:
    row = await connection.execute(_BY_ID, {"session": session_id, "user": user_id})
    return _session(row.one())


async def get(db: Database, user_id: str, session_id: UUID) -> Session:
    """One session; raises NotFound where the user has none by that id."""
    return _found(await db.row(_BY_ID, {"session": session_id, "user": user_id}))


async def get_by_key(db: Database, user_id: str, key: str) -> Session:
    """One session by the caller's own name for it; raises NotFound."""
    return _found(await db.row(_BY_KEY, {"key": key, "user": user_id}))


def _found(row: AnyRow | None) -> Session:
    if row is None:
        raise NotFound("no such session")
    return _session(row)


def _session(row: AnyRow) -> Session:
    return Session(*row)


async def page(
    db: Database, user_id: str, *, limit: int, before: UUID | None = None
) -> list[Session]:
    """A user's sessions, newest first, from the one after `before` on.

    Raises:
        InvalidRequest: `before` was deleted meanwhile, and with it its place among them.
    """
    rows = await db.rows(_PAGE, {"user": user_id, "limit": limit, "before": before})
    if not rows and before is not None:
        await check_before(get(db, user_id, before), "session")
    return [_session(row) for row in rows]


async def delete(db: Database, user_id: str, session_id: UUID) -> None:
    """Delete a session and all that belongs to it; raises NotFound."""
    parameters = {"session": session_id, "user": user_id}
    async with db.transaction() as connection:
        if (await connection.execute(_LOCK, parameters)).first() is None:
            raise NotFound("no such session")
        await leave_session(connection, user_id, session_id)
        await will_pay(connection, user_id, session_id)
        for statement in _DELETE:
            await connection.execute(statement, parameters)


async def events_after(
    db: Database, user_id: str, session_id: UUID, *, after: int, limit: int
) -> list[Event]:
    """Events with a `seq` above `after`, in order; none where the session is not the user's."""
    rows = await db.rows(
        _EVENTS, {"session": session_id, "user": user_id, "after": after, "limit": limit}
    )
    return [Event(*row) for row in rows]


async def running_task(db: Database, user_id: str, session_id: UUID) -> tuple[UUID, int] | None:
    """The task that runs now and its attempt, or None."""
    row = await db.row(_RUNNING_TASK, {"session": session_id, "user": user_id})
    return None if row is None else (row.id, row.claims)


async def messages(
    db: Database, user_id: str, session_id: UUID, *, limit: int, before: int | None = None
) -> list[Message]:
    """The newest `limit` messages of the current branch, or of those before one; oldest first.

    Raises:
        InvalidRequest: there is no message `before`.
    """
    parameters = {"session": session_id, "user": user_id, "limit": limit, "before": before}
    rows = await db.rows(_MESSAGES, parameters)
    if not rows and before is not None:
        await check_before(_message_exists(db, parameters), "message")
    return [Message(*row) for row in rows]


async def _message_exists(db: Database, parameters: Mapping[str, object]) -> None:
    if await db.row(_MESSAGE_EXISTS, parameters) is None:
        raise NotFound("no such message")


async def heads(db: Database, session_ids: Sequence[UUID]) -> dict[UUID, int]:
    """The newest `seq` of each session that still exists."""
    rows = await db.rows(_HEADS, {"ids": list(session_ids)})
    return {row.id: row.head_seq for row in rows}
