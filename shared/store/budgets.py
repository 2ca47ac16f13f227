"""What users and API keys may spend, and what of it they have spent.

What is reserved stands nowhere but in the open tasks themselves: however a task ends, its
reservation is gone with that, and nobody can forget to give it back.
"""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import text

from shared.allowance import Budget, BudgetRules, Period
from shared.store.database import Database

_NOW = "(clock_timestamp() at time zone 'UTC')"


def wallets(user: str, key: str) -> str:
    """SQL that gives a row (key_id, usd, period, spent) for each budget that is to be paid from.

    Args:
        user, key: SQL for the user's id and the key's, '' where there was no key. The row of the
            user's own budget has the `key_id` ''.

    The statement takes what `parameters` gives.
    """
    return f"""
        select l.key_id, l.usd, l.period, (
            select coalesce(sum(case
                when l.period = 'total' then s.total
                when l.period = 'month' and s.month = date_trunc('month', {_NOW}) then s.in_month
                when l.period = 'day' and s.day = {_NOW}::date then s.in_day
                else 0 end), 0)
            from spending s where s.user_id = {user} and s.key_id = l.key_id) as spent
        from (
            select d.key_id, case when b.user_id is null then d.usd else b.usd end as usd,
                case when b.user_id is null then d.period else b.period end as period
            from (values ('', cast(:user_usd as numeric), cast(:user_period as text)),
                         (nullif({key}, ''), cast(:key_usd as numeric), cast(:key_period as text))
                ) as d(key_id, usd, period)
            left join budgets b on b.user_id = {user} and b.key_id = d.key_id
            where d.key_id is not null
        ) as l
        where l.usd is not null"""


# What open tasks will cost counts as spent.
_BALANCES = text(
    f"""/* budgets balances */
    select w.key_id, w.usd, w.period, w.spent, (
        select coalesce(sum(t.reserved), 0) from tasks t
        where t.user_id = :user and t.status in ('queued', 'running')
            and (w.key_id = '' or t.key_id = w.key_id)) as reserved,
        case w.period
            when 'month' then (date_trunc('month', {_NOW}) + interval '1 month')
            when 'day' then (date_trunc('day', {_NOW}) + interval '1 day')
        end at time zone 'UTC' as renews_at
    from ({wallets(":user", "cast(:key_id as text)")}) as w
    order by w.key_id
    """
)

_PURSE = text(
    f"""/* budgets purse */
    select min(w.usd - w.spent) as "left",
        coalesce(bool_or(w.spent >= w.usd * e.part and e.part < 1), false) as economy
    from ({wallets(":user", "cast(:key_id as text)")}) as w,
        (select cast(:economy as numeric) as part) as e
    """
)

_ANY = text("/* budgets any */ select exists (select from budgets)")

_SET = text(
    """/* budgets set */
    insert into budgets (user_id, key_id, usd, period) values (:user, :key_id, :usd, :period)
    on conflict (user_id, key_id) do update set usd = excluded.usd, period = excluded.period,
        set_at = clock_timestamp()
    """
)

_CLEAR = text("/* budgets clear */ delete from budgets where user_id = :user and key_id = :key_id")

_PAGE = text(
    """/* budgets page */
    select user_id, key_id, usd, period from budgets
    where cast(:user as text) is null or user_id = :user order by user_id, key_id
    """
)


@dataclass(frozen=True, slots=True)
class Balance:
    """A budget, and how much of it is left: dollars as they are billed.

    `key_id` is the API key's id, '' for what all that the user does is paid from. `reserved` is for
    the open tasks. `renews_at` is None for a budget that does not.
    """

    key_id: str
    usd: Decimal
    period: Period
    spent: Decimal
    reserved: Decimal
    renews_at: datetime | None

    @property
    def left(self) -> Decimal:
        """What a further task may be paid from."""
        return max(self.usd - self.spent - self.reserved, Decimal(0))


@dataclass(frozen=True, slots=True)
class Purse:
    """What may still be spent, below zero where more was; None without any budget. With `economy`
    most of a budget is spent."""

    left: Decimal | None
    economy: bool


@dataclass(frozen=True, slots=True)
class SetBudget:
    """A budget that was set for a user or one of their keys; without `budget` it is unlimited."""

    user_id: str
    key_id: str
    budget: Budget | None


def parameters(rules: BudgetRules) -> dict[str, Any]:
    """What a statement with `wallets` in it takes."""
    user, key = rules.per_user, rules.per_key
    return {
        "user_usd": None if user is None else user.usd,
        "user_period": None if user is None else user.period,
        "key_usd": None if key is None else key.usd,
        "key_period": None if key is None else key.period,
    }


async def balances(
    db: Database, user_id: str, rules: BudgetRules, *, key_id: str = ""
) -> list[Balance]:
    """The budgets that a user's actions are paid from; those of an API key with it."""
    rows = await db.rows(_BALANCES, {"user": user_id, "key_id": key_id, **parameters(rules)})
    return [Balance(*row) for row in rows]


async def purse(db: Database, user_id: str, key_id: str, rules: BudgetRules) -> Purse:
    """What a task may be paid from."""
    row = await db.row(_PURSE, _asked(user_id, key_id, rules))
    assert row is not None
    return Purse(row.left, row.economy)


async def left(
    db: Database, user_id: str, rules: BudgetRules, *, key_id: str = ""
) -> Decimal | None:
    """What may still be spent, as a `Purse` says it."""
    return (await purse(db, user_id, key_id, rules)).left


def _asked(user_id: str, key_id: str, rules: BudgetRules) -> dict[str, Any]:
    found = {"user": user_id, "key_id": key_id, "economy": rules.economy}
    return found | parameters(rules)


async def exist(db: Database) -> bool:
    """Whether anybody has a budget of their own."""
    row = await db.row(_ANY)
    return row is not None and bool(row[0])


async def put(db: Database, user_id: str, budget: Budget | None, *, key_id: str = "") -> None:
    """Give a user, or one of their keys, a budget of their own; None is without limit."""
    chosen = Budget(Decimal(0)) if budget is None else budget
    usd = None if budget is None else budget.usd
    found = {"user": user_id, "key_id": key_id, "usd": usd, "period": chosen.period}
    await db.run(_SET, found)


async def clear(db: Database, user_id: str, *, key_id: str = "") -> bool:
    """Have the rules for everyone hold again; whether there was a budget."""
    return await db.run(_CLEAR, {"user": user_id, "key_id": key_id}) == 1


async def page(db: Database, user_id: str | None = None) -> list[SetBudget]:
    """The budgets that were set, of one user or of all."""
    return [
        SetBudget(row.user_id, row.key_id, None if row.usd is None else Budget(row.usd, row.period))
        for row in await db.rows(_PAGE, {"user": user_id})
    ]
