"""Whether there are budgets at all: without any, no action is kept waiting for a look at them."""

import asyncio

import structlog

from shared.allowance import BudgetRules
from shared.store import budgets
from shared.store.database import Database
from shared.trouble import Trouble

log = structlog.get_logger(__name__)


class Budgeting:
    """What actions are accepted by.

    Args:
        settled: what holds for everyone who has no budget of their own.
    """

    def __init__(self, settled: BudgetRules) -> None:
        self.settled = settled
        self._single = True  # until it is known

    @property
    def rules(self) -> BudgetRules | None:
        """What an action is accepted by now; None while nobody has a budget."""
        for_all = self.settled.per_user is not None or self.settled.per_key is not None
        return self.settled if for_all or self._single else None

    async def refresh_for_ever(self, db: Database, *, every: float) -> None:
        """Look whether anybody was given a budget, until cancelled.

        Args:
            every: seconds between two looks; so much later the first of all budgets holds.
        """
        trouble = Trouble(log, "budgets not looked for")
        while True:
            with trouble.catch():
                self._single = await budgets.exist(db)
            await asyncio.sleep(every)
