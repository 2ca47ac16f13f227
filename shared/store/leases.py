"""What a worker writes under its lease: steps, events, the end, the heartbeat, the release.

Each statement begins with its name, as operators see it in pg_stat_activity.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import TextClause, text

from shared.encoding import dumps_text
from shared.errors import LeaseLost
from shared.memories import of_messages
from shared.records import (
    EVENT_VERSION,
    STEP_VERSION,
    Claim,
    Fence,
    Joined,
    JoinMode,
    LedgerEntry,
    NewEvent,
    Outcome,
    Step,
    Written,
)
from shared.store import usage
from shared.store.catalog import ANNOUNCED
from shared.store.consolidation import TOUCH, keep_within, lock_source
from shared.store.database import AnyRow, Database, Parameters
from shared.store.exchange import kept
from shared.store.memories import NEW_TURNS
from shared.store.souls import merge_within

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
_WRITE = f"""/* write */
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

_END = f"""/* end */
    with fence as (
        update sessions set
            next_event = next_event + :event_count,
            writes = writes + 1,
            next_message = next_message + :message_count,
            head_message = case when :message_count > 0
                                then next_message + :message_count - 1 else head_message end,
            state = coalesce(cast(:state as jsonb), state),
            view = coalesce(cast(:view as jsonb), view),
            soul_version = case when soul_version is null or :window_cut
                then (select c.soul_version from characters c where c.id = character_id)
                else soul_version end,
            consolidate_at = {TOUCH},
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
            clock_timestamp() as at, open_tasks, user_id, character_id
    ), task as (
        update tasks set
            status = :status,
            result = cast(:result as jsonb),
            error = cast(:error as jsonb),
            usage = cast(:task_usage as jsonb),
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
    ), {NEW_TURNS}, {_NEW_STEPS}
    select first_seq, at, open_tasks from fence
    """


def _with_usage(write: str) -> TextClause:
    """The same write with calls of models in it; most have none, and need not look for any."""
    head, _, tail = write.rpartition(_NEW_STEPS)
    return kept(f"{head}{_NEW_STEPS}, {usage.NEW_USAGE}{tail}")


_WRITES = {False: kept(_WRITE), True: _with_usage(_WRITE)}
_ENDS = {False: kept(_END), True: _with_usage(_END)}

