"""What workers write: claim, fenced writes, end, heartbeat, release, and the sweep.

Each statement begins with its name, as operators see it in pg_stat_activity.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.encoding import JsonObject, dumps_text
from shared.errors import LeaseLost, NewerRelease
from shared.records import (
    EVENT_VERSION,
    MAX_SAY,
    STEP_VERSION,
    Claim,
    Event,
    Fence,
    Joined,
    JoinMode,
    NewEvent,
    Outcome,
    Step,
    Written,
)
from shared.store.database import AnyRow, Database, Parameters

# State is what `returning` gives: the row under the lock that the lease is written with. Should
# this lease run out, the next hint is due at once, however long the session had been waiting.
_LEASE = """
        epoch = epoch + 1,
        writes = 0,
        lease_token = gen_random_uuid(),
        lease_until = clock_timestamp() + make_interval(secs => :lease_seconds),
        ready_at = null,
        hints = 0,
        hint_at = least(hint_at, clock_timestamp() + make_interval(secs => :lease_seconds))"""

_FREE = """open_tasks > 0
        and (lease_until is null or lease_until < clock_timestamp())
        and (ready_at is null or ready_at < clock_timestamp())"""

_LEASED = """s.id, s.epoch, s.lease_token, s.open_tasks, s.user_id, s.agent, s.story, s.story_hash,
        s.metadata, s.state, s.view, s.next_message, s.head_message,
        (select jsonb_build_object('id', c.id, 'name', c.name, 'soul', c.soul,
                                   'soul_version', c.soul_version)
         from characters c where c.id = s.character_id and c.user_id = s.user_id) as character"""

_TAKE_LEASE = text(
    f"""/* claim lease */
    update sessions s set {_LEASE}
    where s.id = :session and not quarantined and {_FREE}
    returning {_LEASED}
    """
)

# After the lock, and therefore with a newer snapshot: it sees what the last one to hold it took.
_TAKE_QUARANTINED = text(
    f"""/* claim quarantined lease */
    update sessions s set {_LEASE}
    where s.id = (
        select id from sessions
        where quarantined and {_FREE} and not exists (
            select from sessions where quarantined and open_tasks > 0
            and lease_until >= clock_timestamp())
        order by hint_at
        limit 1
        for no key update skip locked)
    returning {_LEASED}
    """
)

QUARANTINE_LOCK = 7_316_205_119

_LOCK_QUARANTINE = text("/* claim quarantine lock */ select pg_try_advisory_xact_lock(:lock)")

# A statement of its own, so that its snapshot is newer than the lease: a task that was accepted
# while this claim waited for the row is seen.
_TAKE_TASK = text(
    """/* claim task */
    with done as (
        select count(*)::int as steps from steps
        where session_id = :session and status = 'done' and task_seq = (
            select seq from tasks where session_id = :session and status = 'running')
    ), task as (
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
    ), next_attempt as (
        update sessions set ready_at = lease_until
            + make_interval(secs => least(:back_off * power(2, task.attempts - 2), :longest))
        from task where sessions.id = :session and task.attempts >= 2 and :back_off > 0
    )
    select * from task
    """
)

LONGEST_BACK_OFF = 30.0
"""Seconds that a session waits at the most, after its lease ran out, for the next attempt."""

# The session was locked by the claim that finds this out, before its task.
_QUARANTINE = text(
    """/* claim quarantine */
    with session as (
        update sessions set quarantined = true, lease_token = null, lease_until = null,
            ready_at = null, hints = 0, hint_at = clock_timestamp()
        where id = :session returning id
    )
    update tasks set attempts = attempts - 1, claims = claims - 1
    from session where session_id = session.id and seq = :task_seq
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

# `joined_task` of a task that does not run any more says nothing: whoever was not answered by it
# waits on. Asked again for the same place, it gives the same answer.
_JOIN = text(
    """
    /* join */
    with fence as (
        select id from sessions
        where id = :session and epoch = :epoch and lease_token = :token
        for no key update
    ), taken as (
        update tasks t set joined_task = :task, joined_no = :no
        from fence
        where t.session_id = fence.id and t.seq > :task_seq and t.status = 'queued'
            and t.action ->> 'type' = 'say' and t.on_busy = any(cast(:modes as text[]))
            and (t.joined_task is distinct from :task or t.joined_no = :no)
        returning t.seq, t.id, t.action ->> 'text' as text
    )
    select taken.id, taken.text from fence left join taken on true order by taken.seq
    """
)

