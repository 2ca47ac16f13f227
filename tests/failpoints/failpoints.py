"""Every place at which a worker can die or freeze, and what must come of its task all the same.

A case is one session of its own: a worker behind proxies takes the task and is struck at the
point; the standing worker of the fleet takes over; a second task follows. A frozen worker goes on
as soon as its successor holds the session, and must change nothing.
"""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import httpx
from pydantic import SecretStr
from redis.asyncio import Redis
from sqlalchemy import TextClause, text

from agent_core.tool_calls import UNKNOWN_OUTCOME
from deploy.local.fleet import Fleet
from deploy.models.control import ScriptedModel
from shared.queue import Hints
from shared.records import NewAction, NewSession
from shared.redis_pool import connect_redis
from shared.settings import Settings, load_settings
from shared.store import actions, claims, sessions
from shared.store.database import AnyRow, Database, Rows
from tests.acceptance.player import Frame, Player, ended
from tests.clients import http_client
from tests.failpoints.effects_agent import EFFECTS
from tests.failpoints.effects_recorder import Recorder
from tests.failpoints.nursery import Newborn, Nursery
from tests.failpoints.proxy import DroppedError, Moment, Passing, PostgresProxy, RedisProxy, Trap
from tests.shared.invariants import broken
from tests.shared.sessions import finish

Fault = Literal["kill", "freeze"]

PATIENCE = 60.0
"""Seconds after which something that should have happened has not."""

HEAD_START = text(
    "update sessions set hint_at = clock_timestamp() + interval '2.5 s' where id = :session"
)
"""The worker that is to be struck gets the task before any sweep offers it to others."""

HAND_OVER = text(
    """
    with released as (
        update sessions set lease_token = null, lease_until = null,
            hint_at = clock_timestamp() + interval '2.5 s'
        where id = :session returning id
    )
    update tasks set attempts = 0 from released
    where session_id = released.id and status = 'running'
    """
)
"""What a release does, but that the worker that is to be struck gets the task."""

SETTINGS = {
    "agent_modules": "tests.failpoints.effects_agent",
    "model_path": "direct",
    "lease_seconds": "10",
    "heartbeat_seconds": "0.3",
    "sweep_seconds": "0.2",
}
"""What all processes of the cases have in common. The worker that takes over keeps its leases also
on a machine that stands still for a while: it is not the one that is struck."""

LOST = "the lease could not be renewed in time"
"""What a worker says whose machine was too busy."""

LEASE_OF_THE_STRUCK = "1.5"
"""Seconds; each case waits for this lease to run out."""

SEALED = ["All ", "is ", "sealed."]
AND_THEN = 'And then? [[script: {"text": "It holds."}]]'


@dataclass(frozen=True, slots=True)
class Point:
    """A place on a worker's way through a task: before or after something passes.

    `event` and `step` say what it must carry. `parked`: the task waits at the gate before, and
    until the worker is struck; `drained`: and the worker is told to stop then. `begun`: another
    worker had the task before, and gave it back. `unknown`: here
    nobody can know whether a tool with effects elsewhere has run; None: the tool may have got there
    or not.
    """

    name: str
    moment: Moment
    carriers: tuple[str, ...] = ()
    event: str = ""
    step: str = ""
    parked: bool = False
    drained: bool = False
    begun: bool = False
    unknown: bool | None = False

    def wanted(self, passing: Passing) -> bool:
        """Whether this passes here."""
        if passing.name not in self.carriers:
            return False
        steps = (one.startswith(self.step) for one in passing.steps)
        return (not self.event or self.event in passing.events) and (not self.step or any(steps))


def _around(name: str, *carriers: str, **more: Any) -> list[Point]:
    return [Point(name, "before", carriers, **more), Point(name, "after", carriers, **more)]


POINTS = [
    *_around("the session is claimed", "claim"),
    *_around("the lease is taken over", "claim lease", begun=True),
    Point("the task is taken over", "after", ("claim task",), begun=True),
    *_around("the takeover commits", "commit claim events", begun=True),
    *_around("the start is written", "write", event="task_started", unknown=None),
    *_around("the start is told", "PUBLISH", event="task_started", unknown=None),
    Point("the tool begins", "before", ("write",), step="tool"),
    Point("the tool begins", "after", ("write",), step="tool", unknown=True),
    Point("the tool runs", "after", unknown=True),
    Point("the tool is journalled", "before", ("write",), step="tool done", unknown=True),
    Point("the tool is journalled", "after", ("write",), step="tool done"),
    *_around("a piece is told", "PUBLISH", event="message_update"),
    *_around("the answer is journalled", "write", "end", event="agent_end"),
    *_around("the end is written", "end", event="task_completed"),
    *_around("the end is told", "PUBLISH", event="task_completed"),
    *_around("the lease is renewed", "heartbeat", parked=True),
    *_around("the lease is given back", "release", parked=True, drained=True),
    *_around("the hint is sent", "LPUSH", parked=True, drained=True),
]


