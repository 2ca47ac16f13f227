"""Cancelling: a task by its id, or by the client's own id of its action, which may come later."""

from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.errors import NotFound
from shared.levels import CHORE
from shared.records import EVENT_VERSION, Event
from shared.store.database import Database

# What the server does in sessions of its own is nobody's to cancel, as it is nobody's to see.
_LOCK_SESSION_OF_TASK = text(
    f"""/* cancel lock of task */
    select s.id from sessions s
    where s.id = (select session_id from tasks where id = :task and user_id = :user)
        and s.user_id = :user and s.priority < {CHORE}
    for no key update
    """
)

_LOCK_SESSION = text(
    f"""/* cancel lock */
    select id from sessions where id = :session and user_id = :user and priority < {CHORE}
    for no key update
    """
)

# What a running task took in ends with that task: too late to take it back.
_CANCEL_TASK = text(
    """/* cancel */
    update tasks set
        cancel_requested_at = coalesce(cancel_requested_at, clock_timestamp()),
        status = case when status = 'queued' and not joined then 'cancelled' else status end,
        finished_at = case when status = 'queued' and not joined then clock_timestamp()
                           else finished_at end
    from (select exists (
        select from tasks j join tasks r on r.session_id = j.session_id and r.id = j.joined_task
        where j.id = :task and r.status = 'running') as joined) as run
    where id = :task and user_id = :user and status in ('queued', 'running')
    returning id, session_id, status
    """
)

_TERMINAL_EVENT = text(
    f"""/* cancel event */
    with session as (
        update sessions set next_event = next_event + 1, open_tasks = open_tasks - 1,
            updated_at = clock_timestamp()
        where id = :session and user_id = :user
        returning next_event - 1 as seq
    )
    insert into events (session_id, seq, task_id, type, data, version)
    select :session, seq, :task, 'task_cancelled', '{{}}', {EVENT_VERSION} from session
    returning seq, type, task_id, at, data
    """
)

_TASK_OF_KEY = text(
    """/* cancel task of key */
    select id from tasks
    where session_id = :session and user_id = :user and client_action_id = :key
    """
)

_REMEMBER_CANCEL = text(
    """/* cancel early */
    with added as (
        insert into early_cancels (session_id, client_action_id) values (:session, :key)
        on conflict do nothing returning 1
    )
    update sessions set early_cancels = early_cancels + 1
    where id = :session and exists (select from added)
    """
)

_TAKE_CANCEL = text(
    """/* cancel take */
    with taken as (
        delete from early_cancels where session_id = :session and client_action_id = :key
        returning 1
    )
    update sessions set early_cancels = early_cancels - 1
    where id = :session and exists (select from taken) returning 1
    """
)


async def cancel_task(db: Database, user_id: str, task_id: UUID) -> tuple[UUID, list[Event]]:
    """Cancel a task: a queued one ends here, a running one is told to; an ended one stays.

    Returns:
        The task's session, and the events to publish.

    Raises:
        NotFound: the user has no such task.
    """
    async with db.transaction() as connection:
        parameters = {"task": task_id, "user": user_id}
        session_id = (await connection.execute(_LOCK_SESSION_OF_TASK, parameters)).scalar()
        if session_id is None:
            raise NotFound("no such task")
        return session_id, await _cancel_open(connection, user_id, task_id)


async def cancel_action(
    db: Database, user_id: str, session_id: UUID, client_action_id: str
) -> tuple[UUID | None, list[Event]]:
    """Cancel by the client's own id of an action, also before that action arrives.

    Returns:
        The task (None while the action has not arrived), and the events to publish.

    Raises:
        NotFound: the user has no such session.
    """
    parameters = {"session": session_id, "user": user_id, "key": client_action_id}
    async with db.transaction() as connection:
        if (await connection.execute(_LOCK_SESSION, parameters)).first() is None:
            raise NotFound("no such session")
        task_id = (await connection.execute(_TASK_OF_KEY, parameters)).scalar()
        if task_id is None:
            await connection.execute(_REMEMBER_CANCEL, parameters)
            return None, []
        return task_id, await _cancel_open(connection, user_id, task_id)


async def cancel_if_asked_before(
    connection: AsyncConnection, parameters: dict[str, Any], task_id: UUID
) -> list[Event]:
    """Cancel a task that is being accepted, where that was asked for before it came; its end."""
    if (await connection.execute(_TAKE_CANCEL, parameters)).first() is None:
        return []
    return await _cancel_open(connection, parameters["user"], task_id)


async def _cancel_open(connection: AsyncConnection, user_id: str, task_id: UUID) -> list[Event]:
    """Cancel a task under its session's row lock; the event, where it had not begun."""
    parameters = {"task": task_id, "user": user_id}
    row = (await connection.execute(_CANCEL_TASK, parameters)).first()
    if row is None or row.status != "cancelled":
        return []
    ended = await connection.execute(_TERMINAL_EVENT, parameters | {"session": row.session_id})
    return [Event(*one) for one in ended]
