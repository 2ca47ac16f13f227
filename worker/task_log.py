"""What one attempt of a task gives: its events in order, its deltas, its journal, its messages.

Everything passes through one outbox, so that the log, the frames and the journal agree. Durable
entries are grouped: those of one moment are one fenced write. Nothing here knows SQL or Redis.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Literal, Protocol, TypeAlias, TypeVar
from uuid import UUID

import structlog

from agent_core import (
    AgentEvent,
    AssistantMessage,
    JournalError,
    StepRequest,
    StepStart,
    TextContent,
    TextDelta,
    Usage,
    UserMessage,
)
from shared.encoding import JsonObject
from shared.errors import LeaseLost
from shared.events import Delta
from shared.records import (
    NOTHING_LASTING,
    Claim,
    Event,
    Joined,
    JoinMode,
    Lasting,
    LedgerEntry,
    NewEvent,
    Outcome,
    Step,
    Written,
)
from worker.joining import Joining
from worker.takeover import recall, told_before

log = structlog.get_logger(__name__)

GROUP_SECONDS = 0.02
"""How long a durable entry may wait for others, where nobody waits for it."""

DELTA_SECONDS = 0.1
DELTA_PIECES = 40
"""Deltas leave after this long or this many pieces, whichever comes first."""

T = TypeVar("T")

Status: TypeAlias = Literal["completed", "failed", "cancelled", "dead"]


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


def _drop(claim: Claim, entries: Sequence[LedgerEntry]) -> None:
    """Nobody keeps books."""


class AttemptLostError(JournalError):
    """This attempt may write no more: its lease is gone, or Postgres is."""


class TaskLog:
    """The event sink and the step journal of one attempt.

    Args:
        claim: the session and the task; its steps and events are what earlier attempts left.
        store: where the attempt is written.
        on_lost: called once when the attempt may write no more; the run must then stop.
        on_late: given calls of models that end when the attempt may write no more, or whose write
            may have failed: they were paid for all the same.

    `told` are the messages that earlier attempts told, `committed` those that the task's end has
    put into the transcript, None until it has, and `status` how it ended. `ending` says that the
    terminal event is on its way: nothing else decides the task any more. `lost_to` is what kept the
    attempt from writing more, or None.
    """

    def __init__(
        self,
        claim: Claim,
        store: TaskStore,
        *,
        on_lost: Callable[[], None],
        on_late: LateEntries = _drop,
    ) -> None:
        self._claim = claim
        self._store = store
        self._on_lost = on_lost
        self._on_late = on_late
        self._ledger: list[LedgerEntry] = []
        self._calls = 0
        self._outbox: list[NewEvent | Delta] = []
        self._steps: dict[int, Step] = {}
        self._memos = {step.no: step for step in claim.steps}
        told = told_before(claim.events)
        self._settled, self._messages = told.settled, told.messages
        self.told = list(told.messages)
        self._joining = Joining(claim, told.joined)
        self._unread = set(self._memos)
        self._ordinals: Counter[str] = Counter()
        self._number = -1
        self._open: _OpenMessage | None = None
        self._pieces = 0
        self._lock = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._flush_at = 0.0
        self._next_flush: asyncio.Task[None] | None = None
        self._writes: set[asyncio.Task[Any]] = set()
        self._lost: AttemptLostError | None = None
        self.ending = False
        self.lost_to: BaseException | None = None
        self.committed: Sequence[JsonObject] | None = None
        self.status: Status | None = None
        self.usage = Usage()

    # -- events -------------------------------------------------------------------------------

    def __call__(self, event: AgentEvent) -> None:
        """Take an event of the agent; the listener that an Agent is given."""
        match event.type:
            case "message_start":
                self._message_start(event.message)
            case "message_update":
                if isinstance(event.assistant_message_event, TextDelta):
                    self._delta(event.assistant_message_event.delta)
            case "message_end":
                self._message_end(event.message.to_dict(), self._joining.task_of(event.message))
            case "agent_start" | "turn_start" | "turn_end" | "agent_end":
                # What a turn's end and a run's end repeat stands in the messages already.
                self.record(event.type, {})
            case "tool_execution_start" | "tool_execution_update" | "tool_execution_end":
                data = event.to_dict()
                del data["type"]
                self._append(event.type, data, event.tool_call_id)

    def record(self, kind: str, data: JsonObject) -> None:
        """Take an event of the task itself."""
        self._ordinals[kind] += 1
        self._append(kind, data, self._ordinals[kind])

    def _message_start(self, message: Any) -> None:
        self._number += 1
        self._open = _OpenMessage(self._number)
        data: JsonObject = message.to_dict()
        if isinstance(message, AssistantMessage):
            # Its text comes as deltas, and whole at its end: not twice.
            data["content"] = []
        # What was noted on the user's message comes with its end, once.
        data.pop("details", None)
        told = _message_data(data, self._number, self._joining.task_of(message))
        self._append("message_start", told, self._number)

    def _delta(self, text: str) -> None:
        if self._open is None or self._lost is not None or not text:
            return
        delta = Delta(self._open.number, self._open.length, text)
        first = self._open.length == 0
        self._open.pieces.append(text)
        self._open.length += len(text)
        last = self._outbox[-1] if self._outbox else None
        if isinstance(last, Delta) and last.message == delta.message:
            self._outbox[-1] = Delta(last.message, last.offset, last.text + text)
        else:
            self._outbox.append(delta)
        self._pieces += 1
        self._flush_in(0 if first or self._pieces >= DELTA_PIECES else DELTA_SECONDS)

    def _message_end(self, data: JsonObject, joined: UUID | None = None) -> None:
        number = self._number
        self._open = None
        if self._append("message_end", _message_data(data, number, joined), number):
            if joined is not None:
                self._joining.told(joined, len(self._messages))
            self._messages.append(data)

    def _append(self, kind: str, data: JsonObject, key: object) -> bool:
        """Put an event into the outbox, unless an earlier attempt has written it already."""
        if self._lost is not None:
            return False
        if self._settled[kind, key] > 0:
            self._settled[kind, key] -= 1
            return False
        self._outbox.append(NewEvent(kind, data))
        self._flush_in(GROUP_SECONDS)
        return True

    # -- journal ------------------------------------------------------------------------------

    async def begin(self, step: StepRequest) -> StepStart:
        """Take up a step, or give what an earlier attempt made of it.

        A tool with effects elsewhere waits until its beginning is written: for anything else a
        beginning that is lost means that it runs again. A model call waits until what the call
        before it gave is written, so that an attempt never loses more than one paid answer. After
        a lost attempt all wait: should this one be lost as well, the journal tells in which step.
        """
        self._unread.discard(step.no)
        if (memo := self._memos.get(step.no)) is not None:
            known = recall(memo, step)
            if known is not None:
                if known.output is not None:
                    self._count_usage(step, known.output)
                return known
            if memo.status == "started" and step.kind == "model":
                # Whether a provider answered the attempt that began it, nobody can say any more.
                self.enter(_lost_call(step))
        self._check()
        self._steps[step.no] = _step(step, "started")
        key = f"{self._claim.task_id}:{step.no}"
        later_call = step.kind == "model" and step.no > 0
        if step.effect == "external" or later_call or self._claim.attempts > 1:
            await self.flush()
        else:
            self._flush_in(GROUP_SECONDS)
        return StepStart("run", idempotency_key=key)

    async def finish(self, step: StepRequest, output: dict[str, Any]) -> None:
        """Keep what a step gave. That of an external tool is written before this returns."""
        self._check()
        self._count_usage(step, output)
        self._steps[step.no] = _step(step, "done", output)
        if step.effect == "external":
            await self.flush()
        else:
            self._flush_in(GROUP_SECONDS)

    def _count_usage(self, step: StepRequest, output: JsonObject) -> None:
        if step.kind == "model":
            self.usage += Usage.from_dict(output["usage"])

    # -- ledger -------------------------------------------------------------------------------

    def enter(self, entry: LedgerEntry) -> None:
        """Take a call of a model for the ledger, whatever has become of the attempt."""
        numbered = replace(entry, no=self._calls)
        self._calls += 1
        if self._lost is not None:
            self._on_late(self._claim, [numbered])
            return
        self._ledger.append(numbered)
        self._flush_in(GROUP_SECONDS)

    async def left(self) -> Decimal | None:
        """What the task may still spend, with all that it has spent itself; None for anything.

        Raises:
            AttemptLostError: the attempt may write no more.
            StoreUnavailable: nobody can say.
        """
        if self._ledger or self._lock.locked():
            await self.flush()
        return await self._store.left(self._claim)

    def _enter_late(self, ledger: Sequence[LedgerEntry] = ()) -> None:
        """Pass on what no write of this attempt can be believed to have entered."""
        late, self._ledger = [*ledger, *self._ledger], []
        if late:
            self._on_late(self._claim, late)

    # -- joining ------------------------------------------------------------------------------

    async def take_in(self, *modes: JoinMode) -> list[UserMessage]:
        """What the user has said since, in one of these modes: it is this task's to answer.

        A place that an earlier attempt has passed gives what it gave then: the journal's further
        steps were made with that and nothing else.

        Raises:
            AttemptLostError: the attempt may write no more.
        """
        self._check()
        no, joined = self._joining.next_place()
        new = not joined and self._joining.may_wait and not self._unread
        if new:
            try:
                joined = await self._store.join(self._claim, modes, no)
            except Exception as error:
                raise self._lose(error) from error
        return self._joining.deliver(joined, new=new)

    def nudge(self) -> None:
        """Hear that an action waits which may want to join this task."""
        self._joining.nudge()

    # -- writing ------------------------------------------------------------------------------

    def _flush_in(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time() + seconds
        if self._timer is not None:
            if self._flush_at <= at:
                return
            self._timer.cancel()
        self._flush_at = at
        self._timer = loop.call_at(at, self._flush_now)

    def _flush_now(self) -> None:
        """Write and tell what waits; deltas alone, which are most of it, need no write."""
        self._timer = None
        if not self._must_write():
            entries, _, _ = self._take()
            self._tell([entry for entry in entries if isinstance(entry, Delta)])
        else:
            self._start_flush()

    def _must_write(self) -> bool:
        """Whether anything but deltas waits, or these have to wait for a write."""
        if self._steps or self._ledger or self._lock.locked() or self.ending or self._lost:
            return True
        return any(isinstance(entry, NewEvent) for entry in self._outbox)

    async def flush(self) -> None:
        """Write and tell what waits.

        A task of its own does it: a caller that is cancelled must not cut a write off, for then
        nobody would know whether it was committed.

        Raises:
            AttemptLostError: the attempt may write no more, or its end is being written.
        """
        await asyncio.shield(self._start_flush())

    def _start_flush(self) -> asyncio.Task[None]:
        """The flush that will take what waits; while one writes, at most one more waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._next_flush is None:
            self._next_flush = self._own(self._write_out())
        return self._next_flush

    def _own(self, write: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Have a task of its own do a write."""
        task = asyncio.get_running_loop().create_task(write)
        self._writes.add(task)
        task.add_done_callback(self._written)
        return task

    def _written(self, task: asyncio.Task[Any]) -> None:
        self._writes.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited for it has it; nobody need have

    async def _write_out(self) -> None:
        async with self._lock:
            self._next_flush = None
            if self.committed is not None:
                return  # the end has written it all
            if self.ending:
                raise AttemptLostError("the task's end takes along what waits")
            self._check()
            entries, steps, ledger = self._take()
            events = [entry for entry in entries if isinstance(entry, NewEvent)]
            if not (events or steps or ledger):
                self._tell([entry for entry in entries if isinstance(entry, Delta)])
                return
            try:
                written = await self._store.write(self._claim, events, steps, ledger)
            except Exception as error:
                self._enter_late(ledger)
                # The store has tried for as long as the lease could last. It may have been
                # committed all the same: the next attempt reads what stands in the log.
                # Whatever the error is, the write that waits for the lock must not go on as if
                # this one had been made.
                raise self._lose(error) from error
            self._joining.note(written.open_tasks)
            self._tell(_numbered(entries, self._claim.task_id, written))

    def _tell(self, entries: Sequence[Event | Delta]) -> None:
        if entries:
            self._store.tell(self._claim, entries)

    async def end(
        self,
        status: Status,
        *,
        data: JsonObject,
        state: JsonObject | None = None,
        view: JsonObject | None = None,
        lasting: Lasting = NOTHING_LASTING,
    ) -> Written:
        """End the task: the last events, all messages and the terminal event in one write.

        A task of its own does it, as with `flush`.

        Args:
            data: the terminal event's, and the task's `result` or `error` with it.
            view: what clients may see from now on; a `state_changed` tells them.
            lasting: what the task leaves beyond its session.

        Raises:
            AttemptLostError: the attempt may write no more.
        """
        self.ending = True
        ending = self._write_end(status, data, state, view, lasting)
        return await asyncio.shield(self._own(ending))

    async def _write_end(
        self,
        status: Status,
        data: JsonObject,
        state: JsonObject | None,
        view: JsonObject | None,
        lasting: Lasting,
    ) -> Written:
        if self._open is not None:
            # Log and transcript keep what clients have seen of a message that was cut off.
            text = TextContent("".join(self._open.pieces))
            self._message_end(AssistantMessage([text], stop_reason="aborted").to_dict())
        async with self._lock:
            self._check()
            if self._timer is not None:
                self._timer.cancel()
            entries, steps, ledger = self._take()
            if view is not None:
                # Never in an earlier write: whoever hears of it must find the view changed.
                entries.append(NewEvent("state_changed", view))
            entries.append(NewEvent(f"task_{status}", data))
            joined = self._joining.answered(self._messages, completed=status == "completed")
            entries += [self._joined_end(status, data, task_id) for task_id in joined]
            outcome = Outcome(
                status=status,
                events=[entry for entry in entries if isinstance(entry, NewEvent)],
                messages=self._joining.without_unanswered(self._messages, joined),
                steps=steps,
                state=state,
                view=view,
                lasting=lasting,
                result=data.get("result"),
                error=data.get("error"),
                usage=self.usage.to_dict(),
                joined=joined,
                ledger=ledger,
            )
            try:
                written = await self._store.end(self._claim, outcome)
            except Exception as error:
                self._enter_late(ledger)
                raise self._lose(error) from error
            self._lost = AttemptLostError("the task has ended")
            self.status = status
            self.committed = outcome.messages
            self._enter_late()
            self._tell(_numbered(entries, self._claim.task_id, written))
            return written

    def _joined_end(self, status: Status, data: JsonObject, task_id: UUID) -> NewEvent:
        """The terminal event of a task that ends with this one, which pays for both."""
        joined = {"joined": self._claim.task_id}
        if status == "completed":
            ended: JsonObject = {"result": data["result"] | joined, "usage": None}
        else:
            ended = data | joined
        return NewEvent(f"task_{status}", ended, task_id)

    def lose(self, reason: str) -> None:
        """Write no more from now on: the lease is another worker's, or is given back."""
        self._lose(LeaseLost(reason))

    @property
    def lost(self) -> AttemptLostError | None:
        """Why the attempt may write no more, or None while it may."""
        return self._lost

    async def close(self) -> None:
        """Wait for the writes that are on their way; whoever gives up the lease comes after.

        The run is over then, and is let go of: all that belongs to it would otherwise wait for the
        garbage collector, in a circle.
        """
        if self._timer is not None:
            self._timer.cancel()
        while self._writes:
            await asyncio.wait(self._writes)
        self._on_lost = _nothing
        self._enter_late()

    def message_ids(self) -> list[int]:
        """The ids that the messages will have in the transcript."""
        first = self._claim.next_message
        return list(range(first, first + len(self._messages)))

    def _take(self) -> tuple[list[NewEvent | Delta], list[Step], list[LedgerEntry]]:
        entries, self._outbox = self._outbox, []
        steps, self._steps = list(self._steps.values()), {}
        ledger, self._ledger = self._ledger, []
        self._pieces = 0
        return entries, steps, ledger

    def _check(self) -> None:
        if self._lost is not None:
            raise self._lost

    def _lose(self, error: BaseException) -> AttemptLostError:
        if self._lost is None:
            self._lost = AttemptLostError(f"{type(error).__name__}: {error}")
            self.lost_to = error
            if self._timer is not None:
                self._timer.cancel()
            self._on_lost()
        return self._lost


def _nothing() -> None:
    """Nobody is left to stop."""


@dataclass(slots=True)
class _OpenMessage:
    """A message between its start and its end, with the text that clients have seen of it."""

    number: int
    pieces: list[str] = field(default_factory=list)
    length: int = 0


def _message_data(message: JsonObject, number: int, joined: UUID | None) -> JsonObject:
    data: JsonObject = {"message": message, "number": number}
    return data if joined is None else data | {"joined": str(joined)}


def _step(
    step: StepRequest, status: Literal["started", "done"], output: JsonObject | None = None
) -> Step:
    return Step(step.no, step.kind, step.name, step.effect, step.input_hash, status, output)


def _lost_call(step: StepRequest) -> LedgerEntry:
    return LedgerEntry(0, step.name, "", "lost", reported=False, step=step.no, usd=Decimal(0))


def _numbered(
    entries: Sequence[NewEvent | Delta], task_id: UUID, written: Written
) -> list[Event | Delta]:
    seq = written.first_seq
    numbered: list[Event | Delta] = []
    for entry in entries:
        if isinstance(entry, NewEvent):
            numbered.append(
                Event(seq, entry.type, entry.task_id or task_id, written.at, entry.data)
            )
            seq += 1
        else:
            numbered.append(entry)
    return numbered
