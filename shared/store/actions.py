"""Accepting: what a client's action changes before any worker sees it, and the task it became."""

import hashlib
from dataclasses import replace
from typing import Any, get_args
from uuid import UUID

from sqlalchemy import TextClause, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.allowance import BudgetRules
from shared.encoding import dumps, dumps_text
from shared.errors import (
    BudgetSpent,
    IdempotencyConflict,
    NotFound,
    SessionBusy,
    TooManyTasks,
)
from shared.levels import CHORE, COUNTED, level_of
from shared.records import EVENT_VERSION, Accepted, Event, JoinMode, NewAction, Task
from shared.store import budgets
from shared.store.cancels import cancel_if_asked_before
from shared.store.database import AnyRow, Database
from shared.store.exchange import kept

JOINS = frozenset(get_args(JoinMode))
"""What an action may ask for to join a task that runs."""

# What the statement looks at beside, where budgets are to be kept. What a task will cost is taken
# to be what the user's tasks cost on average; what open tasks will cost counts as spent.
_PURSE = f""", wallets as materialized (
        {budgets.wallets(":user", "cast(:key_id as text)")}
    ), taken as materialized (
        select coalesce(sum(reserved), 0) as by_user,
            coalesce(sum(reserved) filter (where key_id = :key_id), 0) as by_key
        from tasks where exists (select from wallets)
            and user_id = :user and status in ('queued', 'running')
    ), purse as materialized (
        select count(*) > 0 as limited, coalesce(bool_or(w.usd <= w.spent +
            case when w.key_id = '' then t.by_user else t.by_key end), false) as empty
        from wallets w, taken t
    )"""

_RESERVED = """case when (select limited from purse) then coalesce((
                select sum(total) / nullif(sum(tasks), 0) from spending
                where user_id = :user and key_id = ''), cast(:reserve as numeric)) end"""

# What the server does in sessions of its own is for clients as if it were not there.
_REACHED = f"(:chores or priority < {CHORE})"
_OWN_SESSION = f"id = :session and user_id = :user and {_REACHED}"
_OWN_TASK = f"session_id = :session and user_id = :user and client_action_id = :key and {_REACHED}"

_SPENT = f"""
    union all
    select null, 'spent', null, 0, null, false, null, null, 0, 0, 0
    from purse
    where empty and not exists (select from known)
        and exists (select from sessions where {_OWN_SESSION})"""

# Another interrupt that arrives at the same instant is not seen.
_BEFORE_INTERRUPT = """least(open_tasks - 1, (select count(*)::int from tasks
                where session_id = :session and (
                    status = 'running' or (status = 'queued' and on_busy = 'interrupt'))))"""


