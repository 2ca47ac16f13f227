"""How an attempt ends: one terminal event, whatever the agent does."""

import asyncio
from collections.abc import Callable, Coroutine

import pytest
from structlog.testing import capture_logs

from agent_core import (
    AbortSignal,
    AssistantMessage,
    MessageEnd,
    MessageStart,
    Model,
    StepMismatchError,
    TextContent,
)
from shared.encoding import JsonObject
from shared.errors import StoreUnavailable
from shared.records import CatalogEntry, Claim, Step
from tests.worker.attempts import SESSION, TASK, KeepingStore, claim
from worker.agents import Answer, Resources, RunningTask, TaskFailed
from worker.attempt import run_attempt
from worker.narration import begin_turn, end_turn, tell, written
from worker.task_log import TaskLog
from worker.task_store import AttemptLostError

Run = Callable[[RunningTask], Coroutine[object, object, Answer]]


async def no_story(story_hash: str) -> str:
    raise AssertionError(story_hash)


RESOURCES = Resources(Model("m", "openai"), None, no_story)


class TestAgent:
    """An agent whose `run` is the test's."""

    __test__ = False
    entry = CatalogEntry("agent", "test", "Test")

    def __init__(self, run: Run) -> None:
        self._run = run

    async def run(self, task: RunningTask) -> Answer:
        return await self._run(task)


async def attempt(
    run: Run,
    *,
    of: Claim | None = None,
    signal: AbortSignal | None = None,
    task_seconds: float = 300,
) -> KeepingStore:
    store = KeepingStore()
    of = of or claim()
    log = TaskLog(of, store, on_lost=lambda: None)
    await run_attempt(
        of,
        log,
        {"test": TestAgent(run)},
        resources=RESOURCES,
        signal=signal or AbortSignal(),
        task_seconds=task_seconds,
        max_attempts=5,
    )
    return store


async def greet(task: RunningTask) -> Answer:
    answer = written("hello", "test")
    begin_turn(task)
    tell(task, answer)
    end_turn(task, [], answer)
    return Answer(text="hello", state={"n": 1}, public={"mood": "calm"}, choices=[{"id": "a"}])


def error_of(store: KeepingStore) -> JsonObject:
    assert store.outcome is not None
    assert store.outcome.error is not None
    return store.outcome.error


async def test_a_completed_task_tells_everything_in_order() -> None:
    store = await attempt(greet)

    view = {"state": {"mood": "calm"}, "choices": [{"id": "a"}]}
    result = {"text": "hello", "messages": [1], "decision": None, **view}
    assert store.kinds == [
        "task_started",
        "agent_start",
        "turn_start",
        "message_start",
        "message_end",
        "turn_end",
        "agent_end",
        "state_changed",
        "task_completed",
    ]
    assert store.events[-2].data == view
    assert store.events[-1].data["result"] == result
    assert store.outcome is not None
    assert (store.outcome.state, store.outcome.view) == ({"n": 1}, view)


async def test_an_agent_that_can_not_read_is_tried_again() -> None:
    async def read(task: RunningTask) -> Answer:
        raise StoreUnavailable("away")

    store = KeepingStore()
    log = TaskLog(claim(), store, on_lost=lambda: None)
    with pytest.raises(AttemptLostError):
        await run_attempt(
            claim(),
            log,
            {"test": TestAgent(read)},
            resources=RESOURCES,
            signal=AbortSignal(),
            task_seconds=300,
            max_attempts=5,
        )
    await log.close()

    assert store.outcome is None
    assert log.lost is not None


async def test_a_second_attempt_says_that_it_is_one() -> None:
    store = await attempt(greet, of=claim(attempt=3))

    assert store.events[0].type == "task_restarted"
    assert store.events[0].data == {"attempt": 3}


