"""Claims, and a store that keeps what an attempt writes, for tests without servers."""

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

from shared.errors import FiresideError
from shared.events import Delta
from shared.records import (
    Claim,
    Event,
    Fence,
    Joined,
    JoinMode,
    LedgerEntry,
    NewEvent,
    Outcome,
    Step,
    Written,
)

SESSION = UUID(int=1)
TASK = UUID(int=2)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def claim(
    *,
    attempt: int = 1,
    attempts: int = 1,
    steps: Sequence[Step] = (),
    events: Sequence[Event] = (),
    agent: str = "test",
) -> Claim:
    return Claim(
        fence=Fence(SESSION, attempt, UUID(int=100 + attempt)),
        user_id="user",
        agent=agent,
        story=None,
        story_hash=None,
        character={"name": "Ash", "soul": ""},
        metadata={},
        state={},
        view={"state": {}, "choices": []},
        next_message=1,
        head_message=None,
        task_id=TASK,
        task_seq=1,
        action={"type": "say", "text": "hi"},
        attempt=attempt,
        attempts=attempts,
        cancel_requested=False,
        messages=[],
        steps=steps,
        events=events,
    )


class KeepingStore:
    """A TaskStore that keeps everything; `failure` makes every further write raise."""

    def __init__(self, *, first_seq: int = 1) -> None:
        self.writes: list[tuple[list[NewEvent], list[Step]]] = []
        self.told: list[Event | Delta] = []
        self.outcome: Outcome | None = None
        self.failure: FiresideError | None = None
        self._next = first_seq
        self.ledger: list[LedgerEntry] = []
        self.money: Decimal | None = None
        self.waiting: list[tuple[UUID, str]] = []
        self.asked: list[tuple[tuple[JoinMode, ...], int]] = []

    async def write(
        self,
        claim: Claim,
        events: Sequence[NewEvent],
        steps: Sequence[Step],
        ledger: Sequence[LedgerEntry] = (),
    ) -> Written:
        if self.failure is not None:
            raise self.failure
        self.ledger += ledger
        self.writes.append((list(events), list(steps)))
        first, self._next = self._next, self._next + len(events)
        return Written(first, NOW, 1)

    async def end(self, claim: Claim, outcome: Outcome) -> Written:
        written = await self.write(claim, outcome.events, outcome.steps, outcome.ledger)
        self.outcome = outcome
        return Written(written.first_seq, written.at, 0)

    async def join(self, claim: Claim, modes: Sequence[JoinMode], no: int) -> list[Joined]:
        self.asked.append((tuple(modes), no))
        if self.failure is not None:
            raise self.failure
        waiting, self.waiting = self.waiting, []
        return [Joined(task_id, text, no) for task_id, text in waiting]

    async def left(self, claim: Claim) -> Decimal | None:
        return self.money

    def tell(self, claim: Claim, entries: Sequence[Event | Delta]) -> None:
        self.told += entries

    @property
    def events(self) -> list[NewEvent]:
        return [event for events, _ in self.writes for event in events]

    @property
    def kinds(self) -> list[str]:
        return [event.type for event in self.events]
