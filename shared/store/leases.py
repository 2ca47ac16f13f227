"""What workers write: claim, fenced writes, end, heartbeat, release, and the sweep.

Each statement begins with its name, as operators see it in pg_stat_activity.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text

from shared.encoding import dumps_text
from shared.errors import LeaseLost
from shared.records import (
    Claim,
    Event,
    Fence,
    NewEvent,
    Outcome,
    Step,
    Written,
)
from shared.store.database import Database, Parameters

# State is what `returning` gives: the row under the lock that the lease is written with. Should
# this lease run out, the next hint is due at once, however long the session had been waiting.
_TAKE_LEASE = text(
    """/* claim lease */
    update sessions s set
        epoch = epoch + 1,
        lease_token = gen_random_uuid(),
        lease_until = clock_timestamp() + make_interval(secs => :lease_seconds),
        hints = 0,
        hint_at = least(hint_at, clock_timestamp() + make_interval(secs => :lease_seconds))
    where s.id = :session and s.open_tasks > 0
        and (s.lease_until is null or s.lease_until < clock_timestamp())
    returning s.epoch, s.lease_token, s.user_id, s.agent, s.story, s.story_hash, s.metadata,
        s.state, s.view, s.next_message, s.head_message,
        (select jsonb_build_object('id', c.id, 'name', c.name, 'soul', c.soul,
                                   'soul_version', c.soul_version)
         from characters c where c.id = s.character_id and c.user_id = s.user_id) as character
    """
)

# A statement of its own, so that its snapshot is newer than the lease: a task that was accepted
# while this claim waited for the row is seen.
_TAKE_TASK = text(
    """/* claim task */
    with done as (
        select count(*)::int as steps from steps
        where session_id = :session and status = 'done' and task_seq = (
            select seq from tasks where session_id = :session and status = 'running')
    )
    update tasks set
        status = 'running',
        epoch = :epoch,
        claims = claims + 1,
        attempts = case when done.steps > steps_done then 1 else attempts + 1 end,
        steps_done = done.steps,
        started_at = coalesce(started_at, clock_timestamp())
    from done
    where session_id = :session and seq = (
        select seq from tasks
        where session_id = :session and status in ('queued', 'running')
        order by (status = 'running') desc, (on_busy = 'interrupt') desc, seq
        limit 1)
    returning id, seq, action, claims, attempts, cancel_requested_at, queued_seq
    """
)

_PATH = text(
    """/* claim path */
    with recursive path as (
        select no, parent, message, 1 as depth from messages
        where session_id = :session and no = :head
        union all
        select m.no, m.parent, m.message, p.depth + 1
        from path p join messages m on m.session_id = :session and m.no = p.parent
        where p.depth < :limit
    )
    select message from path order by no
    """
)

_STEPS_OF_TASK = text(
    """/* claim steps */
    select no, kind, name, effect, input_hash, status, output from steps
    where session_id = :session and task_seq = :task_seq order by no
    """
)

_EVENTS_OF_TASK = text(
    """/* claim events */
    select seq, type, task_id, at, data from events
    where session_id = :session and seq > :queued_seq and task_id = :task order by seq
    """
)

# What a fenced write inserts: nothing where `fence` is empty, for every row is joined to it.
_NEW_EVENTS = """new_events as (
        insert into events (session_id, seq, task_id, epoch, type, data, at)
        select :session, fence.first_seq + e.ord - 1, :task, :epoch, e.type, e.data, fence.at
        from fence, rows from (
            jsonb_to_recordset(cast(:events as jsonb)) as (type text, data jsonb)
        ) with ordinality as e(type, data, ord)
    )"""

_NEW_STEPS = """new_steps as (
        insert into steps (session_id, task_seq, no, kind, name, effect, input_hash, status,
            epoch, output)
        select :session, :task_seq, x.no, x.kind, x.name, x.effect, x.input_hash, x.status,
            :epoch, x.output
        from fence, jsonb_to_recordset(cast(:steps as jsonb)) as x(no int, kind text,
            name text, effect text, input_hash text, status text, output jsonb)
        on conflict (session_id, task_seq, no) do update
            set status = excluded.status, epoch = excluded.epoch, output = excluded.output
    )"""

# The fence and the gapless numbers are the same row update: whoever lost the lease updates no
# row and therefore inserts nothing.
_WRITE = text(
    f"""/* write */
    with fence as (
        update sessions set
            next_event = next_event + :event_count,
            lease_until = clock_timestamp() + make_interval(secs => :lease_seconds)
        where id = :session and epoch = :epoch and lease_token = :token
        returning next_event - :event_count as first_seq, clock_timestamp() as at, open_tasks
    ), {_NEW_EVENTS}, {_NEW_STEPS}
    select first_seq, at, open_tasks from fence
    """
)

_END = text(
    f"""/* end */
    with fence as (
        update sessions set
            next_event = next_event + :event_count,
            next_message = next_message + :message_count,
            head_message = case when :message_count > 0
                                then next_message + :message_count - 1 else head_message end,
            state = coalesce(cast(:state as jsonb), state),
            view = coalesce(cast(:view as jsonb), view),
            open_tasks = open_tasks - 1,
            lease_token = null,
            lease_until = null,
            hints = 0,
            hint_at = clock_timestamp(),
            updated_at = clock_timestamp()
        where id = :session and epoch = :epoch and lease_token = :token
        returning next_event - :event_count as first_seq,
            next_message - :message_count as first_message,
            clock_timestamp() as at, open_tasks
    ), task as (
        update tasks set
            status = :status,
            result = cast(:result as jsonb),
            error = cast(:error as jsonb),
            usage = cast(:usage as jsonb),
            finished_at = fence.at
        from fence where session_id = :session and seq = :task_seq
    ), {_NEW_EVENTS}, new_messages as (
        insert into messages (session_id, no, parent, task_id, message, created_at)
        select :session, fence.first_message + m.ord - 1,
            case when m.ord = 1 then cast(:head as bigint)
                 else fence.first_message + m.ord - 2 end,
            :task, m.message, fence.at
        from fence, jsonb_array_elements(cast(:messages as jsonb))
            with ordinality as m(message, ord)
    ), {_NEW_STEPS}
    select first_seq, at, open_tasks from fence
    """
)

# Rows that a write of the same worker holds right now are passed over: that write renews the
# lease itself, and one slow row must not keep a thousand others from being renewed.
_HEARTBEAT = text(
    """/* heartbeat */
    with mine as (
        select s.id from sessions s
        join unnest(cast(:ids as uuid[]), cast(:epochs as bigint[]), cast(:tokens as uuid[]))
            as h(id, epoch, token)
            on s.id = h.id and s.epoch = h.epoch and s.lease_token = h.token
        for no key update of s skip locked
    )
    update sessions s
    set lease_until = clock_timestamp() + make_interval(secs => :lease_seconds)
    from mine where s.id = mine.id
    """
)

_STILL_MINE = text(
    """/* pulse */
    select s.id, (select t.cancel_requested_at is not null from tasks t
                  where t.session_id = s.id and t.status = 'running') as cancel
    from sessions s
    join unnest(cast(:ids as uuid[]), cast(:epochs as bigint[]), cast(:tokens as uuid[]))
        as h(id, epoch, token)
        on s.id = h.id and s.epoch = h.epoch and s.lease_token = h.token
    """
)

# A hand-over is no failed attempt, so it takes back the one that its claim counted.
_RELEASE = text(
    """/* release */
    with released as (
        update sessions set lease_token = null, lease_until = null, hints = 0,
            hint_at = clock_timestamp()
        where id = :session and epoch = :epoch and lease_token = :token
        returning id
    )
    update tasks set attempts = greatest(attempts - 1, 0)
    from released where session_id = released.id and status = 'running'
    returning 1
    """
)

SWEEP_LOCK = 7_316_205_118

# Materialized, or else the planner may lock more rows than the limit says.
_SWEEP = text(
    """/* sweep */
    with due as materialized (
        select id, hint_at from sessions
        where (select pg_try_advisory_xact_lock(:lock))
            and open_tasks > 0 and hint_at < clock_timestamp()
            and (lease_until is null or lease_until < clock_timestamp())
        order by hint_at
        limit :limit
        for no key update skip locked
    ), hinted as (
        update sessions s set
            hints = least(hints + 1, 5),
            hint_at = clock_timestamp() + make_interval(secs => least(power(2, hints), 30))
        from due where s.id = due.id
        returning s.id, due.hint_at as was_due
    )
    select id from hinted order by was_due
    """
)


# Of a hint that was sent a while ago nothing is left in an empty queue: either a worker has just
# taken it, and then another one is harmless, or it is lost. When it was sent follows from when
# the next one is due. It takes no sweep's lock: refused half-way it would leave the rest waiting,
# for the queue is then no longer empty.
_DOUBT_HINTS = text(
    """/* sweep lost hints */
    with lost as materialized (
        select id from sessions
        where open_tasks > 0 and hints > 0 and hint_at > clock_timestamp()
            and hint_at - make_interval(
                    secs => case when hints < 5 then power(2, hints - 1) else 30 end)
                < clock_timestamp() - make_interval(secs => :age)
            and (lease_until is null or lease_until < clock_timestamp())
            and not quarantined and (ready_at is null or ready_at < clock_timestamp())
        limit :limit
        for no key update skip locked
    )
    update sessions s set hints = 0, hint_at = clock_timestamp() from lost where s.id = lost.id
    """
)

_DUE_AGAIN = text(
    """/* sweep unsent */
    update sessions set hints = greatest(hints - 1, 0), hint_at = clock_timestamp()
    where id = any(cast(:ids as uuid[])) and open_tasks > 0
        and (lease_until is null or lease_until < clock_timestamp())
    """
)


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a heartbeat found: the sessions still held, and those whose task is to be cancelled."""

    held: frozenset[UUID]
    cancelled: frozenset[UUID]