# The counters of the session's row are read from the row as it is once its lock is held
# (`returning`), never from the statement's snapshot: two actions that arrive at once get
# different numbers, and `reject` sees a task that was accepted a moment before.
def _accept_statement(*, budgeted: bool, refuses: bool = True) -> TextClause:
    purse, reserved = (_PURSE, _RESERVED) if budgeted else ("", "null")
    refused = ("and not (select empty from purse)", _SPENT)
    paid, spent = refused if budgeted and refuses else ("", "")
    return kept(
        f"""/* accept */
    with known as (
        select id, status, body_hash, queued_seq, position, priority from tasks
        where {_OWN_TASK}
    ), mine as materialized (
        select count(*)::int as open, count(*) filter (where priority = 0)::int as before
        from (select priority from tasks
              where user_id = :user and status in ('queued', 'running')
                  and priority < {CHORE} limit :counted) t
    ){purse}, session as (
        update sessions set
            next_task = next_task + 1,
            next_event = next_event + 1,
            open_tasks = open_tasks + 1,
            hints = case when open_tasks = 0 then 0 else hints end,
            hint_at = case when open_tasks = 0
                           then clock_timestamp() + interval '1 second' else hint_at end,
            updated_at = clock_timestamp()
        where {_OWN_SESSION}
            and not exists (select from known)
            and (:on_busy <> 'reject' or open_tasks = 0)
            and (cast(:most as int) is null or (select open from mine) < cast(:most as int))
            and (early_cancels = 0 or not :alone)
            {paid}
        returning next_task - 1 as task_seq, next_event - 1 as event_seq,
            case when :on_busy = 'interrupt' then {_BEFORE_INTERRUPT} else open_tasks - 1 end
                as position, early_cancels, priority
    ), task as (
        insert into tasks (session_id, seq, user_id, client_action_id, action, body_hash,
            on_busy, queued_seq, position, priority, key_id, reserved)
        select :session, task_seq, :user, :key, cast(:action as jsonb), :body_hash,
            :on_busy, event_seq, position, priority, :key_id, {reserved}
        from session
        returning id, queued_seq, position
    ), event as (
        insert into events (session_id, seq, task_id, type, data, version)
        select :session, task.queued_seq, task.id, 'task_queued',
            jsonb_build_object('action', cast(:action as jsonb), 'client_action_id',
                cast(:key as text), 'position', task.position), {EVENT_VERSION}
        from task
        returning at, data
    )
    select task.id, 'queued' as status, task.queued_seq, task.position, null as body_hash,
        true as fresh, event.at, event.data, session.early_cancels, session.priority, mine.before
    from task, event, session, mine
    union all
    select id, status, queued_seq, position, body_hash, false, null, null, 0, priority,
        mine.before - 1
    from known, mine{spent}
    union all
    select null, 'refused', null, mine.open, null, false, null, null, 0, 0, 0
    from mine
    where mine.open >= cast(:most as int) and not exists (select from known)
        and exists (select from sessions where {_OWN_SESSION})
    """
    )


_ACCEPTS = {budgeted: _accept_statement(budgeted=budgeted) for budgeted in (False, True)}
_ACCEPT_PAID = _accept_statement(budgeted=True, refuses=False)

_KNOWN = text(
    f"""/* accept known */
    select id, status, queued_seq, position, body_hash, false as fresh, priority, 0 as before
    from tasks where {_OWN_TASK}
    """
)

_SESSION_EXISTS = text(f"/* accept session */ select 1 from sessions where {_OWN_SESSION}")

_INTERRUPT = text(
    """/* interrupt */
    update tasks set cancel_requested_at = coalesce(cancel_requested_at, clock_timestamp())
    where session_id = :session and user_id = :user and status = 'running'
    returning id
    """
)

_TASK = kept(
    f"""/* task */
    select t.id, t.session_id, t.status, t.claims, t.result, t.error, t.usage, t.created_at,
        t.started_at, t.finished_at, coalesce(s.lease_until > clock_timestamp(), false)
    from tasks t join sessions s on s.id = t.session_id
    where t.id = :task and t.user_id = :user and s.priority < {CHORE}
    """
)


async def accept(
    db: Database,
    user_id: str,
    session_id: UUID,
    new: NewAction,
    *,
    most: int | None = None,
    rules: BudgetRules | None = None,
) -> Accepted:
    """Make an action a task, or find the task that its key made before.

    Args:
        most: how many open tasks the user may have. They are counted in the same statement, which
            sees what was committed before it: actions that arrive at the same instant may go
            beyond it together.
        rules: what may be spent by those who have no budget of their own; None has no budget
            looked at. What open tasks are taken to cost counts as spent, seen as `most` is.

    Raises:
        NotFound: the user has no such session; those that the server made for its own chores
            count as nobody's.
        TooManyTasks: so many of the user's are open already; an action that was accepted before
            is found all the same.
        BudgetSpent: nothing is left to pay it from; the same holds.
        SessionBusy: `on_busy` is `reject` and a task of the session is open.
        IdempotencyConflict: the key belongs to another action.
        StoreUnavailable: whether it was accepted is not known; send it again with its key.
    """
    try:
        return await _accept(db, user_id, session_id, new, most, rules)
    except IntegrityError:
        # The same key arrived twice at once and the other one won: now it can be seen.
        return await _accept(db, user_id, session_id, new, most, rules)


