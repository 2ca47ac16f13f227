"""Budgets as their users see them: what is left, and why an action was refused."""

import math
from datetime import UTC, datetime

from api.gateway import Gateway
from api.problems import Problem
from shared.encoding import JsonObject
from shared.errors import BudgetSpent
from shared.store import budgets
from shared.store.budgets import Balance


async def of_caller(parts: Gateway, user_id: str, key_id: str) -> list[Balance]:
    """The budgets that a caller's actions are paid from."""
    return await budgets.balances(parts.db, user_id, parts.budgeting.settled, key_id=key_id)


def body(balance: Balance) -> JsonObject:
    """A budget as JSON."""
    return {
        "of": "key" if balance.key_id else "user",
        "period": balance.period,
        "limit_usd": float(balance.usd),
        "spent_usd": float(balance.spent),
        "reserved_usd": float(balance.reserved),
        "left_usd": float(balance.left),
        "renews_at": balance.renews_at,
    }


async def problem(parts: Gateway, user_id: str, key_id: str) -> Problem:
    """What a client is told whose action was refused. There is a time after which to try again
    only where each budget that is spent renews itself."""
    parts.metrics.unpaid()
    spent = [one for one in await of_caller(parts, user_id, key_id) if one.left <= 0]
    detail = "The budget for this is spent."
    renewals = [one.renews_at for one in spent if one.renews_at is not None]
    if not spent or len(renewals) < len(spent):
        return Problem(BudgetSpent.code, detail)
    seconds = max(1, math.ceil((max(renewals) - datetime.now(UTC)).total_seconds()))
    told = {"retry_after": seconds, "renews_at": max(renewals)}
    return Problem(BudgetSpent.code, detail, told, {"Retry-After": str(seconds)})