async def claim(
    db: Database, session_id: UUID, *, lease_seconds: float, history: int
) -> Claim | None:
    """Take the session's lease and its head-of-line task, or None where there is nothing to take.

    Args:
        lease_seconds: how long the lease lasts without a renewal.
        history: how many messages of the current branch to load at the most, newest kept.
    """
    async with db.transaction() as connection:
        parameters = {"session": session_id, "lease_seconds": lease_seconds}
        lease = (await connection.execute(_TAKE_LEASE, parameters)).first()
        if lease is None:
            return None
        task = (
            await connection.execute(_TAKE_TASK, {"session": session_id, "epoch": lease.epoch})
        ).first()
        if task is None:
            raise AssertionError(f"session {session_id} counts open tasks but has none")
        of_task = {
            "session": session_id,
            "task": task.id,
            "task_seq": task.seq,
            "queued_seq": task.queued_seq,
            "head": lease.head_message,
            "limit": history,
        }
        messages = (await connection.execute(_PATH, of_task)).scalars().all()
        steps: list[Step] = []
        events: list[Event] = []
        if task.claims > 1:
            steps = [Step(*row) for row in await connection.execute(_STEPS_OF_TASK, of_task)]
            events = [Event(*row) for row in await connection.execute(_EVENTS_OF_TASK, of_task)]
    return Claim(
        fence=Fence(session_id, lease.epoch, lease.lease_token),
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
        task_id=task.id,
        task_seq=task.seq,
        action=task.action,
        attempt=task.claims,
        attempts=task.attempts,
        cancel_requested=task.cancel_requested_at is not None,
        messages=messages,
        steps=steps,
        events=events,
    )


