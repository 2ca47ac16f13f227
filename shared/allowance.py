"""What users and API keys may spend, as an operator writes it."""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, TypeAlias

from shared.errors import SettingsError

Period: TypeAlias = Literal["total", "month", "day"]
"""How long a budget lasts: for ever, or to the end of the month or the day in UTC."""

_FORM = re.compile(r"(?P<usd>[0-9]{1,12}(\.[0-9]{1,9})?)(/(?P<period>month|day))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Budget:
    """So many US dollars, as they are billed, in each period."""

    usd: Decimal
    period: Period = "total"


@dataclass(frozen=True, slots=True)
class BudgetRules:
    """What holds for everyone who has no budget of their own.

    Args:
        per_user, per_key: None is without limit.
        reserve: US dollars that an accepted task is taken to cost as long as nothing is known of
            what the user's tasks do cost.
        economy: the part of a budget from which on cheaper models answer; 1 is never.
    """

    per_user: Budget | None = None
    per_key: Budget | None = None
    reserve: Decimal = Decimal(0)
    economy: Decimal = Decimal(1)


NO_RULES = BudgetRules()
"""Nobody has a budget, but for those who were given one."""


def read_budget(text: str | None) -> Budget | None:
    """A budget from `20/month`, `0.5/day` or `100`; None for none.

    Raises:
        SettingsError: it has another form.
    """
    if text is None:
        return None
    match = _FORM.fullmatch(text)
    if match is None:
        raise SettingsError("must be US dollars, as 100, 20/month or 0.5/day")
    periods: dict[str | None, Period] = {None: "total", "month": "month", "day": "day"}
    return Budget(Decimal(match["usd"]), periods[match["period"]])