@dataclass(frozen=True, slots=True)
class Case:
    """A fault at a point of a task that uses a tool of one class of effect."""

    point: Point
    fault: Fault
    effect: str

    @property
    def id(self) -> str:
        """How it is named in reports."""
        words = (self.fault, self.point.moment, self.point.name, self.effect)
        return " ".join(words).replace(" ", "-")


CASES = [
    Case(point, fault, effect)
    for point in POINTS
    for fault in ("kill", "freeze")
    for effect in EFFECTS
]


@dataclass(frozen=True, slots=True)
class Stage:
    """What the cases share: the servers, a gateway, the worker that takes over."""

    postgres: str
    redis_url: str
    env: Mapping[str, str]
    folder: Path
    db: Database
    redis: Redis
    settings: Settings
    http: httpx.AsyncClient
    model: ScriptedModel
    nursery: Nursery
    recorder: Recorder

    @classmethod
    @asynccontextmanager
    async def open(cls, fleet: Fleet, model: ScriptedModel, folder: Path) -> AsyncIterator["Stage"]:
        """Set it up around a running fleet; `folder` takes the logs of the workers struck."""
        postgres, redis_url = fleet.env["DATABASE_URL"], fleet.env["REDIS_URL"]
        urls = {"database_url": SecretStr(postgres), "redis_url": SecretStr(redis_url)}
        settings = load_settings().model_copy(update=urls)
        db, redis = Database.from_settings(settings), connect_redis(settings)
        try:
            async with (
                http_client(fleet.url, timeout=60) as http,
                Nursery.open() as nursery,
                Recorder.open() as recorder,
            ):
                yield cls(
                    *(postgres, redis_url, fleet.env, folder, db, redis),
                    *(settings, http, model, nursery, recorder),
                )
        finally:
            await redis.aclose()
            await db.close()


