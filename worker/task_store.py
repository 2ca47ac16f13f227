"""Where an attempt is written: what its log asks of a store, and how it hears that it may not."""

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Protocol, TypeAlias

from agent_core import JournalError
from shared.events import Delta
from shared.records import (
    Claim,
    Event,
    Joined,
    JoinMode,
    LedgerEntry,
    NewEvent,
    Outcome,
    Step,
    Written,
)


class TaskStore(Protocol):
    """Where an attempt is written and told: Postgres and Redis, or this process's memory."""

    async def write(
        self,
        claim: Claim,
        events: Sequence[NewEvent],
        steps: Sequence[Step],
        ledger: Sequence[LedgerEntry] = (),
    ) -> Written:
        """Append events, journal steps and enter calls of models; raises LeaseLost."""

    async def join(self, claim: Claim, modes: Sequence[JoinMode], no: int) -> list[Joined]:
        """Take waiting actions into the task; raises LeaseLost."""

    async def end(self, claim: Claim, outcome: Outcome) -> Written:
        """End the task; raises LeaseLost."""

    async def left(self, claim: Claim) -> Decimal | None:
        """What the task may still spend, in dollars; None for anything."""

    def tell(self, claim: Claim, entries: Sequence[Event | Delta]) -> None:
        """Tell clients; never waits and never raises, for they can find events in the log."""


LateEntries: TypeAlias = Callable[[Claim, Sequence[LedgerEntry]], None]
"""Takes calls of models that an attempt can't enter itself any more."""


class AttemptLostError(JournalError):
    """This attempt may write no more: its lease is gone, or Postgres is."""
