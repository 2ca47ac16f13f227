"""Beginnings: all that a run starts from, read under the lease that was just taken.

Each statement begins with its name, as operators see it in pg_stat_activity.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.encoding import JsonObject
from shared.errors import NewerRelease
from shared.records import (
    EVENT_VERSION,
    MAX_SAY,
    STEP_VERSION,
    Claim,
    Event,
    Fence,
    Joined,
    Step,
)
from shared.store.database import AnyRow, Parameters

_PATH = text(
    """/* claim path */
    with recursive path as (
        select no, parent, message, 1 as depth from messages
        where session_id = :session and no = :head
            and no is distinct from cast(:known as bigint)
        union all
        select m.no, m.parent, m.message, p.depth + 1
        from path p join messages m on m.session_id = :session and m.no = p.parent
        where p.depth < :limit and m.no is distinct from cast(:known as bigint)
    )
    select parent, message from path order by no
    """
)

_STEPS_OF_TASK = text(
    """/* claim steps */
    select no, kind, name, effect, input_hash, status, output from steps
    where session_id = :session and task_seq = :task_seq order by no
    """
)

_VERSIONS_OF_TASK = text(
    """/* claim versions */
    select
        (select coalesce(max(version), 0) from steps
         where session_id = :session and task_seq = :task_seq) as steps,
        (select coalesce(max(version), 0) from events
         where session_id = :session and seq > :queued_seq and task_id = :task) as events
    """
)

_EVENTS_OF_TASK = text(
    """/* claim events */
    select seq, type, task_id, at, data from events
    where session_id = :session and seq > :queued_seq and task_id = :task order by seq
    """
)

# What waits right behind the task and asked to be answered with others, as far as one `say` goes.
# Decided by the first attempt: a later one must give the model the same words.
_COLLECT = text(
    """
    /* claim collect */
    with waiting as (
        select id, seq, action ->> 'text' as text,
            on_busy = 'collect' and action ->> 'type' = 'say' as collects
        from tasks
        where session_id = :session and seq > :task_seq and status = 'queued'
        order by seq
        limit :limit
    ), row_of_says as (
        select id, bool_and(collects) over (order by seq)
            and sum(length(text) + 2) over (order by seq) <= :characters as fits
        from waiting
    )
    update tasks t set joined_task = :task, joined_no = 0
    from row_of_says r
    where t.session_id = :session and t.id = r.id and r.fits and t.status = 'queued'
    """
)

_JOINED = text(
    """
    /* claim joined */
    select id, action ->> 'text', joined_no from tasks
    where session_id = :session and status = 'queued' and joined_task = :task order by seq
    """
)

MAX_COLLECTED = 100
"""How many waiting tasks one task may be joined by before it begins."""


async def read(
    connection: AsyncConnection, lease: AnyRow, task: AnyRow, of_session: Parameters
) -> Claim:
    """All that a run starts from, of a session and a task that were just taken.

    Raises:
        NewerRelease: an earlier attempt was of a newer release; nothing of the claim may stay.
    """
    of_task = {
        "session": lease.id,
        "task": task.task_id,
        "task_seq": task.seq,
        "queued_seq": task.queued_seq,
        "head": lease.head_message,
        "limit": of_session["limit"],
        "known": _held(lease, of_session),
    }
    path = (await connection.execute(_PATH, of_task)).all()
    steps: list[Step] = []
    events: list[Event] = []
    joined: Sequence[Joined] = ()
    if lease.open_tasks > 1:
        if task.claims == 1 and task.action.get("type") == "say":
            await connection.execute(_COLLECT, _collecting(of_task, task.action))
        joined = [Joined(*row) for row in await connection.execute(_JOINED, of_task)]
    if task.claims > 1:
        await _check_versions(connection, of_task)
        steps = [Step(*row) for row in await connection.execute(_STEPS_OF_TASK, of_task)]
        events = [Event(*row) for row in await connection.execute(_EVENTS_OF_TASK, of_task)]
    return replace(
        claim_of(
            lease,
            task,
            [row.message for row in path],
            path[0].parent if path else None,
            of_session,
        ),
        action=_with_collected(task.action, joined),
        steps=steps,
        events=events,
        joined=joined,
    )


def claim_of(
    lease: AnyRow,
    task: AnyRow,
    messages: Sequence[JsonObject],
    root: int | None,
    of_session: Parameters,
) -> Claim:
    """The record of a claim; `root` is the number of the message that the first one follows."""
    held = _held(lease, of_session)
    before = root if messages else lease.head_message
    return Claim(
        fence=Fence(lease.id, lease.epoch, lease.lease_token),
        user_id=lease.user_id,
        agent=lease.agent,
        story=lease.story,
        story_hash=lease.story_hash,
        character=lease.character,
        metadata=lease.metadata,
        state=lease.state,
        view=lease.view,
        next_message=lease.next_message,
        head_message=lease.head_message,
        task_id=task.task_id,
        task_seq=task.seq,
        action=task.action,
        attempt=task.claims,
        attempts=task.attempts,
        cancel_requested=task.cancel_requested_at is not None,
        messages=messages,
        steps=[],
        events=[],
        open_tasks=lease.open_tasks,
        generation=lease.generation,
        after=held if held is not None and held == before else None,
        key_id=task.key_id,
    )


def _held(lease: AnyRow, of_session: Parameters) -> int | None:
    """The number of the last message that the caller holds, where it is of this lineage."""
    same = of_session["known"] is not None and of_session["generation"] == lease.generation
    return of_session["known"] if same else None


def _collecting(of_task: dict[str, Any], action: JsonObject) -> dict[str, Any]:
    room = MAX_SAY - len(action["text"])
    return of_task | {"limit": MAX_COLLECTED, "characters": room}


def _with_collected(action: JsonObject, joined: Sequence[Joined]) -> JsonObject:
    collected = [one.text for one in joined if one.no == 0]
    if not collected:
        return action
    return action | {"text": "\n\n".join([action["text"], *collected])}


async def _check_versions(connection: AsyncConnection, of_task: Parameters) -> None:
    """Undo the claim, lease and count included, of a task whose rows can't be read here."""
    found = (await connection.execute(_VERSIONS_OF_TASK, of_task)).one()
    if found.steps > STEP_VERSION or found.events > EVENT_VERSION:
        raise NewerRelease(f"task {of_task['task']} was begun by a newer release")