async def _accept(
    db: Database,
    user_id: str,
    session_id: UUID,
    new: NewAction,
    most: int | None,
    rules: BudgetRules | None,
) -> Accepted:
    if new.on_busy != "interrupt":
        # Mostly one statement does it all, and is its own transaction: two round trips less.
        parameters = _parameters(user_id, session_id, new, most, rules, alone=True, chores=False)
        row = await db.row(_ACCEPTS[rules is not None], parameters)
        if row is not None:
            return _accepted(row, parameters)
    async with db.transaction() as connection:
        return await accept_within(
            connection, user_id, session_id, new, most=most, rules=rules, chores=False
        )


def _parameters(
    user_id: str,
    session_id: UUID,
    new: NewAction,
    most: int | None,
    rules: BudgetRules | None,
    *,
    alone: bool,
    chores: bool,
) -> dict[str, Any]:
    money = {} if rules is None else {**budgets.parameters(rules), "reserve": rules.reserve}
    return {
        **money,
        "key_id": new.key_id,
        "session": session_id,
        "user": user_id,
        "key": new.client_action_id,
        "action": dumps_text(new.action),
        "body_hash": hashlib.sha256(dumps([new.action, new.on_busy])).digest(),
        "on_busy": new.on_busy,
        "alone": alone,
        "chores": chores,
        "most": most,
        "counted": max(most or 0, COUNTED),
    }


async def accept_within(
    connection: AsyncConnection,
    user_id: str,
    session_id: UUID,
    new: NewAction,
    *,
    most: int | None = None,
    rules: BudgetRules | None = None,
    paid: bool = False,
    chores: bool = True,
) -> Accepted:
    """The same inside a transaction of the caller's; may raise IntegrityError for a doubled key.

    Args:
        paid: what it is likely to cost was paid already: a budget that is spent does not refuse
            it, and holds for its calls all the same.
        chores: also where the session is one that the server made for its own chores.
    """
    parameters = _parameters(user_id, session_id, new, most, rules, alone=False, chores=chores)
    statement = _ACCEPT_PAID if paid and rules is not None else _ACCEPTS[rules is not None]
    row = (await connection.execute(statement, parameters)).first()
    if row is None:
        return await _refused(connection, parameters)
    accepted = _accepted(row, parameters)
    if not accepted.fresh:
        return accepted
    if row.early_cancels and new.client_action_id is not None:
        ended = await cancel_if_asked_before(connection, parameters, row.id)
        if ended:
            return replace(accepted, status="cancelled", events=(*accepted.events, *ended))
    if new.on_busy == "interrupt":
        interrupted = (await connection.execute(_INTERRUPT, parameters)).scalar()
        return replace(accepted, interrupts=interrupted)
    return accepted


async def _refused(connection: AsyncConnection, parameters: dict[str, Any]) -> Accepted:
    """Why nothing was accepted. Under `reject`, an action that arrives twice at once finds the
    session busy with itself; a newer snapshot shows that it is known."""
    row = (await connection.execute(_KNOWN, parameters)).first()
    if row is not None:
        return _accepted(row, parameters)
    if (await connection.execute(_SESSION_EXISTS, parameters)).first() is None:
        raise NotFound("no such session")
    raise SessionBusy("a task of this session is running or waiting")


def _accepted(row: AnyRow, parameters: dict[str, Any]) -> Accepted:
    """What a row of `_ACCEPTS` or `_KNOWN` says."""
    if row.status == "refused":
        raise TooManyTasks(row.position)
    if row.status == "spent":
        raise BudgetSpent("The budget for this is spent.")
    if not row.fresh and bytes(row.body_hash) != parameters["body_hash"]:
        raise IdempotencyConflict("this key was used for another action")
    queued = [Event(row.queued_seq, "task_queued", row.id, row.at, row.data)] if row.fresh else []
    return Accepted(
        task_id=row.id,
        session_id=parameters["session"],
        seq=row.queued_seq,
        position=row.position,
        status=row.status,
        fresh=row.fresh,
        events=tuple(queued),
        level=level_of(row.before, row.priority),
        joins=row.fresh and row.position > 0 and parameters["on_busy"] in JOINS,
    )


async def get_task(db: Database, user_id: str, task_id: UUID) -> Task:
    """One task; raises NotFound where the user has none by that id."""
    row = await db.row(_TASK, {"task": task_id, "user": user_id})
    if row is None:
        raise NotFound("no such task")
    return Task(*row)
