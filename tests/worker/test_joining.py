"""Actions that join a run: asked for once, given again to a takeover, ended with what answered."""

from dataclasses import replace
from uuid import UUID

import pytest

from agent_core import (
    AssistantMessage,
    MessageEnd,
    MessageStart,
    StepRequest,
    StopReason,
    UserMessage,
)
from agent_core.content import TextContent
from shared.errors import LeaseLost
from shared.records import Claim, Joined, Step
from tests.worker.attempts import TASK, KeepingStore, claim
from tests.worker.test_task_log import never
from worker.task_log import TaskLog
from worker.task_store import AttemptLostError

STEER, OTHER = UUID(int=7), UUID(int=8)
DONE = StepRequest(0, "model", "openai/m", "hash", "pure")


def busy(**changed: object) -> Claim:
    """A claim of a session in which another task waits."""
    return replace(claim(), open_tasks=2, **changed)  # type: ignore[arg-type]


def hear(log: TaskLog, message: UserMessage | AssistantMessage) -> None:
    log(MessageStart(message))
    log(MessageEnd(message))


def answer(text: str = "yes") -> AssistantMessage:
    return AssistantMessage([TextContent(text)], timestamp=0)


async def end(log: TaskLog, status: str = "completed") -> None:
    data = {"result": {"text": "yes"}, "usage": {}} if status == "completed" else {}
    await log.end(status, data=data)  # type: ignore[arg-type]


async def test_nobody_is_asked_where_nothing_waits() -> None:
    store = KeepingStore()
    log = TaskLog(claim(), store, on_lost=never)

    assert await log.take_in("steer") == []
    assert store.asked == []


async def test_a_nudge_has_the_store_asked_at_the_next_place() -> None:
    store = KeepingStore()
    log = TaskLog(claim(), store, on_lost=never)
    await log.take_in("steer")
    store.waiting = [(STEER, "wait")]
    log.nudge()

    assert [m.content for m in await log.take_in("steer", "follow_up")] == ["wait"]
    assert store.asked == [(("steer", "follow_up"), 2)]


async def test_what_joined_ends_with_the_run_that_answered_it() -> None:
    store = KeepingStore()
    log = TaskLog(busy(), store, on_lost=never)
    store.waiting = [(STEER, "wait")]
    (said,) = await log.take_in("steer")
    hear(log, said)
    hear(log, answer())
    await end(log)

    assert store.outcome is not None
    assert store.outcome.joined == [STEER]
    ends = [(e.type, e.task_id, e.data) for e in store.events[-2:]]
    assert ends == [
        ("task_completed", None, {"result": {"text": "yes"}, "usage": {}}),
        ("task_completed", STEER, {"result": {"text": "yes", "joined": TASK}, "usage": None}),
    ]
    assert [e.data["joined"] for e in store.events if "joined" in e.data] == [str(STEER)] * 2
    assert [m["role"] for m in store.outcome.messages] == ["user", "assistant"]


@pytest.mark.parametrize("status", ["failed", "cancelled", "dead"])
async def test_what_was_not_answered_waits_on(status: str) -> None:
    store = KeepingStore()
    log = TaskLog(busy(), store, on_lost=never)
    hear(log, UserMessage("first", timestamp=0))
    store.waiting = [(STEER, "wait"), (OTHER, "never told")]
    said, _ = await log.take_in("steer")
    hear(log, said)
    await end(log, status)

    assert store.outcome is not None
    assert store.outcome.joined == []
    assert [m["content"] for m in store.outcome.messages] == ["first"]
    assert [(e.type, e.task_id) for e in store.events if e.type.startswith("task_")] == [
        (f"task_{status}", None)
    ]


@pytest.mark.parametrize("reason", ["stop", "length", "tool_use"])
async def test_what_was_answered_before_the_run_failed_ends_with_it(reason: StopReason) -> None:
    store = KeepingStore()
    log = TaskLog(busy(), store, on_lost=never)
    store.waiting = [(STEER, "wait")]
    (said,) = await log.take_in("steer")
    hear(log, said)
    hear(log, replace(answer(), stop_reason=reason))
    await end(log, "cancelled")

    assert store.outcome is not None
    assert store.outcome.joined == [STEER]
    assert (store.events[-1].task_id, store.events[-1].data) == (STEER, {"joined": TASK})
    assert len(store.outcome.messages) == 2


async def test_a_takeover_is_given_the_same_at_the_same_place() -> None:
    store = KeepingStore()
    steps = [Step(0, "model", "openai/m", "pure", "hash", "done", {"usage": {}})]
    log = TaskLog(busy(steps=steps, joined=[Joined(STEER, "wait", 2)]), store, on_lost=never)
    store.waiting = [(OTHER, "later")]
    log.nudge()

    assert await log.take_in("steer") == []  # what follows was journalled without anything
    await log.begin(DONE)
    assert [m.content for m in await log.take_in("steer")] == ["wait"]
    assert store.asked == []
    log.nudge()
    assert [m.content for m in await log.take_in("steer")] == ["later"]
    assert store.asked == [(("steer",), 3)]


async def test_what_was_collected_shares_the_fate_of_the_task() -> None:
    for status in ("completed", "failed"):
        store = KeepingStore()
        log = TaskLog(busy(joined=[Joined(STEER, "b", 0)]), store, on_lost=never)
        await end(log, status)

        assert store.outcome is not None
        assert store.outcome.joined == [STEER]


async def test_an_attempt_that_can_not_ask_is_lost() -> None:
    store = KeepingStore()
    lost: list[bool] = []
    log = TaskLog(busy(), store, on_lost=lambda: lost.append(True))
    store.failure = LeaseLost("gone")
    with pytest.raises(AttemptLostError):
        await log.take_in("steer")

    assert lost == [True]
    with pytest.raises(AttemptLostError):
        await log.take_in("steer")
