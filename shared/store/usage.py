"""The ledger: one row for each call of a model, and what users and keys have spent by it.

Rows are only ever added. A row is named by its task, the attempt and the call's number in it, so
that a write which is sent twice enters and charges it once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Literal, TypeAlias
from uuid import UUID, uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.encoding import dumps_text
from shared.records import Claim, LedgerEntry
from shared.store.database import Database

SLOTS = 16
"""In how many rows a user's or a key's spending is counted: two calls that end at once change the
same row once in so many times."""

# To be put into a statement with a `fence` that has the time; it enters nothing where that is
# empty. Rows of `spending` are locked after the session's, the user's before the key's.
NEW_USAGE = """new_usage as (
        insert into usage (session_id, task_id, attempt, no, user_id, key_id, agent, model, purpose,
            step, outcome, reported, input, output, cache_read, cache_write, usd, estimated_usd,
            prices, mark_up, at)
        select :session, :task, :attempt, u.no, :user, :key_id, :agent, u.model, u.purpose,
            u.step, u.outcome, u.reported, u.input, u.output, u.cache_read, u.cache_write, u.usd,
            u.estimated_usd, u.prices, u.mark_up, fence.at
        from fence, jsonb_to_recordset(cast(:usage as jsonb)) as u(no int, model text,
            purpose text, step int, outcome text, reported boolean, input int, output int,
            cache_read int, cache_write int, usd numeric, estimated_usd numeric, prices text,
            mark_up numeric)
        where u.outcome <> 'lost' or not exists (
            select from usage x where x.session_id = :session and x.task_id = :task
                and x.attempt = :attempt - 1 and x.step = u.step)
        on conflict do nothing
        returning attempt, no, (coalesce(usd, 0) + estimated_usd) * mark_up as billed,
            at at time zone 'UTC' as at
    ), billed as (
        select sum(billed) as usd, count(*) filter (where attempt = 1 and no = 0) as tasks,
            max(at) as at
        from new_usage having count(*) > 0
    ), spent as (
        insert into spending as s (user_id, key_id, slot, tasks, total, month, in_month, day,
            in_day)
        select :user, k.key_id, :slot, b.tasks, b.usd, date_trunc('month', b.at)::date, b.usd,
            b.at::date, b.usd
        from billed b, (select '' as key_id union select cast(:key_id as text)) as k
        order by k.key_id
        on conflict (user_id, key_id, slot) do update set
            tasks = s.tasks + excluded.tasks,
            total = s.total + excluded.total,
            month = greatest(s.month, excluded.month),
            in_month = case when s.month >= excluded.month then s.in_month else 0 end
                + case when excluded.month >= s.month then excluded.in_month else 0 end,
            day = greatest(s.day, excluded.day),
            in_day = case when s.day >= excluded.day then s.in_day else 0 end
                + case when excluded.day >= s.day then excluded.in_day else 0 end
    )"""

_APPEND = text(
    f"""/* usage append */
    with fence as (select clock_timestamp() as at), {NEW_USAGE} select 1
    """
)

# Who erases a user deletes the characters, which waits for this, and goes through the ledger last.
_USER_EXISTS = text(
    """/* usage user */
    select 1 from characters where user_id = :user limit 1 for key share
    """
)

# Who has deleted the last character is not erased. An erasure locks these before it goes through
# the ledger, beginning with the same one: neither can wait for the other with others in hand.
_USER_PAYS = text(
    """/* usage payer */
    select 1 from spending where user_id = :user order by key_id, slot limit 1 for key share
    """
)

_LOCK_MONEY = text(
    """/* usage lock spending */
    select 1 from spending where user_id = :user order by key_id, slot for update
    """
)

_WILL_PAY = text(
    """/* usage will pay */
    insert into spending (user_id, key_id, slot, tasks, total, month, in_month, day, in_day)
    select :user, '', 0, 0, 0, date_trunc('month', now.at)::date, 0, now.at::date, 0
    from (select clock_timestamp() at time zone 'UTC' as at) now
    where exists (select from tasks where session_id = :session and status = 'running')
    on conflict (user_id, key_id, slot) do nothing
    """
)

_FORGET = text(
    """/* usage forget */
    update usage set user_id = :unknown, key_id = '', session_id = gen_random_uuid(),
        task_id = gen_random_uuid()
    where (session_id, task_id, attempt, no) in (
        select session_id, task_id, attempt, no from usage where user_id = :user limit :rows)
    """
)

_FORGET_MONEY = [
    text("/* usage forget spending */ delete from spending where user_id = :user"),
    text("/* usage forget budgets */ delete from budgets where user_id = :user"),
]

FORGOTTEN_AT_ONCE = 10_000

Part: TypeAlias = Literal["day", "agent", "model", "purpose"]
"""By what usage is told apart."""

_PARTS: dict[Part, str] = {
    "day": "(at at time zone :zone)::date",
    "agent": "agent",
    "model": "model",
    "purpose": "purpose",
}

_WITHOUT_PRICE = text(
    """/* usage without price */
    select count(*) from usage where usd is null and at > clock_timestamp() - interval '1 day'
    """
)


@dataclass(frozen=True, slots=True)
class UsageSum:
    """What some calls used and cost.

    A part that the sum is not told apart by is None. `input` is without what was read from or
    written to the provider's cache. `usd` is what the tokens cost that providers reported, None
    where no call had a price; `estimated_usd` what calls cost, about, that broke off before their
    provider had said it; `billed_usd` both with the mark-up of their time. `unpriced` calls are in
    none of them.
    """

    day: date | None
    agent: str | None
    model: str | None
    purpose: str | None
    calls: int
    unreported: int
    unpriced: int
    input: int
    output: int
    cache_read: int
    cache_write: int
    usd: Decimal | None
    estimated_usd: Decimal
    billed_usd: Decimal


@dataclass(frozen=True, slots=True)
class UsageSums:
    """The sum of everything, and the sums that it is told apart into, all of one moment."""

    total: UsageSum
    rows: list[UsageSum]


def parameters(claim: Claim, entries: Sequence[LedgerEntry]) -> dict[str, Any]:
    """What a statement with `NEW_USAGE` in it takes, beside its `fence`'s."""
    return {
        "session": claim.fence.session_id,
        "task": claim.task_id,
        "attempt": claim.attempt,
        "user": claim.user_id,
        "key_id": claim.key_id,
        "agent": claim.agent,
        "slot": claim.fence.session_id.int % SLOTS,
        "usage": dumps_text([_row(entry) for entry in entries]),
    }