async def write(
    db: Database,
    claim: Claim,
    events: Sequence[NewEvent],
    steps: Sequence[Step] = (),
    *,
    lease_seconds: float,
) -> Written:
    """Append events and journal steps of a running task; renews the lease.

    Raises:
        LeaseLost: another worker has the session, or it is gone; nothing was written.
    """
    parameters = _written_parameters(claim, events, steps) | {"lease_seconds": lease_seconds}
    row = await db.row(_WRITE, parameters)
    if row is None:
        raise LeaseLost(str(claim.fence.session_id))
    return Written(*row)


async def end(db: Database, claim: Claim, outcome: Outcome) -> Written:
    """End the task: its terminal event, messages, state and status, and the lease given back.

    Raises:
        LeaseLost: another worker has the session, or it is gone; nothing was written.
    """
    parameters = _written_parameters(claim, outcome.events, outcome.steps) | {
        "status": outcome.status,
        "messages": dumps_text(list(outcome.messages)),
        "message_count": len(outcome.messages),
        "head": claim.head_message,
        "state": _optional(outcome.state),
        "view": _optional(outcome.view),
        "result": _optional(outcome.result),
        "error": _optional(outcome.error),
        "usage": _optional(outcome.usage),
    }
    row = await db.row(_END, parameters)
    if row is None:
        raise LeaseLost(str(claim.fence.session_id))
    return Written(*row)


