"""Two workers, a client and a jumping clock against one session, step by step beside a model."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text

from shared.errors import IdempotencyConflict, LeaseLost, SessionBusy
from shared.records import (
    TERMINAL_EVENTS,
    Accepted,
    Claim,
    NewAction,
    NewEvent,
    OnBusy,
    Outcome,
    Step,
    TaskStatus,
)
from shared.settings import load_settings
from shared.store import actions, cancels, claims, leases, sessions, sweeps
from shared.store.database import Database
from tests.shared.invariants import broken
from tests.shared.sessions import ME, new_session

LEASE = 600.0

SEEN = text(
    """
    select
        (select jsonb_build_array(next_task, next_event, next_message, head_message, open_tasks,
            early_cancels, state, lease_token is not null) from sessions where id = :s),
        (select jsonb_agg(jsonb_build_array(id, seq, status, claims, attempts,
            cancel_requested_at is not null, started_at is not null, finished_at is not null)
            order by seq) from tasks where session_id = :s),
        (select jsonb_agg(jsonb_build_array(seq, type, task_id, epoch) order by seq)
            from events where session_id = :s),
        (select jsonb_agg(jsonb_build_array(task_seq, no, status, epoch) order by task_seq, no)
            from steps where session_id = :s),
        (select jsonb_agg(jsonb_build_array(no, parent, task_id, message) order by no)
            from messages where session_id = :s),
        (select jsonb_agg(client_action_id order by client_action_id)
            from early_cancels where session_id = :s)
    """
)

# The database's clock can't be set, so everything that it will be compared with moves instead.
JUMP = text(
    """
    update sessions set
        lease_until = lease_until - make_interval(secs => :by),
        hint_at = hint_at - make_interval(secs => :by),
        ready_at = ready_at - make_interval(secs => :by)
    where id = :s
    """
)
MAKE_DUE = text("update sessions set hint_at = clock_timestamp() - interval '1 s' where id = :s")

# Multiples of 70 s, none of which is nearer to a lease than 30 s: no test of which came first is
# ever close, on however slow a machine.
jumps = st.sampled_from([-700, -70, 70, 350, 700, 1400])
SOON = 60.0
"""Seconds within which a hint may become due while the test runs."""

Worker = Literal["ann", "bob"]
workers: st.SearchStrategy[Worker] = st.sampled_from(["ann", "bob"])
keys = st.sampled_from(["k0", "k1", "k2"])
ends: st.SearchStrategy[Literal["completed", "failed", "cancelled", "dead"]] = st.sampled_from(
    ["completed", "failed", "cancelled", "dead"]
)


@dataclass
class ModelTask:
    """A task as it should stand in the tables."""

    id: UUID
    seq: int
    said: str
    on_busy: OnBusy
    key: str | None
    status: TaskStatus = "queued"
    claims: int = 0
    attempts: int = 0
    steps_done: int = 0
    cancel: bool = False

    @property
    def open(self) -> bool:
        return self.status in {"queued", "running"}


@dataclass
class Model:
    """The session as it should be."""

    tasks: list[ModelTask] = field(default_factory=list)
    events: list[tuple[int, str, UUID, int]] = field(default_factory=list)
    steps: dict[tuple[int, int], tuple[str, int]] = field(default_factory=dict)
    messages: list[tuple[int, int | None, UUID, Any]] = field(default_factory=list)
    early_cancels: set[str] = field(default_factory=set)
    state: dict[str, int] = field(default_factory=dict)
    epoch: int = 0
    holder: Worker | None = None
    now: float = 0.0
    lease_until: float = 0.0
    hint_at: float = 1.0

    @property
    def waiting(self) -> list[ModelTask]:
        return [task for task in self.tasks if task.open]

    @property
    def running(self) -> ModelTask | None:
        return next((task for task in self.tasks if task.status == "running"), None)

    @property
    def free(self) -> bool:
        return self.holder is None or self.lease_until < self.now

    def renew(self) -> None:
        self.lease_until = self.now + LEASE

    def give_back(self) -> None:
        self.holder = None
        self.hint_at = self.now

    def head(self) -> ModelTask:
        """The task that a claim takes."""
        return self.running or min(
            self.waiting, key=lambda task: (task.on_busy != "interrupt", task.seq)
        )

    def before(self, on_busy: str) -> list[ModelTask]:
        """The tasks that run before one that is accepted now."""
        if on_busy != "interrupt":
            return self.waiting
        return [
            task for task in self.waiting if task.status == "running" or task.on_busy == "interrupt"
        ]

    def log(self, kind: str, task: ModelTask, epoch: int = 0) -> None:
        self.events.append((len(self.events) + 1, kind, task.id, epoch))

    def cancel(self, task: ModelTask) -> None:
        if task.open:
            task.cancel = True
        if task.status == "queued":
            task.status = "cancelled"
            self.log("task_cancelled", task)

    def done_steps(self, task: ModelTask) -> int:
        return sum(
            seq == task.seq and status == "done" for (seq, _), (status, _) in self.steps.items()
        )

    def seen(self) -> tuple[Any, ...]:
        """What the tables should give."""
        return (
            [
                len(self.tasks) + 1,
                len(self.events) + 1,
                len(self.messages) + 1,
                len(self.messages) or None,
                len(self.waiting),
                len(self.early_cancels),
                self.state,
                self.holder is not None,
            ],
            [
                [
                    str(task.id),
                    task.seq,
                    task.status,
                    task.claims,
                    task.attempts,
                    task.cancel,
                    task.claims > 0,
                    not task.open,
                ]
                for task in self.tasks
            ],
            [[seq, kind, str(task), epoch] for seq, kind, task, epoch in self.events],
            [[*number, *found] for number, found in sorted(self.steps.items())] or None,
            [[no, parent, str(task), message] for no, parent, task, message in self.messages]
            or None,
            sorted(self.early_cancels) or None,
        )


class OneSession(RuleBasedStateMachine):
    """Every step is taken in the store and in the model; then both must be the same."""

    def __init__(self, runner: asyncio.Runner, db: Database) -> None:
        super().__init__()
        self.run = runner.run
        self.db = db
        self.model = Model()
        self.claims: dict[Worker, Claim] = {}
        self.earlier: list[Claim] = []
        self.session = self.run(new_session(db))
        row = self.run(db.row(text("select id from tasks where session_id = :s"), self.named))
        assert row is not None
        self.model.tasks.append(ModelTask(row.id, 1, "start", "enqueue", None))
        self.model.log("task_queued", self.model.tasks[0])

    @property
    def named(self) -> dict[str, UUID]:
        return {"s": self.session}

    def holds(self, worker: Worker) -> bool:
        claim = self.claims.get(worker)
        return (
            claim is not None
            and self.model.holder == worker
            and claim.fence.epoch == self.model.epoch
        )

    @invariant()
    def the_tables_are_as_the_model_says(self) -> None:
        row = self.run(self.db.row(SEEN, self.named))
        assert row is not None
        assert tuple(row) == self.model.seen()

    @rule(
        said=st.sampled_from(["a", "b"]),
        on_busy=st.sampled_from(["enqueue", "enqueue", "interrupt", "reject"]),
        key=st.none() | keys,
        times=st.integers(1, 2),
    )
    def accept(self, said: str, on_busy: OnBusy, key: str | None, times: int) -> None:
        new = NewAction({"text": said}, on_busy, key)
        known = next((task for task in self.model.tasks if key and task.key == key), None)
        if known is None and on_busy == "reject" and self.model.waiting:
            with pytest.raises(SessionBusy):
                self.run(actions.accept(self.db, ME, self.session, new))
            return
        if known is not None and (known.said, known.on_busy) != (said, on_busy):
            with pytest.raises(IdempotencyConflict):
                self.run(actions.accept(self.db, ME, self.session, new))
            return
        accepted = self.run(self.accept_at_once(new, times if key else 1))
        if known is None:
            known = self.accepted_in_model(new, next(one for one in accepted if one.fresh))
        assert {one.task_id for one in accepted} == {known.id}
        assert {one.status for one in accepted} == {known.status}

    async def accept_at_once(self, new: NewAction, times: int) -> list[Accepted]:
        one = actions.accept
        return await asyncio.gather(*(one(self.db, ME, self.session, new) for _ in range(times)))

    def accepted_in_model(self, new: NewAction, accepted: Accepted) -> ModelTask:
        model = self.model
        assert accepted.position == len(model.before(new.on_busy))
        assert accepted.seq == len(model.events) + 1
        if not model.waiting:
            model.hint_at = model.now + 1
        task = ModelTask(
            accepted.task_id,
            len(model.tasks) + 1,
            new.action["text"],
            new.on_busy,
            new.client_action_id,
        )
        running = model.running
        model.tasks.append(task)
        model.log("task_queued", task)
        interrupted = None
        if task.key in model.early_cancels:
            model.early_cancels.discard(task.key)
            model.cancel(task)
        elif new.on_busy == "interrupt" and running is not None:
            running.cancel = True
            interrupted = running.id
        assert accepted.interrupts == interrupted
        assert [one.type for one in accepted.events] == [
            kind for _, kind, one, _ in model.events if one == task.id
        ]
        return task

    @rule(which=st.integers(0, 30))
    def cancel(self, which: int) -> None:
        task = self.model.tasks[which % len(self.model.tasks)]
        before = len(self.model.events)
        self.model.cancel(task)

        session, events = self.run(cancels.cancel_task(self.db, ME, task.id))

        assert session == self.session
        assert [(one.seq, one.type, one.task_id) for one in events] == [
            (seq, kind, one) for seq, kind, one, _ in self.model.events[before:]
        ]

    @rule(key=keys)
    def cancel_by_key(self, key: str) -> None:
        task = next((one for one in self.model.tasks if one.key == key), None)
        if task is None:
            self.model.early_cancels.add(key)
        else:
            self.model.cancel(task)

        found, _ = self.run(cancels.cancel_action(self.db, ME, self.session, key))

        assert found == (None if task is None else task.id)

    @rule(worker=workers)
    def claim(self, worker: Worker) -> None:
        claim = self.run(claims.claim(self.db, self.session, lease_seconds=LEASE, history=100))

        model = self.model
        if not model.waiting or not model.free:
            assert claim is None
            return
        assert claim is not None
        task = model.head()
        done = model.done_steps(task)
        task.attempts = 1 if done > task.steps_done else task.attempts + 1
        task.steps_done = done
        task.claims += 1
        task.status = "running"
        model.epoch += 1
        model.holder = worker
        model.renew()
        model.hint_at = min(model.hint_at, model.lease_until)
        if worker in self.claims:
            self.earlier.append(self.claims[worker])
        self.claims[worker] = claim
        assert (claim.task_id, claim.task_seq, claim.attempt, claim.attempts) == (
            task.id,
            task.seq,
            task.claims,
            task.attempts,
        )
        assert claim.fence.epoch == model.epoch
        assert claim.cancel_requested == task.cancel
        assert claim.state == model.state
        assert claim.messages == [message for *_, message in model.messages]
        assert [(one.no, one.status) for one in claim.steps] == sorted(
            (no, status) for (seq, no), (status, _) in model.steps.items() if seq == task.seq
        )
        assert [(one.seq, one.type) for one in claim.events] == [
            (seq, kind) for seq, kind, one, _ in model.events if one == task.id
        ][1:]

    @precondition(lambda self: self.claims)
    @rule(
        worker=workers,
        count=st.integers(0, 3),
        step=st.none() | st.tuples(st.integers(0, 3), st.sampled_from(["started", "done"])),
    )
    def write(
        self, worker: Worker, count: int, step: tuple[int, Literal["started", "done"]] | None
    ) -> None:
        claim = self.claims.get(worker)
        if claim is None:
            return
        steps = [Step(step[0], "tool", "t", "pure", "h", step[1])] if step else []
        events = [NewEvent("turn_start", {})] * count
        writing = leases.write(self.db, claim, events, steps, lease_seconds=LEASE)
        if not self.holds(worker):
            with pytest.raises(LeaseLost):
                self.run(writing)
            return

        written = self.run(writing)

        model, task = self.model, self.task_of(claim)
        assert written.first_seq == len(model.events) + 1
        assert written.open_tasks == len(model.waiting)
        for _ in range(count):
            model.log("turn_start", task, model.epoch)
        if step:
            model.steps[task.seq, step[0]] = (step[1], model.epoch)
        model.renew()

    def task_of(self, claim: Claim) -> ModelTask:
        return next(task for task in self.model.tasks if task.id == claim.task_id)

    @precondition(lambda self: self.claims)
    @rule(worker=workers, status=ends, says=st.integers(0, 2), changes=st.booleans())
    def end(
        self,
        worker: Worker,
        status: Literal["completed", "failed", "cancelled", "dead"],
        says: int,
        changes: bool,
    ) -> None:
        claim = self.claims.get(worker)
        if claim is None:
            return
        outcome = Outcome(
            status,
            [NewEvent("agent_end", {}), NewEvent(TERMINAL_EVENTS[status], {})],
            messages=[{"said": number} for number in range(says)],
            state={"effects": claim.state.get("effects", 0) + 1} if changes else None,
        )
        if not self.holds(worker):
            with pytest.raises(LeaseLost):
                self.run(leases.end(self.db, claim, outcome))
            return

        written = self.run(leases.end(self.db, claim, outcome))

        model, task = self.model, self.task_of(claim)
        assert written.first_seq == len(model.events) + 1
        for event in outcome.events:
            model.log(event.type, task, model.epoch)
        for message in outcome.messages:
            last = len(model.messages)
            model.messages.append((last + 1, last or None, task.id, message))
        task.status = status
        model.state = (
            {"effects": model.state.get("effects", 0) + changes} if changes else model.state
        )
        model.give_back()
        assert written.open_tasks == len(model.waiting)

    @precondition(lambda self: self.claims)
    @rule()
    def heartbeat(self) -> None:
        for worker, claim in self.claims.items():
            pulse = self.run(leases.heartbeat(self.db, [claim.fence], lease_seconds=LEASE))
            held = self.holds(worker)
            cancelled = held and self.task_of(claim).cancel
            assert pulse == leases.Pulse(
                held=frozenset({self.session} if held else ()),
                cancelled=frozenset({self.session} if cancelled else ()),
                queued=frozenset({self.session} if held and len(self.model.waiting) > 1 else ()),
            )
            if held:
                self.model.renew()

    @precondition(lambda self: self.claims)
    @rule(worker=workers)
    def release(self, worker: Worker) -> None:
        claim = self.claims.get(worker)
        if claim is None:
            return
        held = self.holds(worker)

        assert self.run(leases.release(self.db, claim.fence)) is held

        if held:
            task = self.task_of(claim)
            task.attempts = max(task.attempts - 1, 0)
            self.model.give_back()

    @precondition(lambda self: self.earlier)
    @rule(which=st.integers(0, 30))
    def a_zombie_wakes(self, which: int) -> None:
        """Whatever a worker does that has claimed the session again since: nothing comes of it."""
        claim = self.earlier[which % len(self.earlier)]
        step = Step(0, "tool", "t", "pure", "h", "done")
        writing = leases.write(self.db, claim, [NewEvent("turn_end", {})], [step], lease_seconds=9)
        joining = leases.join(self.db, claim, ["steer"], 1)
        ending = leases.end(self.db, claim, Outcome("failed", [NewEvent("task_failed", {})]))
        for work in (writing, joining, ending):
            with pytest.raises(LeaseLost):
                self.run(work)
        assert self.run(leases.release(self.db, claim.fence)) is False
        beating = leases.heartbeat(self.db, [claim.fence], lease_seconds=9)
        assert self.run(beating) == leases.Pulse(frozenset(), frozenset())

    @rule(seconds=jumps)
    def the_clock_jumps(self, seconds: int) -> None:
        self.run(self.db.run(JUMP, self.named | {"by": seconds}))
        self.model.now += seconds

    @rule()
    def sweep(self) -> None:
        model = self.model
        if 0 <= model.hint_at - model.now < SOON:
            self.run(self.db.run(MAKE_DUE, self.named))
            model.hint_at = model.now - 1

        found = self.run(sweeps.sweep(self.db))

        due = bool(model.waiting) and model.free and model.hint_at < model.now
        assert found == ([self.session] if due else [])
        if due:
            model.hint_at = model.now + 1

    def teardown(self) -> None:
        assert self.run(broken(self.db)) == []
        self.run(sessions.delete(self.db, ME, self.session))


@pytest.mark.timeout(900)  # thousands of steps, each of several statements
def test_any_order_of_steps(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    with asyncio.Runner() as runner:
        db = Database.from_settings(load_settings())

        class Here(OneSession):
            def __init__(self) -> None:
                super().__init__(runner, db)

        try:
            run_state_machine_as_test(
                Here,
                settings=settings(
                    max_examples=60,
                    stateful_step_count=40,
                    deadline=None,
                    suppress_health_check=[HealthCheck.too_slow],
                ),
            )
        finally:
            runner.run(db.close())