def _row(entry: LedgerEntry) -> dict[str, Any]:
    # Decimals travel as text, which numeric takes to the last digit.
    return {
        "no": entry.no,
        "model": entry.model,
        "purpose": entry.purpose,
        "step": entry.step,
        "outcome": entry.outcome,
        "reported": entry.reported,
        "input": entry.input,
        "output": entry.output,
        "cache_read": entry.cache_read,
        "cache_write": entry.cache_write,
        "usd": None if entry.usd is None else str(entry.usd),
        "estimated_usd": str(entry.estimated_usd),
        "prices": entry.prices,
        "mark_up": str(entry.mark_up),
    }


async def append(db: Database, claim: Claim, entries: Sequence[LedgerEntry]) -> None:
    """Enter calls of an attempt that may write nothing else any more; they were paid for.

    What stands there already stays as it is. Calls of a user who was erased meanwhile are entered
    under an id that says nothing.
    """
    found = parameters(claim, entries)
    async with db.transaction() as connection:
        if not await _is_known(connection, claim.user_id):
            found |= {"user": _unknown(), "key_id": ""}
        await connection.execute(_APPEND, found)


async def append_call(
    connection: AsyncConnection,
    user_id: str | None,
    agent: str,
    *,
    session_id: UUID,
    call_id: UUID,
    entry: LedgerEntry,
) -> None:
    """Enter a call that no task has made, in the caller's transaction.

    Args:
        user_id: None where nobody knows any more whose it was.
        call_id: stands in place of the task: what is there already stays as it is.
    """
    known = user_id is not None and await _is_known(connection, user_id)
    found = {
        "session": session_id,
        "task": call_id,
        "attempt": 1,
        "user": user_id if known else _unknown(),
        "key_id": "",
        "agent": agent,
        "slot": session_id.int % SLOTS,
        "usage": dumps_text([_row(entry)]),
    }
    await connection.execute(_APPEND, found)