# What a fenced write inserts: nothing where `fence` is empty, for every row is joined to it.
_NEW_EVENTS = f"""new_events as (
        insert into events (session_id, seq, task_id, epoch, type, data, at, version)
        select :session, fence.first_seq + e.ord - 1, coalesce(e.task_id, :task), :epoch,
            e.type, e.data, fence.at, {EVENT_VERSION}
        from fence, rows from (
            jsonb_to_recordset(cast(:events as jsonb)) as (type text, data jsonb, task_id uuid)
        ) with ordinality as e(type, data, task_id, ord)
    )"""

_NEW_STEPS = f"""new_steps as (
        insert into steps (session_id, task_seq, no, kind, name, effect, input_hash, status,
            epoch, output, version)
        select :session, :task_seq, x.no, x.kind, x.name, x.effect, x.input_hash, x.status,
            :epoch, x.output, {STEP_VERSION}
        from fence, jsonb_to_recordset(cast(:steps as jsonb)) as x(no int, kind text,
            name text, effect text, input_hash text, status text, output jsonb)
        on conflict (session_id, task_seq, no) do update
            set status = excluded.status, epoch = excluded.epoch, output = excluded.output,
                version = excluded.version
    )"""

# The fence and the gapless numbers are the same row update: whoever lost the lease updates no
# row and therefore inserts nothing. So does the second copy of a write whose answer was lost:
# `writes` counts them, and a write that says which one it is takes effect once.
_WRITE = text(
    f"""/* write */
    with fence as (
        update sessions set
            next_event = next_event + :event_count,
            writes = writes + 1,
            lease_until = clock_timestamp() + make_interval(secs => :lease_seconds),
            ready_at = case when :finished then null else ready_at end
        where id = :session and epoch = :epoch and lease_token = :token
            and writes = coalesce(cast(:writes as integer), writes)
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
            writes = writes + 1,
            next_message = next_message + :message_count,
            head_message = case when :message_count > 0
                                then next_message + :message_count - 1 else head_message end,
            state = coalesce(cast(:state as jsonb), state),
            view = coalesce(cast(:view as jsonb), view),
            open_tasks = open_tasks - 1 - cardinality(cast(:joined as uuid[])),
            lease_token = null,
            lease_until = null,
            ready_at = null,
            quarantined = false,
            hints = 0,
            hint_at = clock_timestamp(),
            updated_at = clock_timestamp()
        where id = :session and epoch = :epoch and lease_token = :token
            and writes = coalesce(cast(:writes as integer), writes)
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
    ), joined as (
        update tasks set
            status = :status,
            result = cast(:result as jsonb)
                || jsonb_build_object('joined', cast(:task as uuid)),
            error = cast(:error as jsonb),
            finished_at = fence.at
        from fence where session_id = :session and id = any(cast(:joined as uuid[]))
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
    select s.id, s.open_tasks > 1 as queued, (select t.cancel_requested_at is not null from tasks t
                                where t.session_id = s.id and t.status = 'running') as cancel
    from sessions s
    join unnest(cast(:ids as uuid[]), cast(:epochs as bigint[]), cast(:tokens as uuid[]))
        as h(id, epoch, token)
        on s.id = h.id and s.epoch = h.epoch and s.lease_token = h.token
    """
)

# A hand-over is no failed attempt, so it takes back the one that its claim counted (`uncount`).
_RELEASE = text(
    """/* release */
    with released as (
        update sessions set lease_token = null, lease_until = null, hints = 0,
            ready_at = case when :uncount > 0 then null else ready_at end,
            hint_at = clock_timestamp()
        where id = :session and epoch = :epoch and lease_token = :token
        returning id
    )
    update tasks set attempts = greatest(attempts - :uncount, 0)
    from released where session_id = released.id and status = 'running'
    returning 1
    """
)

# Later claims counted on top of the one that is taken back, unless a step was finished: then they
# counted anew, and there is nothing to take back. Who takes back for ever is not believed for ever:
# a task that keeps its worker from renewing its leases would never come to an end.
_FORGIVE = text(
    """/* forgive */
    update tasks set attempts = attempts - 1
    where id = :task and status = 'running' and attempts > 0 and steps_done = :steps_done
        and claims between :attempt and :most + steps_done
    """
)