class Played:
    """One case on its way."""

    def __init__(self, stage: Stage, case: Case, name: str) -> None:
        self.stage = stage
        self.case = case
        self.queue = name
        url, self.record = stage.recorder.record(self.queue)
        self.recorder_url = url
        self.log = stage.folder / f"{self.queue}.log"
        self.trap = Trap(self._wanted, case.point.moment, self._strike, case.fault == "freeze")
        self.armed = not case.point.parked
        self.worker: Newborn | None = None
        self.awaited = "the worker"
        self.ran_in = 0
        """The session's epoch when the tool had run, where that is the point."""
        self.follows = asyncio.Event()

    def _wanted(self, passing: Passing) -> bool:
        return self.armed and self.case.point.wanted(passing)

    def _strike(self) -> None:
        assert self.worker is not None
        self.worker.signal(signal.SIGKILL if self.case.fault == "kill" else signal.SIGSTOP)

    async def play(self) -> None:
        """Strike the worker; raises AssertionError where anything is not as it must be."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self._play()
        except TimeoutError:
            said = self.log.read_text()[-20_000:] if self.log.exists() else ""
            raise AssertionError(f"waited for {self.awaited}; the worker said:\n{said}") from None

    async def disturbed(self) -> bool:
        """Whether this became another case, the machine being too busy: another worker was quicker
        with the task, or one lost its lease without being struck."""
        if not self.trap.sprung.is_set():
            return True
        own = 2 + self.case.point.begun
        if self.ran_in > own:  # the tool ran for the one that took over
            return True
        if self.case.fault == "kill" and LOST in self.log.read_text():  # and not by being killed
            return True
        _, first, *later = [row.claims for row in await self.rows(CLAIMS)]
        return first > own or any(more > 1 for more in later)

    async def _play(self) -> None:
        point = self.case.point
        if point.parked:
            self.record.gate.clear()
        if not point.carriers:
            self.record.at_run = self._caught
        await self._open_session()
        # Followed from the beginning: what is told before it is true can't be untold.
        following = asyncio.ensure_future(self.player.follow_until(self._seen_all))
        try:
            await self._strike_down()
            self.awaited = "the tasks' ends"
            await following
        finally:
            following.cancel()
        await Verdict.on(self)

    def _seen_all(self, events: list[Frame]) -> bool:
        """Whether the opening and both tasks have ended."""
        if events:
            self.follows.set()
        return len(ended(events)) == 3

    async def _strike_down(self) -> None:
        stage, point = self.stage, self.case.point
        async with (
            PostgresProxy(stage.postgres, self.trap).listening() as postgres,
            RedisProxy(stage.redis_url, self.trap).listening() as redis,
        ):
            env = {
                **stage.env,
                "DATABASE_URL": postgres.url,
                "REDIS_URL": redis.url,
                "FIRESIDE_QUEUE": self.queue,
                "FIRESIDE_LEASE_SECONDS": LEASE_OF_THE_STRUCK,
                "FIRESIDE_SWEEP_SECONDS": "60",
                "FIRESIDE_DRAIN_SECONDS": "0" if point.drained else "10",
                "FIRESIDE_DATABASE_POOL": "4",
            }
            self.worker = await stage.nursery.worker(
                env, self.log, only=self.session, patient=not point.drained
            )
            try:
                await redis.passed["BRPOP"].wait()
                await self.follows.wait()
                await self._give_task()
                if point.parked:
                    self.awaited = "the worker at the gate"
                    await self.record.arrival()
                    await self._until_all_is_written()
                    self.armed = True
                if point.drained:
                    self.worker.signal(signal.SIGTERM)
                self.awaited = "the point"
                await self.trap.sprung.wait()
                await self._go_on()
            except asyncio.CancelledError:
                self.worker.signal(signal.SIGUSR1)  # it writes into its log what it is at
                await asyncio.sleep(1)
                raise
            finally:
                self.worker.signal(signal.SIGKILL)
                await asyncio.shield(self.worker.ended)

    async def _caught(self) -> None:
        ((epoch,),) = await self.rows(EPOCH)
        if not self.trap.sprung.is_set():
            self.ran_in = epoch
            with contextlib.suppress(DroppedError):
                await self.trap.spring()

    async def _open_session(self) -> None:
        new = NewSession("effects", metadata={"recorder": self.recorder_url})
        session, opening, _ = await sessions.create(self.stage.db, "local", new, "Ember")
        claim = await claims.claim(self.stage.db, session.id, lease_seconds=30, history=1)
        assert claim is not None
        await finish(self.stage.db, claim)
        self.session = session.id
        self.player = Player(self.stage.http, {"id": str(session.id), "task_id": str(opening)})

    async def _give_task(self) -> None:
        """Accept the task, and hint at it where only the worker that is to be struck listens."""
        stage = self.stage
        new = NewAction({"type": "say", "text": self.said})
        async with stage.db.transaction() as connection:
            accepted = await actions.accept_within(connection, "local", self.session, new)
            await connection.execute(HEAD_START, {"session": self.session})
        self.task = accepted.task_id
        if self.case.point.begun:
            await claims.claim(stage.db, self.session, lease_seconds=30, history=1)
            await stage.db.run(HAND_OVER, {"session": self.session})
        hints = Hints(stage.settings.model_copy(update={"queue": self.queue}), stage.redis)
        await hints.send([self.session])

    @property
    def said(self) -> str:
        """What the user says; it tells the scripted model to call the tool, then to answer."""
        turns = [
            {"tool_calls": [{"name": self.case.effect, "id": "call-1"}]},
            {"chunks": SEALED, "duration": 0.1},
        ]
        return f"Seal it. [[script: {json.dumps(turns)}]]"

    async def _go_on(self) -> None:
        assert self.worker is not None
        if self.case.fault == "freeze":
            self.record.gate.clear()
        else:
            await asyncio.shield(self.worker.ended)
            self.record.gate.set()
        self.awaited = "the next action's acceptance"
        self.next = UUID((await self.player.act({"type": "say", "text": AND_THEN}))["task_id"])
        if self.case.fault == "freeze":
            await self._wake()
            self.record.gate.set()

    async def _wake(self) -> None:
        """Let the zombie go on while its successor stands at the gate: it must change nothing."""
        assert self.worker is not None
        self.awaited = "the successor at the gate"
        await self.record.arrival(frozenset({self.worker.pid}))
        self.awaited = "the successor's writes"
        await self._until_all_is_written()
        self.awaited = "the zombie's end"
        before = await self._all_rows()
        self.worker.signal(signal.SIGCONT)
        self.trap.resume.set()
        self.worker.signal(signal.SIGTERM)
        assert await asyncio.shield(self.worker.ended) == 0, "the zombie did not end in order"
        after = await self._all_rows()
        changed = (
            [row for row in before if row not in after],
            [row for row in after if row not in before],
        )
        assert changed == ([], []), f"the zombie changed something: {changed}"

    async def _until_all_is_written(self) -> None:
        """The end of the agent's run is the last thing that is written before the gate."""
        while not (await self.rows(WRITTEN))[0].all:  # noqa: ASYNC110 - only the tables can tell
            await asyncio.sleep(0.01)

    async def _all_rows(self) -> list[Any]:
        return [row.row for row in await self.rows(ALL_ROWS)]

    async def rows(self, statement: TextClause) -> Rows:
        """What a statement finds of the session."""
        return await self.stage.db.rows(statement, {"session": self.session})