async def test_an_agents_own_failure_is_told_with_its_code() -> None:
    async def refuse(task: RunningTask) -> Answer:
        raise TaskFailed("choice_not_found", "this choice is not open")

    with capture_logs() as logs:
        store = await attempt(refuse)

    assert store.kinds == ["task_started", "task_failed"]
    assert error_of(store) == {"code": "choice_not_found", "message": "this choice is not open"}
    assert logs == [
        {
            "event": "task failed",
            "log_level": "info",
            "agent": "test",
            "session_id": str(SESSION),
            "task_id": str(TASK),
            "code": "choice_not_found",
        }
    ]


async def test_any_other_failure_is_told_without_its_details() -> None:
    async def leak(task: RunningTask) -> Answer:
        raise ValueError("password=hunter2")

    store = await attempt(leak)

    assert error_of(store) == {"code": "agent_failed", "message": "the agent failed (ValueError)"}


async def test_an_unknown_agent_fails_the_task() -> None:
    store = await attempt(greet, of=claim(agent="nobody"))

    assert error_of(store)["code"] == "agent_unknown"


async def test_a_task_that_takes_too_long_fails() -> None:
    async def hang(task: RunningTask) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError

    store = await attempt(hang, task_seconds=0.05)

    assert error_of(store)["code"] == "task_timeout"


async def test_after_too_many_attempts_a_task_is_dead_without_running() -> None:
    async def run(task: RunningTask) -> Answer:
        raise AssertionError("must not run")

    store = await attempt(run, of=claim(attempt=6, attempts=6))

    assert store.kinds == ["task_restarted", "task_dead"]
    assert error_of(store)["code"] == "attempts_exhausted"


@pytest.mark.parametrize(("attempts", "status"), [(2, "cancelled"), (6, "dead")])
async def test_what_ends_without_running_again_has_used_what_stands_in_its_journal(
    attempts: int, status: str
) -> None:
    output = {"usage": {"input": 3, "output": 5, "total_tokens": 8}}
    paid = Step(0, "model", "openai/m", "pure", "hash", "done", output)
    signal = AbortSignal()
    signal.set()

    taken = claim(attempt=attempts, attempts=attempts, steps=[paid])
    store = await attempt(greet, of=taken, signal=signal if status == "cancelled" else None)

    assert store.outcome is not None
    assert store.outcome.status == status
    assert store.outcome.usage is not None
    assert store.outcome.usage["total_tokens"] == 8


async def test_a_cancelled_task_keeps_its_messages_and_changes_no_state() -> None:
    signal = AbortSignal()

    async def half(task: RunningTask) -> Answer:
        message = AssistantMessage([TextContent("so far")], stop_reason="aborted")
        task.emit(MessageStart(message))
        signal.set()
        await task.signal.wait()
        task.emit(MessageEnd(message))
        return Answer(text="so far", state={"changed": True})

    store = await attempt(half, signal=signal)

    assert store.outcome is not None
    assert store.outcome.status == "cancelled"
    assert store.outcome.state is None
    assert [message["stop_reason"] for message in store.outcome.messages] == ["aborted"]


async def test_a_task_cancelled_before_it_began_does_not_run() -> None:
    signal = AbortSignal()
    signal.set()
    ran = False

    async def run(task: RunningTask) -> Answer:
        nonlocal ran
        ran = True
        return await greet(task)

    store = await attempt(run, signal=signal)

    assert store.kinds == ["task_started", "task_cancelled"]
    assert not ran


async def test_an_agent_that_does_not_repeat_itself_fails_its_task() -> None:
    async def mismatch(task: RunningTask) -> Answer:
        raise StepMismatchError("step 0 was another")

    store = await attempt(mismatch, of=claim(attempt=2))

    assert error_of(store) == {"code": "step_mismatch", "message": "step 0 was another"}


async def test_a_lost_attempt_ends_nothing() -> None:
    async def lost(task: RunningTask) -> Answer:
        raise AttemptLostError("the lease is another worker's")

    with pytest.raises(AttemptLostError):
        await attempt(lost)
