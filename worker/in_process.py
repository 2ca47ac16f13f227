"""Sessions in this process's memory: the same agents without gateway, queue, Redis or Postgres.

For tests, notebooks and a small bot. What the process forgets when it ends is gone.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID, uuid4

from agent_core import AbortSignal
from shared.encoding import JsonObject, dumps, loads
from shared.errors import Refused
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
from shared.souls import merged
from worker.agents import RegisteredAgent, Resources
from worker.attempt import run_attempt
from worker.task_log import TaskLog


@dataclass(slots=True)
class MemorySession:
    """A session that nobody else knows: its log, transcript, journal, ledger and state."""

    agent: str
    story: str | None = None
    story_hash: str | None = None
    character: JsonObject = field(default_factory=lambda: {"name": "", "soul": ""})
    id: UUID = field(default_factory=uuid4)
    state: JsonObject = field(default_factory=dict)
    view: JsonObject = field(default_factory=lambda: {"state": {}, "choices": []})
    events: list[Event] = field(default_factory=list)
    messages: list[JsonObject] = field(default_factory=list)
    steps: dict[tuple[int, int], Step] = field(default_factory=dict)
    ledger: list[LedgerEntry] = field(default_factory=list)
    tasks: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False, compare=False)
    soul: str = field(init=False)

    def __post_init__(self) -> None:
        """The newest soul is the one that the session begins with."""
        self.soul = self.character["soul"]


class MemoryTasks:
    """The TaskStore of one MemorySession. JSON goes in and out, as it would with Postgres."""

    def __init__(
        self, session: MemorySession, listener: Callable[[Event | Delta], None] | None = None
    ) -> None:
        self._session = session
        self._listener = listener

    async def write(
        self,
        claim: Claim,
        events: Sequence[NewEvent],
        steps: Sequence[Step],
        ledger: Sequence[LedgerEntry] = (),
    ) -> Written:
        """Append events, journal steps and enter calls of models."""
        self._session.ledger += ledger
        first_seq, at = len(self._session.events) + 1, datetime.now(UTC)
        for number, event in enumerate(events):
            data = loads(dumps(event.data))
            self._session.events.append(
                Event(first_seq + number, event.type, claim.task_id, at, data)
            )
        for step in steps:
            self._session.steps[claim.task_seq, step.no] = step
        return Written(first_seq, at, 1)

    async def end(self, claim: Claim, outcome: Outcome) -> Written:
        """End the task."""
        written = await self.write(claim, outcome.events, outcome.steps, outcome.ledger)
        self._session.messages += loads(dumps(list(outcome.messages)))
        if outcome.state is not None:
            self._session.state = loads(dumps(outcome.state))
        if outcome.view is not None:
            self._session.view = loads(dumps(outcome.view))
        self._keep_soul(outcome)
        return replace(written, open_tasks=0)

    def _keep_soul(self, outcome: Outcome) -> None:
        """Merge edits; the session is shown them from its next window on."""
        session = self._session
        for edit in outcome.lasting.soul_edits:
            with contextlib.suppress(Refused):
                session.soul = merged(session.soul, [edit])
        if outcome.lasting.window_cut:
            session.character["soul"] = session.soul

    async def join(self, claim: Claim, modes: Sequence[JoinMode], no: int) -> list[Joined]:
        """Nothing joins: an action waits for the session's lock until its own turn."""
        return []

    async def left(self, claim: Claim) -> Decimal | None:
        """Anything: nobody has a budget here."""
        return None

    def tell(self, claim: Claim, entries: Sequence[Event | Delta]) -> None:
        """Pass entries on to the listener."""
        if self._listener is not None:
            for entry in entries:
                self._listener(entry)


class InProcess:
    """Runs actions of memory sessions, one at a time for each session.

    Args:
        agents: what can be run, by name.
        resources: what they are given.
    """

    def __init__(
        self,
        agents: Mapping[str, RegisteredAgent],
        resources: Resources,
        *,
        task_seconds: float = 300,
        listener: Callable[[Event | Delta], None] | None = None,
    ) -> None:
        self._agents = agents
        self._resources = resources
        self._task_seconds = task_seconds
        self._listener = listener

    async def act(
        self, session: MemorySession, action: JsonObject, *, signal: AbortSignal | None = None
    ) -> Event:
        """Run an action; its terminal event."""
        async with session.lock:
            session.tasks += 1
            claim = _claim(session, action)
            store = MemoryTasks(session, self._listener)
            # Nobody else can take this session; what can't be written shows at the task's end.
            task_log = TaskLog(claim, store, on_lost=lambda: None)
            try:
                await run_attempt(
                    claim,
                    task_log,
                    self._agents,
                    resources=self._resources,
                    signal=signal or AbortSignal(),
                    task_seconds=self._task_seconds,
                    max_attempts=1,
                )
            finally:
                await task_log.close()
            return session.events[-1]


def _claim(session: MemorySession, action: JsonObject) -> Claim:
    """A claim with copies: an agent that changes what it was given changes no session."""
    return Claim(
        fence=Fence(session.id, 1, uuid4()),
        user_id="local",
        agent=session.agent,
        story=session.story,
        story_hash=session.story_hash,
        character=deepcopy(session.character),
        metadata={},
        state=deepcopy(session.state),
        view=deepcopy(session.view),
        next_message=len(session.messages) + 1,
        head_message=len(session.messages) or None,
        task_id=uuid4(),
        task_seq=session.tasks,
        action=deepcopy(action),
        attempt=1,
        attempts=1,
        cancel_requested=False,
        messages=deepcopy(session.messages),
    )