# A heartbeat moves the end of the lease and nothing else. A worker that was frozen takes back the
# attempt that was counted against its task, for the task is not to blame.
ALL_ROWS = text(
    """
    select to_jsonb(s) - 'lease_until' as row from sessions s where id = :session
    union all select to_jsonb(t) - 'attempts' from tasks t where session_id = :session
    union all select to_jsonb(e) from events e where session_id = :session
    union all select to_jsonb(x) from steps x where session_id = :session
    union all select to_jsonb(m) from messages m where session_id = :session
    """
)

# An attempt that finds everything in the journal writes no more than its own start.
WRITTEN = text(
    """
    select bool_or(type = 'agent_end') and bool_or(e.epoch = s.epoch) as all
    from sessions s
        join tasks t on t.session_id = s.id and t.status = 'running'
        join events e on e.session_id = s.id and e.task_id = t.id
    where s.id = :session
    """
)

EPOCH = text("select epoch from sessions where id = :session")

CLAIMS = text("select claims from tasks where session_id = :session order by seq")

EVENTS = text(
    """
    select e.seq, e.type, e.task_id, e.epoch, e.at, e.data from events e
    where session_id = :session order by seq
    """
)

STEPS = text(
    """
    select x.no, x.kind, x.status, x.epoch from steps x join tasks t
        on t.session_id = x.session_id and t.seq = x.task_seq
    where x.session_id = :session and t.id = :task order by x.no
    """
)

WITH_A_TOOL = [
    "task_queued",
    "agent_start",
    "turn_start",
    *("message_start", "message_end"),
    *("message_start", "message_end"),
    *("tool_execution_start", "tool_execution_end"),
    *("message_start", "message_end"),
    "turn_end",
    "turn_start",
    *("message_start", "message_end"),
    "turn_end",
    "agent_end",
    "state_changed",
    "task_completed",
]
WITHOUT = [
    *("task_queued", "agent_start", "turn_start"),
    *("message_start", "message_end"),
    *("message_start", "message_end"),
    *("turn_end", "agent_end", "state_changed", "task_completed"),
]


