"""Claims: how a worker takes a session and its head-of-line task.

Each statement begins with its name, as operators see it in pg_stat_activity.
"""

from dataclasses import replace
from typing import NamedTuple
from uuid import UUID, uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.allowance import NO_RULES, BudgetRules
from shared.records import Claim, KnownBranch
from shared.store import beginnings, budgets
from shared.store.database import AnyRow, Database, Parameters
from shared.store.exchange import kept
from shared.store.locks import QUARANTINE_LOCK
from shared.store.sweeps import FREE

# State is what `returning` gives: the row under the lock that the lease is written with. Should
# this lease run out, the next hint is due at once, however long the session had been waiting.
_LEASE = """
        epoch = epoch + 1,
        writes = 0,
        lease_token = :token,
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

_TASK = "t.id as task_id, seq, action, claims, attempts, cancel_requested_at, key_id, reserved"

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
        returning {_TASK}
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

# Under the token it is the same claim, however long ago it was made: nobody has claimed since.
_LEASE_MADE = text(
    f"""/* claim made */
    update sessions s
    set lease_until = clock_timestamp() + make_interval(secs => :lease_seconds)
    where s.id = :session and s.lease_token = :token
    returning {_LEASED}
    """
)

_TASK_MADE = text(
    f"""/* claim made task */
    select {_TASK}, queued_seq from tasks t
    where session_id = :session and status = 'running'
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

_QUARANTINED_MADE = text(
    """/* claim quarantined made */
    select id from sessions where quarantined and open_tasks > 0 and lease_token = :token
    """
)

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
        update tasks t set
            status = 'running',
            epoch = :epoch,
            claims = claims + 1,
            attempts = case when done.steps > steps_done then 1 else attempts + 1 end,
            steps_done = done.steps,
            started_at = coalesce(started_at, clock_timestamp())
        from done
        where session_id = :session and seq = (
            {_HEAD_OF_LINE})
        returning {_TASK}, queued_seq
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


class _Terms(NamedTuple):
    """On what a session is claimed; the arguments of `claim` say what each is."""

    token: UUID
    lease_seconds: float
    history: int
    back_off: float
    rules: BudgetRules
    known: KnownBranch | None = None
    quarantine_after: int | None = None

    def lease(self, session_id: UUID) -> Parameters:
        """What a statement that takes or finds the lease needs."""
        return {"session": session_id, "token": self.token, "lease_seconds": self.lease_seconds}


async def claim(
    db: Database,
    session_id: UUID,
    *,
    lease_seconds: float,
    history: int,
    back_off: float = 0.0,
    quarantine_after: int | None = None,
    known: KnownBranch | None = None,
    rules: BudgetRules = NO_RULES,
    token: UUID | None = None,
    again: bool = False,
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
        token: what the lease is known by; one is made where none is given.
        again: a claim with this token may have been made, and its answer lost: then that one is
            given. Else the session would wait for the end of a lease that nobody knows of.

    Raises:
        NewerRelease: an earlier attempt was of a newer release; a worker of that one takes it.
    """
    terms = _Terms(
        token or uuid4(), lease_seconds, history, back_off, rules, known, quarantine_after
    )
    if again and (made := await _made(db, session_id, terms)) is not None:
        return made
    parameters = {
        "session": session_id,
        "token": terms.token,
        "lease_seconds": lease_seconds,
        "limit": history,
        "generation": known.generation if known is not None else None,
        "known": known.head if known is not None else None,
    }
    _, result = await db.together((_LOCK, parameters), (_CLAIM, parameters))
    if (row := result.first) is None:
        return None
    if row.more is None:
        raise _no_task(session_id)
    if row.more:
        return await _take_over(db, session_id, terms)
    claimed = beginnings.claim_of(row, row, row.messages or [], row.root, known)
    return await _with_budget(db, claimed, row, rules)


async def _made(db: Database, session_id: UUID, terms: _Terms) -> Claim | None:
    """The claim that was made under the token, its lease renewed; None where there is none."""
    async with db.transaction() as connection:
        lease = (await connection.execute(_LEASE_MADE, terms.lease(session_id))).first()
        if lease is None:
            return None
        task = (await connection.execute(_TASK_MADE, {"session": session_id})).one()
        made = await _read(connection, lease, task, terms)
    return await _with_budget(db, made, task, terms.rules)


async def _take_over(db: Database, session_id: UUID, terms: _Terms) -> Claim | None:
    """Claim a session in several steps, since what is to be done depends on what is found."""
    async with db.transaction() as connection:
        lease = (await connection.execute(_TAKE_LEASE, terms.lease(session_id))).first()
        if lease is None:
            return None
        task = await _take_task(connection, lease, terms.back_off)
        suspect = terms.quarantine_after is not None and task.attempts > terms.quarantine_after
        if suspect and task.cancel_requested_at is None:
            await connection.execute(_QUARANTINE, {"session": lease.id, "task_seq": task.seq})
            return None
        claimed = await _read(connection, lease, task, terms)
    return await _with_budget(db, claimed, task, terms.rules)


async def claim_quarantined(
    db: Database,
    *,
    lease_seconds: float,
    history: int,
    back_off: float = 0.0,
    rules: BudgetRules = NO_RULES,
    token: UUID | None = None,
    again: bool = False,
) -> Claim | None:
    """Take a session out of the quarantine; None where none waits, or one is out already.

    The arguments are those of `claim`.
    """
    terms = _Terms(token or uuid4(), lease_seconds, history, back_off, rules)
    parameters = {"token": terms.token, "lease_seconds": lease_seconds}
    if again and (made := await db.row(_QUARANTINED_MADE, parameters)) is not None:
        return await _made(db, made.id, terms)
    async with db.transaction() as connection:
        locked = await connection.execute(_LOCK_QUARANTINE, {"lock": QUARANTINE_LOCK})
        if not locked.scalar():
            return None
        lease = (await connection.execute(_TAKE_QUARANTINED, parameters)).first()
        if lease is None:
            return None
        task = await _take_task(connection, lease, back_off)
        claimed = await _read(connection, lease, task, terms)
    return await _with_budget(db, claimed, task, rules)


async def _read(connection: AsyncConnection, lease: AnyRow, task: AnyRow, terms: _Terms) -> Claim:
    return await beginnings.read(connection, lease, task, history=terms.history, known=terms.known)


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