def _written_parameters(
    claim: Claim, events: Sequence[NewEvent], steps: Sequence[Step]
) -> dict[str, Any]:
    return {
        **_fence_parameters(claim.fence),
        "task": claim.task_id,
        "task_seq": claim.task_seq,
        "event_count": len(events),
        "events": dumps_text([{"type": e.type, "data": e.data} for e in events]),
        "steps": dumps_text(list(steps)),
    }


def _fence_parameters(fence: Fence) -> dict[str, Any]:
    return {"session": fence.session_id, "epoch": fence.epoch, "token": fence.token}


def _optional(value: object) -> str | None:
    return None if value is None else dumps_text(value)


async def heartbeat(db: Database, fences: Sequence[Fence], *, lease_seconds: float) -> Pulse:
    """Renew many leases at once; what is not in `held` afterwards is another worker's."""
    parameters: Parameters = {
        "ids": [fence.session_id for fence in fences],
        "epochs": [fence.epoch for fence in fences],
        "tokens": [fence.token for fence in fences],
        "lease_seconds": lease_seconds,
    }
    await db.run(_HEARTBEAT, parameters)
    rows = await db.rows(_STILL_MINE, parameters)
    return Pulse(
        held=frozenset(row.id for row in rows),
        cancelled=frozenset(row.id for row in rows if row.cancel),
    )


async def release(db: Database, fence: Fence) -> bool:
    """Hand a session over: its lease ends now, and the next attempt is not counted as a retry."""
    return await db.row(_RELEASE, _fence_parameters(fence)) is not None


async def sweep(db: Database, *, limit: int = 200) -> list[UUID]:
    """Sessions that wait without a worker and are due for another hint, the longest-waiting first.

    Any number of processes may call it at once: one sweeps, the others get nothing. A session
    that stays queued is hinted after 1, 2, 4, ... 30 s, or else a backlog would flood the queue.
    """
    rows = await db.rows(_SWEEP, {"lock": SWEEP_LOCK, "limit": limit})
    return [row.id for row in rows]


async def doubt_hints(db: Database, *, age: float, limit: int = 1000) -> None:
    """Make the sessions due whose last hint is older than `age` seconds, since the queue is empty.

    They wait without a worker, and their next hint may be as far off as half a minute.
    """
    while await db.run(_DOUBT_HINTS, {"age": age, "limit": limit}) == limit:
        pass


async def due_again(db: Database, session_ids: Sequence[UUID]) -> None:
    """Take a sweep of these sessions back: their hints could not be sent."""
    await db.run(_DUE_AGAIN, {"ids": list(session_ids)})