class Verdict:
    """Looks at what came of a case."""

    def __init__(self, played: Played, events: Rows, steps: Rows) -> None:
        self.played = played
        self.case = played.case
        self.events = events
        self.steps = {row.no: row for row in steps}
        self.ended_in = max(row.epoch for row in events if row.task_id == played.task)

    @classmethod
    async def on(cls, played: Played) -> None:
        """Raise AssertionError for whatever is wrong."""
        stage = played.stage
        parameters = {"session": played.session, "task": played.task}
        steps = await stage.db.rows(STEPS, parameters)
        verdict = cls(played, await played.rows(EVENTS), steps)
        try:
            verdict.events_are_exact()
            verdict.the_player_saw_the_log()
            verdict.the_tool_ran_as_often_as_it_may()
            verdict.no_journalled_call_was_paid_again(stage.model)
            await verdict.the_transcript_is_exact()
            await verdict.the_tables_are_in_order()
        except AssertionError as error:
            error.add_note(verdict.told())
            raise

    def told(self) -> str:
        """What happened, for whoever has to find out why."""
        lines = [f"{row.seq} in {row.epoch} at {row.at:%M:%S.%f} {row.type}" for row in self.events]
        lines += [f"step {tuple(row)}" for row in self.steps.values()]
        ran, log = dict(self.played.record.ran), self.played.log.read_text()
        return "\n".join([*lines, f"ran: {ran}", "the worker said:", log])

    def events_are_exact(self) -> None:
        """Each task's events as if nothing had happened, once what was cut off is left out."""
        of = {
            task: _settled([row for row in self.events if row.task_id == task])
            for task in (self.played.task, self.played.next)
        }
        assert of == {self.played.task: WITH_A_TOOL, self.played.next: WITHOUT}
        assert [row.seq for row in self.events] == list(range(1, len(self.events) + 1))
        of_attempts = [row.epoch for row in self.events if row.epoch]
        assert of_attempts == sorted(of_attempts), "an older attempt wrote after a newer one"

    def the_player_saw_the_log(self) -> None:
        """Over the gateway, each event once."""
        seen = [(frame["seq"], frame["type"], frame["data"]) for frame in self.played.player.events]
        assert seen == [(row.seq, row.type, row.data) for row in self.events]

    @property
    def outcome_unknown(self) -> bool:
        """Whether nobody can know what came of the tool's call."""
        if self.case.effect not in {"external", "undeclared"}:
            return False
        begun: bool = self.steps[1].status == "started"
        return begun if self.case.point.unknown is None else self.case.point.unknown

    def the_tool_ran_as_often_as_it_may(self) -> None:
        """Once; never again where that would be seen in the world."""
        ran = self.played.record.ran
        assert set(ran) <= {self.case.effect}
        times, step = ran[self.case.effect], self.steps[1]
        if self.outcome_unknown:
            assert times <= 1
            assert step.status == "started"
            return
        assert step.status == "done"
        again = self.case.effect in {"pure", "state"}
        assert 1 <= times <= (self._runs_until(step.epoch) if again else 1)

    def _runs_until(self, epoch: int) -> int:
        """How often a step may have run whose end was journalled in this epoch.

        Once in each attempt up to that one; the opening task had the first epoch. A zombie that
        is awake again may get to it once more, before it finds its lease gone. An attempt that was
        given back ran nothing.
        """
        epoch -= self.case.point.begun
        return epoch - 1 + (1 if self.case.fault == "freeze" and epoch > 2 else 0)

    def no_journalled_call_was_paid_again(self, model: ScriptedModel) -> None:
        """At most one model call of an attempt was lost with it."""
        keys = model.stats().keys
        paid = {
            no: keys[f"{self.played.task}.{turn}"].requests for turn, no in enumerate((0, 2), 1)
        }
        for no, times in paid.items():
            assert 1 <= times <= self._runs_until(self.steps[no].epoch), f"step {no}: {times} calls"
        assert sum(paid.values()) <= 1 + self._runs_until(self.ended_in)
        assert keys[f"{self.played.next}.1"].requests == 1

    async def the_transcript_is_exact(self) -> None:
        """What the gateway gives of both tasks, and the state that the tool has changed."""
        played = self.played
        answer = await played.player.http.get(f"/v1/sessions/{played.session}/messages")
        said = [_said(one["message"]) for one in answer.json()["messages"]]
        result = UNKNOWN_OUTCOME if self.outcome_unknown else f"{self.case.effect} done"
        assert said == [
            ("user", played.said),
            ("assistant", f"-> {self.case.effect}"),
            ("tool_result", result),
            ("assistant", "".join(SEALED)),
            ("user", AND_THEN),
            ("assistant", "It holds."),
        ]
        (row,) = await played.rows(text("select state from sessions where id = :session"))
        assert row.state == {"seals": 1 if self.case.effect == "state" else 0}

    async def the_tables_are_in_order(self) -> None:
        """The invariants, as far as they are about this session."""
        mine = {str(self.played.session), str(self.played.task), str(self.played.next)}
        assert [one for one in await broken(self.played.stage.db) if one[1] in mine] == []


def _settled(events: Sequence[AnyRow]) -> list[str]:
    """The types of a task's events without what a later attempt told again from its start."""
    kept: list[str] = []
    for row in events:
        if row.type in {"task_started", "task_restarted"}:
            while kept and kept[-1] in {"message_start", "tool_execution_start"}:
                kept.pop()
        else:
            kept.append(row.type)
    return kept


def _said(message: Mapping[str, Any]) -> tuple[str, str]:
    content = message["content"]
    if isinstance(content, str):
        return message["role"], content
    parts = [one["text"] if one["type"] == "text" else f"-> {one['name']}" for one in content]
    return message["role"], "".join(parts)