# Rows that a write of the same worker holds right now are passed over: that write renews the
# lease itself, and one slow row must not keep a thousand others from being renewed.
_HEARTBEAT = kept(
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

_STILL_MINE = kept(
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
# Else the back-off, which the claim set behind the lease's end, begins now.
_RELEASE = text(
    """/* release */
    with released as (
        update sessions set lease_token = null, lease_until = null, hints = 0,
            ready_at = case when :uncount = 0
                            then clock_timestamp() + (ready_at - lease_until) end,
            hint_at = clock_timestamp()
        where id = :session and epoch = :epoch and lease_token = :token
        returning id
    )
    update tasks set attempts = greatest(attempts - :uncount, 0)
    from released where session_id = released.id and status = 'running'
    returning 1
    """
)

# The task is as it was before its claim, which nobody has told of: whoever cancels it finds it
# queued. `ready_at` keeps every hint from having it claimed again at once, also the one that says
# that it is free. The older the task, the longer: nobody may have the agent for a long time.
_LEAVE = text(
    f"""/* leave */
    with task as materialized (
        select clock_timestamp() + make_interval(secs => least(:longest, greatest(:shortest,
            extract(epoch from clock_timestamp() - created_at) / 4))) as due
        from tasks
        where session_id = :session and status = 'running' and (not :judges
            or created_at > clock_timestamp() - make_interval(secs => :seconds)
            or {ANNOUNCED})
    ), given as (
        update sessions set lease_token = null, lease_until = null, hints = 0,
            ready_at = task.due, hint_at = task.due
        from task
        where id = :session and epoch = :epoch and lease_token = :token
        returning sessions.id
    )
    update tasks set claims = claims - 1, attempts = greatest(attempts - 1, 0),
        status = case when claims > 1 then status else 'queued' end,
        started_at = case when claims > 1 then started_at end
    from given where session_id = given.id and status = 'running'
    """
)

SHORTEST_LEFT, LONGEST_LEFT = 1.0, 30.0
"""Seconds for which a session that its worker can't run is left to others: a quarter of its task's
age, within these."""

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


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a heartbeat found: the sessions still held, those of them whose task is to be cancelled,
    and those in which further tasks wait."""

    held: frozenset[UUID]
    cancelled: frozenset[UUID]
    queued: frozenset[UUID] = frozenset()


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


async def write(
    db: Database,
    claim: Claim,
    events: Sequence[NewEvent],
    steps: Sequence[Step] = (),
    *,
    lease_seconds: float,
    writes: int | None = None,
    ledger: Sequence[LedgerEntry] = (),
) -> Written:
    """Append events and journal steps of a running task; renews the lease.

    Args:
        ledger: calls of models, which are entered and charged once.
        writes: how many writes this lease has made before: should a copy of this one have been
            made, this one is not. None makes it in any case.

    Raises:
        LeaseLost: another worker has the session, or it is gone, or a copy of this write was
            made; nothing was written now.
    """
    parameters = _written_parameters(claim, events, steps, ledger) | {
        "lease_seconds": lease_seconds,
        "writes": writes,
    }
    row = await db.row(_WRITES[bool(ledger)], parameters)
    if row is None:
        raise LeaseLost(str(claim.fence.session_id))
    return Written(*row)


async def end(
    db: Database,
    claim: Claim,
    outcome: Outcome,
    *,
    writes: int | None = None,
    idle_seconds: float | None = None,
) -> Written:
    """End the task: its terminal event, messages, state and status, and the lease given back.

    Args:
        writes: as `write` takes it.
        idle_seconds: after so long without a further task the session is read for what is worth
            knowing, should the outcome say that it may be; None: never.

    Raises:
        LeaseLost: another worker has the session, or it is gone, or a copy of this end was
            written; nothing was written now.
    """
    parameters = _written_parameters(claim, outcome.events, outcome.steps, outcome.ledger) | {
        "writes": writes,
        "status": outcome.status,
        "messages": dumps_text(list(outcome.messages)),
        "message_count": len(outcome.messages),
        "memories": dumps_text(of_messages(outcome.messages, claim.character, claim.metadata)),
        "head": claim.head_message,
        "state": _optional(outcome.state),
        "view": _optional(outcome.view),
        "result": _optional(outcome.result),
        "error": _optional(outcome.error),
        "task_usage": _optional(outcome.usage),
        "joined": list(outcome.joined),
        "window_cut": outcome.lasting.window_cut,
        "idle_seconds": idle_seconds if outcome.lasting.remembers else None,
    }
    if outcome.lasting.soul_edits or outcome.lasting.consolidated is not None:
        row = await _end_with_more(db, claim, outcome, parameters, idle_seconds)
    else:
        row = await db.row(_ENDS[bool(outcome.ledger)], parameters)
    if row is None:
        raise LeaseLost(str(claim.fence.session_id))
    return Written(*row)


async def _end_with_more(
    db: Database,
    claim: Claim,
    outcome: Outcome,
    parameters: Parameters,
    idle_seconds: float | None,
) -> AnyRow | None:
    """The end, and with it what a task has changed outside of its session; all or nothing."""
    user_id, session_id = claim.user_id, claim.fence.session_id
    done, edits = outcome.lasting.consolidated, outcome.lasting.soul_edits
    async with db.transaction() as connection:
        if done is not None:
            await lock_source(connection, user_id, session_id, done)
        row = (await connection.execute(_ENDS[bool(outcome.ledger)], parameters)).first()
        if row is None:
            return None
        if edits:
            await merge_within(
                connection,
                user_id,
                session_id,
                claim.task_id,
                edits,
                take=outcome.lasting.window_cut,
            )
        if done is not None:
            await keep_within(connection, user_id, done, idle_seconds=idle_seconds)
    return row


def _written_parameters(
    claim: Claim,
    events: Sequence[NewEvent],
    steps: Sequence[Step],
    ledger: Sequence[LedgerEntry],
) -> dict[str, Any]:
    return {
        **(usage.parameters(claim, ledger) if ledger else {}),
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
    _, mine = await db.together((_HEARTBEAT, parameters), (_STILL_MINE, parameters))
    return Pulse(
        held=frozenset(row.id for row in mine.rows),
        cancelled=frozenset(row.id for row in mine.rows if row.cancel),
        queued=frozenset(row.id for row in mine.rows if row.queued),
    )


async def release(db: Database, fence: Fence, *, counted: bool = False) -> bool:
    """End a lease now; whether it was still held.

    Args:
        counted: whether the attempt was one that failed. A session that is handed over does not
            count it.
    """
    parameters = _fence_parameters(fence) | {"uncount": 0 if counted else 1}
    return await db.row(_RELEASE, parameters) is not None


async def leave(db: Database, claim: Claim, *, seconds: float, judges: bool) -> bool:
    """Undo a claim whose agent this worker does not have, for one that has it.

    Args:
        seconds: for how long nobody has announced the agent, and the task has been there, where it
            can't be left any more.
        judges: whether this worker has been there long enough to know; else it is left.

    Returns:
        False where the task is to be ended by the caller, and where the lease was lost.
    """
    parameters = _fence_parameters(claim.fence) | {
        "agent": claim.agent,
        "seconds": seconds,
        "judges": judges,
        "shortest": SHORTEST_LEFT,
        "longest": LONGEST_LEFT,
    }
    return await db.run(_LEAVE, parameters) == 1


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
