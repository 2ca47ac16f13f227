"""Beginnings: all that a run starts from, read under the lease that was just taken.

Each statement begins with its name, as operators see it in pg_stat_activity.
"""

from collections.abc import Sequence

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
    KnownBranch,
    Step,
)
from shared.store.database import AnyRow

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
    connection: AsyncConnection,
    lease: AnyRow,
    task: AnyRow,
    *,
    history: int,
    known: KnownBranch | None,
) -> Claim:
    """All that a run starts from, of a session and a task that were just taken.

    Args:
        history, known: as `shared.store.claims.claim` takes them.

    Raises:
        NewerRelease: an earlier attempt was of a newer release; nothing of the claim may stay.
    """
    branch = {
        "session": lease.id,
        "head": lease.head_message,
        "known": _held(lease, known),
        "limit": history,
    }
    path = (await connection.execute(_PATH, branch)).all()
    return claim_of(
        lease,
        task,
        [row.message for row in path],
        path[0].parent if path else None,
        known,
        joined=await _joined(connection, lease, task) if lease.open_tasks > 1 else (),
        earlier=await _earlier(connection, lease, task) if task.claims > 1 else ((), ()),
    )


async def _joined(connection: AsyncConnection, lease: AnyRow, task: AnyRow) -> list[Joined]:
    """The tasks that are answered with this one; its first attempt collects what waits."""
    of_task = {"session": lease.id, "task": task.task_id, "task_seq": task.seq}
    if task.claims == 1 and task.action.get("type") == "say":
        room = MAX_SAY - len(task.action["text"])
        collecting = {**of_task, "limit": MAX_COLLECTED, "characters": room}
        await connection.execute(_COLLECT, collecting)
    return [Joined(*row) for row in await connection.execute(_JOINED, of_task)]


async def _earlier(
    connection: AsyncConnection, lease: AnyRow, task: AnyRow
) -> tuple[list[Step], list[Event]]:
    """What earlier attempts of the task have written."""
    of_task = {
        "session": lease.id,
        "task": task.task_id,
        "task_seq": task.seq,
        "queued_seq": task.queued_seq,
    }
    found = (await connection.execute(_VERSIONS_OF_TASK, of_task)).one()
    if found.steps > STEP_VERSION or found.events > EVENT_VERSION:
        # The transaction's end undoes the claim, lease and count included.
        raise NewerRelease(f"task {task.task_id} was begun by a newer release")
    steps = [Step(*row) for row in await connection.execute(_STEPS_OF_TASK, of_task)]
    events = [Event(*row) for row in await connection.execute(_EVENTS_OF_TASK, of_task)]
    return steps, events


def claim_of(
    lease: AnyRow,
    task: AnyRow,
    messages: Sequence[JsonObject],
    root: int | None,
    known: KnownBranch | None,
    *,
    joined: Sequence[Joined] = (),
    earlier: tuple[Sequence[Step], Sequence[Event]] = ((), ()),
) -> Claim:
    """The record of a claim.

    Args:
        lease, task: the rows that the claim has written; they may be one.
        root: the number of the message that the first of `messages` follows.
        known: what the caller holds of the transcript.
        earlier: the steps and events of earlier attempts.
    """
    held = _held(lease, known)
    before = root if messages else lease.head_message
    steps, events = earlier
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
        action=_with_collected(task.action, joined) if joined else task.action,
        attempt=task.claims,
        attempts=task.attempts,
        cancel_requested=task.cancel_requested_at is not None,
        messages=messages,
        steps=steps,
        events=events,
        joined=joined,
        open_tasks=lease.open_tasks,
        generation=lease.generation,
        after=held if held is not None and held == before else None,
        key_id=task.key_id,
    )


def _held(lease: AnyRow, known: KnownBranch | None) -> int | None:
    """The number of the last message that the caller holds, where it is of this lineage."""
    return known.head if known is not None and known.generation == lease.generation else None


def _with_collected(action: JsonObject, joined: Sequence[Joined]) -> JsonObject:
    collected = [one.text for one in joined if one.no == 0]
    if not collected:
        return action
    return action | {"text": "\n\n".join([action["text"], *collected])}
