"""Claims: how a worker takes a session and its head-of-line task, and all that a run starts from.

Each statement begins with its name, as operators see it in pg_stat_activity.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.allowance import NO_RULES, BudgetRules
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
    Known,
    Step,
)
from shared.store import budgets
from shared.store.database import AnyRow, Database, Parameters
from shared.store.exchange import kept
from shared.store.sweeps import FREE

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

_LEASED = """s.id, s.epoch, s.lease_token, s.open_tasks, s.user_id, s.agent, s.story, s.story_hash,
        s.metadata, s.state, s.view, s.next_message, s.head_message, s.generation,
        (select jsonb_build_object('id', c.id, 'name', c.name, 'soul', coalesce(o.soul, c.soul),
                                   'soul_version', coalesce(o.version, c.soul_version))
         from characters c
         left join souls o on o.character_id = c.id and o.version = s.soul_version
         where c.id = s.character_id and c.user_id = s.user_id) as character"""

_HEAD_OF_LINE = """select seq from tasks
            where session_id = :session and status in ('queued', 'running')
            order by (status = 'running') desc, (on_busy = 'interrupt') desc, seq
            limit 1"""

# Before all others, so that their snapshots are newer than the lock: what the last one to hold the
# session wrote is seen, and a task that was accepted while this claim waited for the row.
_LOCK = kept("/* claim lock */ select from sessions where id = :session for no key update")

# A session of which nobody has begun the head of line, as it mostly is: all in one. Where more is
# to be done (a takeover, a collect) it changes nothing and says so.
_CLAIM = kept(
    f"""/* claim */
    with recursive free as materialized (
        select (
            select bool_or(status = 'running' or on_busy = 'collect') from tasks
            where session_id = :session and status in ('queued', 'running')) as more
        from sessions where id = :session and not quarantined and {FREE}
    ), lease as (
        update sessions s set {_LEASE}
        from free where s.id = :session and not free.more
        returning {_LEASED}
    ), task as (
        update tasks t set
            status = 'running',
            epoch = lease.epoch,
            claims = claims + 1,
            attempts = attempts + 1,
            started_at = coalesce(started_at, clock_timestamp())
        from lease
        where session_id = :session and seq = (
            {_HEAD_OF_LINE})
        returning t.id as task_id, seq, action, claims, attempts, cancel_requested_at, key_id,
            reserved
    ), path as (
        select m.no, m.parent, m.message, 1 as depth, known.head
        from lease
            cross join lateral (select case when lease.generation = :generation
                                            then cast(:known as bigint) end as head) as known
            join messages m on m.session_id = :session and m.no = lease.head_message
        where m.no is distinct from known.head
        union all
        select m.no, m.parent, m.message, p.depth + 1, p.head
        from path p join messages m on m.session_id = :session and m.no = p.parent
        where p.depth < :limit and m.no is distinct from p.head
    )
    select free.more, lease.*, task.*,
        (select json_agg(message order by no) from path) as messages,
        (select parent from path order by no limit 1) as root
    from free left join lease on true left join task on true
    """
)

_TAKE_LEASE = text(
    f"""/* claim lease */
    update sessions s set {_LEASE}
    where s.id = :session and not quarantined and {FREE}
    returning {_LEASED}
    """
)

# After the lock, and therefore with a newer snapshot: it sees what the last one to hold it took.
_TAKE_QUARANTINED = text(
    f"""/* claim quarantined lease */
    update sessions s set {_LEASE}
    where s.id = (
        select id from sessions
        where quarantined and {FREE} and not exists (
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
    f"""/* claim task */
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
            {_HEAD_OF_LINE})
        returning id as task_id, seq, action, claims, attempts, cancel_requested_at, queued_seq,
            key_id, reserved
    ), next_attempt as (
        update sessions set ready_at = lease_until
            + make_interval(secs => least(:back_off * power(2, task.attempts - 3), :longest))
        from task where sessions.id = :session and task.attempts >= 3 and :back_off > 0
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


async def claim(
    db: Database,
    session_id: UUID,
    *,
    lease_seconds: float,
    history: int,
    back_off: float = 0.0,
    quarantine_after: int | None = None,
    known: Known | None = None,
    rules: BudgetRules = NO_RULES,
) -> Claim | None:
    """Take the session's lease and its head-of-line task, or None where there is nothing to take.

    Args:
        lease_seconds: how long the lease lasts without a renewal.
        history: how many messages of the current branch to load at the most, newest kept.
        back_off: should this attempt be lost and be the third since the last finished step, the
            session waits so many seconds after its lease for the next one; then twice as many.
        quarantine_after: a task that has lost so many attempts without a finished step is not
            taken; its session is put into quarantine instead. None takes any.
        known: what the caller holds of the transcript. Where that is the current branch or its
            beginning, only what follows is read, and `after` of the claim says so.
        rules: what may be spent by those who have no budget of their own.

    Raises:
        NewerRelease: an earlier attempt was of a newer release; a worker of that one takes it.
    """
    of_session = {
        "session": session_id,
        "lease_seconds": lease_seconds,
        "limit": history,
        "generation": known.generation if known is not None else None,
        "known": known.head if known is not None else None,
    }
    _, answer = await db.together((_LOCK, of_session), (_CLAIM, of_session))
    if (row := answer.first) is None:
        return None
    if row.more is None:
        raise _no_task(session_id)
    if row.more:
        return await _take_over(db, of_session, back_off, quarantine_after, rules)
    claimed = _claim_of(row, row, row.messages or [], row.root, of_session)
    return await _with_budget(db, claimed, row, rules)


async def _take_over(
    db: Database,
    of_session: Parameters,
    back_off: float,
    quarantine_after: int | None,
    rules: BudgetRules,
) -> Claim | None:
    """Claim a session in several steps, since what is to be done depends on what is found."""
    async with db.transaction() as connection:
        lease = (await connection.execute(_TAKE_LEASE, of_session)).first()
        if lease is None:
            return None
        task = await _take_task(connection, lease, back_off)
        suspect = quarantine_after is not None and task.attempts > quarantine_after
        if suspect and task.cancel_requested_at is None:
            await connection.execute(_QUARANTINE, {"session": lease.id, "task_seq": task.seq})
            return None
        claimed = await _claimed(connection, lease, task, of_session)
    return await _with_budget(db, claimed, task, rules)


async def claim_quarantined(
    db: Database,
    *,
    lease_seconds: float,
    history: int,
    back_off: float = 0.0,
    rules: BudgetRules = NO_RULES,
) -> Claim | None:
    """Take a session out of the quarantine; None where none waits, or one is out already.

    The arguments are those of `claim`.
    """
    async with db.transaction() as connection:
        locked = await connection.execute(_LOCK_QUARANTINE, {"lock": QUARANTINE_LOCK})
        if not locked.scalar():
            return None
        parameters = {"lease_seconds": lease_seconds, "limit": history, "known": None}
        lease = (await connection.execute(_TAKE_QUARANTINED, parameters)).first()
        if lease is None:
            return None
        task = await _take_task(connection, lease, back_off)
        claimed = await _claimed(connection, lease, task, parameters)
    return await _with_budget(db, claimed, task, rules)


async def _with_budget(db: Database, claim: Claim, task: AnyRow, rules: BudgetRules) -> Claim:
    """The claim with what may be spent on it, where its task was accepted on a budget."""
    if task.reserved is None:
        return claim
    purse = await budgets.purse(db, claim.user_id, task.key_id, rules)
    return replace(claim, left_usd=purse.left, economy=purse.economy)


async def _take_task(connection: AsyncConnection, lease: AnyRow, back_off: float) -> AnyRow:
    parameters = {
        "session": lease.id,
        "epoch": lease.epoch,
        "back_off": back_off,
        "longest": LONGEST_BACK_OFF,
    }
    task = (await connection.execute(_TAKE_TASK, parameters)).first()
    if task is None:
        raise _no_task(lease.id)
    return task


def _no_task(session_id: UUID) -> AssertionError:
    return AssertionError(f"session {session_id} counts open tasks but has none")


async def _claimed(
    connection: AsyncConnection, lease: AnyRow, task: AnyRow, of_session: Parameters
) -> Claim:
    """All that a run starts from, of a session and a task that were just taken."""
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
        _claim_of(
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


def _claim_of(
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