MOST_FORGIVEN = 20
"""Attempts of one task, beside one for each finished step, that may be taken back."""

MAX_COLLECTED = 100
"""How many waiting tasks one task may be joined by before it begins."""

SWEEP_LOCK = 7_316_205_118

# Materialized, or else the planner may lock more rows than the limit says.
_SWEEP = text(
    f"""/* sweep */
    with due as materialized (
        select id, hint_at from sessions
        where (select pg_try_advisory_xact_lock(:lock))
            and not quarantined and hint_at < clock_timestamp() and {_FREE}
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
    """What a heartbeat found: the sessions still held, those of them whose task is to be cancelled,
    and those in which further tasks wait."""

    held: frozenset[UUID]
    cancelled: frozenset[UUID]
    queued: frozenset[UUID] = frozenset()


async def claim(
    db: Database,
    session_id: UUID,
    *,
    lease_seconds: float,
    history: int,
    back_off: float = 0.0,
    quarantine_after: int | None = None,
) -> Claim | None:
    """Take the session's lease and its head-of-line task, or None where there is nothing to take.

    Args:
        lease_seconds: how long the lease lasts without a renewal.
        history: how many messages of the current branch to load at the most, newest kept.
        back_off: should this attempt be lost and be the second since the last finished step, the
            session waits so many seconds after its lease for the next one; then twice as many.
        quarantine_after: a task that has lost so many attempts without a finished step is not
            taken; its session is put into quarantine instead. None takes any.

    Raises:
        NewerRelease: an earlier attempt was of a newer release; a worker of that one takes it.
    """
    async with db.transaction() as connection:
        parameters = {"session": session_id, "lease_seconds": lease_seconds}
        lease = (await connection.execute(_TAKE_LEASE, parameters)).first()
        if lease is None:
            return None
        task = await _take_task(connection, lease, back_off)
        suspect = quarantine_after is not None and task.attempts > quarantine_after
        if suspect and task.cancel_requested_at is None:
            await connection.execute(_QUARANTINE, {"session": session_id, "task_seq": task.seq})
            return None
        return await _claimed(connection, lease, task, history)


async def claim_quarantined(
    db: Database, *, lease_seconds: float, history: int, back_off: float = 0.0
) -> Claim | None:
    """Take a session out of the quarantine; None where none waits, or one is out already.

    The arguments are those of `claim`.
    """
    async with db.transaction() as connection:
        locked = await connection.execute(_LOCK_QUARANTINE, {"lock": QUARANTINE_LOCK})
        if not locked.scalar():
            return None
        parameters = {"lease_seconds": lease_seconds}
        lease = (await connection.execute(_TAKE_QUARANTINED, parameters)).first()
        if lease is None:
            return None
        return await _claimed(
            connection, lease, await _take_task(connection, lease, back_off), history
        )


async def _take_task(connection: AsyncConnection, lease: AnyRow, back_off: float) -> AnyRow:
    parameters = {
        "session": lease.id,
        "epoch": lease.epoch,
        "back_off": back_off,
        "longest": LONGEST_BACK_OFF,
    }
    task = (await connection.execute(_TAKE_TASK, parameters)).first()
    if task is None:
        raise AssertionError(f"session {lease.id} counts open tasks but has none")
    return task


async def _claimed(connection: AsyncConnection, lease: AnyRow, task: AnyRow, history: int) -> Claim:
    """All that a run starts from, of a session and a task that were just taken."""
    of_task = {
        "session": lease.id,
        "task": task.id,
        "task_seq": task.seq,
        "queued_seq": task.queued_seq,
        "head": lease.head_message,
        "limit": history,
    }
    messages = (await connection.execute(_PATH, of_task)).scalars().all()
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
        task_id=task.id,
        task_seq=task.seq,
        action=_with_collected(task.action, joined),
        attempt=task.claims,
        attempts=task.attempts,
        cancel_requested=task.cancel_requested_at is not None,
        messages=messages,
        steps=steps,
        events=events,
        joined=joined,
        open_tasks=lease.open_tasks,
    )


def _collecting(of_task: dict[str, Any], action: JsonObject) -> dict[str, Any]:
    room = MAX_SAY - len(action["text"])
    return of_task | {"limit": MAX_COLLECTED, "characters": room}


def _with_collected(action: JsonObject, joined: Sequence[Joined]) -> JsonObject:
    collected = [one.text for one in joined if one.no == 0]
    if not collected:
        return action
    return action | {"text": "\n\n".join([action["text"], *collected])}


async def join(db: Database, claim: Claim, modes: Sequence[JoinMode], no: int) -> list[Joined]:
    """Take what waits in one of these modes into the running task, which will answer it.

    Args:
        no: the number of the place at which the run asks, 1, 2, ...; asked again for the same
            place, the answer holds what it held before.

    Raises:
        LeaseLost: another worker has the session, or it is gone; nothing was taken.
    """
    parameters = _fence_parameters(claim.fence) | {
        "task": claim.task_id,
        "task_seq": claim.task_seq,
        "modes": list(modes),
        "no": no,
    }
    rows = await db.rows(_JOIN, parameters)
    if not rows:
        raise LeaseLost(str(claim.fence.session_id))
    return [Joined(row.id, row.text, no) for row in rows if row.id is not None]


async def _check_versions(connection: AsyncConnection, of_task: Parameters) -> None:
    """Undo the claim, lease and count included, of a task whose rows can't be read here."""
    found = (await connection.execute(_VERSIONS_OF_TASK, of_task)).one()
    if found.steps > STEP_VERSION or found.events > EVENT_VERSION:
        raise NewerRelease(f"task {of_task['task']} was begun by a newer release")


async def write(
    db: Database,
    claim: Claim,
    events: Sequence[NewEvent],
    steps: Sequence[Step] = (),
    *,
    lease_seconds: float,
    writes: int | None = None,
) -> Written:
    """Append events and journal steps of a running task; renews the lease.

    Args:
        writes: how many writes this lease has made before: should a copy of this one have been
            made, this one is not. None makes it in any case.

    Raises:
        LeaseLost: another worker has the session, or it is gone, or a copy of this write was
            made; nothing was written now.
    """
    parameters = _written_parameters(claim, events, steps) | {
        "lease_seconds": lease_seconds,
        "writes": writes,
    }
    row = await db.row(_WRITE, parameters)
    if row is None:
        raise LeaseLost(str(claim.fence.session_id))
    return Written(*row)


async def end(
    db: Database, claim: Claim, outcome: Outcome, *, writes: int | None = None
) -> Written:
    """End the task: its terminal event, messages, state and status, and the lease given back.

    Args:
        writes: as `write` takes it.

    Raises:
        LeaseLost: another worker has the session, or it is gone, or a copy of this end was
            written; nothing was written now.
    """
    parameters = _written_parameters(claim, outcome.events, outcome.steps) | {
        "writes": writes,
        "status": outcome.status,
        "messages": dumps_text(list(outcome.messages)),
        "message_count": len(outcome.messages),
        "head": claim.head_message,
        "state": _optional(outcome.state),
        "view": _optional(outcome.view),
        "result": _optional(outcome.result),
        "error": _optional(outcome.error),
        "usage": _optional(outcome.usage),
        "joined": list(outcome.joined),
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
        "finished": any(step.status == "done" for step in steps),
        "events": dumps_text([_new_event(event) for event in events]),
        "steps": dumps_text(list(steps)),
    }


def _new_event(event: NewEvent) -> dict[str, Any]:
    row: dict[str, Any] = {"type": event.type, "data": event.data}
    if event.task_id is not None:
        row["task_id"] = event.task_id
    return row


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
        queued=frozenset(row.id for row in rows if row.queued),
    )


async def release(db: Database, fence: Fence, *, counted: bool = False) -> bool:
    """End a lease now; whether it was still held.

    Args:
        counted: whether the attempt was one that failed. A session that is handed over does not
            count it.
    """
    parameters = _fence_parameters(fence) | {"uncount": 0 if counted else 1}
    return await db.row(_RELEASE, parameters) is not None


async def forgive(db: Database, claim: Claim) -> bool:
    """Take back the attempt of a claim that its worker outlived; whether it was counted.

    Whoever has the session now: an attempt that was lost with its lease or with Postgres tells
    nothing about the task. May be done twice, then for once too often, so an answer that was lost
    harms nobody.
    """
    parameters = {
        "task": claim.task_id,
        "attempt": claim.attempt,
        "steps_done": sum(step.status == "done" for step in claim.steps),
        "most": MOST_FORGIVEN,
    }
    return await db.run(_FORGIVE, parameters) == 1


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
