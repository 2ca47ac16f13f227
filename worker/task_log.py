"""What of one attempt of a task is written and told when: events, deltas, journal and ledger.

Everything leaves through one outbox, so that the log, the frames and the journal agree. Durable
entries are grouped: those of one moment are one fenced write. Nothing here knows SQL or Redis.
What an attempt says is made in `worker/attempt_events.py`.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, Literal, TypeAlias, TypeVar
from uuid import UUID

import structlog

from agent_core import AgentEvent, StepRequest, StepStart, Usage, UserMessage
from shared.encoding import JsonObject
from shared.errors import LeaseLost
from shared.events import Delta
from shared.records import (
    NOTHING_LASTING,
    Claim,
    Event,
    JoinMode,
    Lasting,
    LedgerEntry,
    NewEvent,
    Outcome,
    Step,
    Written,
)
from worker.attempt_events import GROUP_SECONDS, AttemptEvents
from worker.takeover import recall
from worker.task_store import AttemptLostError, LateEntries, TaskStore

log = structlog.get_logger(__name__)

T = TypeVar("T")

Status: TypeAlias = Literal["completed", "failed", "cancelled", "dead"]


def _drop(claim: Claim, entries: Sequence[LedgerEntry]) -> None:
    """Nobody keeps books."""


class TaskLog:
    """The event sink and the step journal of one attempt.

    Args:
        claim: the session and the task; its steps and events are what earlier attempts left.
        store: where the attempt is written.
        on_lost: called once when the attempt may write no more; the run must then stop.
        on_late: given calls of models that end when the attempt may write no more, or whose write
            may have failed: they were paid for all the same.

    `told` are the messages that earlier attempts told, `committed` those that the task's end has
    put into the transcript, None until it has, and `status` how it ended. `usage` sums up the
    journal's model calls, those of earlier attempts included. `ending` says that the terminal event
    is on its way: nothing else decides the task any more. `lost_to` is what kept the attempt from
    writing more, or None.
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
        self._steps: dict[int, Step] = {}
        self._memos = {step.no: step for step in claim.steps}
        self._unread = set(self._memos)
        self._events = AttemptEvents(claim)
        self.told = list(self._events.messages)
        self._joining = self._events.joining
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
        for step in claim.steps:
            if step.output:
                self._count_usage(step, step.output)

    # -- events -------------------------------------------------------------------------------

    def __call__(self, event: AgentEvent) -> None:
        """Take an event of the agent; the listener that an Agent is given."""
        if self._lost is None:
            self._flush_in(self._events(event))

    def record(self, kind: str, data: JsonObject) -> None:
        """Take an event of the task itself."""
        if self._lost is None:
            self._flush_in(self._events.record(kind, data))

    def message_ids(self) -> list[int]:
        """The ids that the messages will have in the transcript."""
        return self._events.message_ids()

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

    def _count_usage(self, step: StepRequest | Step, output: JsonObject) -> None:
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

    def _flush_in(self, seconds: float | None) -> None:
        """Flush within so many seconds; None is what nothing new has to wait for."""
        if seconds is None:
            return
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
        return any(isinstance(entry, NewEvent) for entry in self._events.entries)

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
        if self._lost is None:
            self._events.cut_off()  # what it says leaves with this write
        async with self._lock:
            self._check()
            if self._timer is not None:
                self._timer.cancel()
            entries, steps, ledger = self._take()
            if view is not None:
                # Never in an earlier write: whoever hears of it must find the view changed.
                entries.append(NewEvent("state_changed", view))
            entries.append(NewEvent(f"task_{status}", data))
            joined = self._joining.answered(self._events.messages, completed=status == "completed")
            entries += [self._joined_end(status, data, task_id) for task_id in joined]
            outcome = Outcome(
                status=status,
                events=[entry for entry in entries if isinstance(entry, NewEvent)],
                messages=self._joining.without_unanswered(self._events.messages, joined),
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

    def _take(self) -> tuple[list[NewEvent | Delta], list[Step], list[LedgerEntry]]:
        steps, self._steps = list(self._steps.values()), {}
        ledger, self._ledger = self._ledger, []
        return self._events.leave(), steps, ledger

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