async def _is_known(connection: AsyncConnection, user_id: str) -> bool:
    """Whether a user was not erased, and will not be before this transaction has ended."""
    for statement in (_USER_EXISTS, _USER_PAYS):
        if (await connection.execute(statement, {"user": user_id})).first() is not None:
            return True
    return False


async def will_pay(connection: AsyncConnection, user_id: str, session_id: UUID) -> None:
    """Keep in mind whose call is under way in a session that is about to be deleted: it may be the
    last that there is of them. Under the session's lock."""
    await connection.execute(_WILL_PAY, {"user": user_id, "session": session_id})


async def forget(connection: AsyncConnection, user_id: str) -> str:
    """Take a user's name out of the ledger; budgets and what was spent of them go.

    The last thing in the transaction that erases a user: nobody adds to the ledger for a user
    who has neither characters nor spent anything.

    Returns:
        The random id under which the sums stand from now on.
    """
    unknown = _unknown()
    names = {"user": user_id, "unknown": unknown, "rows": FORGOTTEN_AT_ONCE}
    await connection.execute(_LOCK_MONEY, names)
    while (await connection.execute(_FORGET, names)).rowcount:
        pass
    for statement in _FORGET_MONEY:
        await connection.execute(statement, names)
    return unknown


def _unknown() -> str:
    return f"erased-{uuid4()}"


async def sums(
    db: Database,
    user_id: str,
    *,
    since: datetime,
    before: datetime,
    zone: str = "UTC",
    by: Sequence[Part] = (),
    session_id: UUID | None = None,
    task_id: UUID | None = None,
) -> UsageSums:
    """What a user's calls used from one moment to another, told apart by some parts.

    Args:
        zone: in which days are counted, by its IANA name.
        by: with none there are no rows beside the total.
    """
    chosen = ", ".join(_PARTS[part] if part in by else "null" for part in _PARTS)
    grouped = [_PARTS[part] for part in _PARTS if part in by]
    # No part is ever null but in the total, which so comes first.
    order = ", ".join(f"{part} nulls first" for part in grouped)
    statement = text(
        f"""/* usage sums */
        select {chosen}, count(*), count(*) filter (where not reported),
            count(*) filter (where usd is null), coalesce(sum(input), 0), coalesce(sum(output), 0),
            coalesce(sum(cache_read), 0), coalesce(sum(cache_write), 0), sum(usd),
            coalesce(sum(estimated_usd), 0),
            coalesce(sum((coalesce(usd, 0) + estimated_usd) * mark_up), 0)
        from usage
        where user_id = :user and at >= :since and at < :before
            and (cast(:session as uuid) is null or session_id = cast(:session as uuid))
            and (cast(:task as uuid) is null or task_id = cast(:task as uuid))
        {f"group by grouping sets ((), ({', '.join(grouped)})) order by {order}" if order else ""}
        """
    )
    rows = await db.rows(
        statement,
        {
            "user": user_id,
            "since": since,
            "before": before,
            "zone": zone,
            "session": session_id,
            "task": task_id,
        },
    )
    total, *parts = [UsageSum(*row) for row in rows]
    return UsageSums(total, parts)


async def without_price(db: Database) -> int:
    """How many calls of the last day were of models without a price."""
    row = await db.row(_WITHOUT_PRICE)
    return 0 if row is None else int(row[0])
