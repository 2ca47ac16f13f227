"""The outbox of an attempt: what it writes, what it tells, what a takeover repeats."""

import asyncio
from typing import Any

import pytest

from agent_core import (
    AgentStart,
    AssistantMessage,
    MessageEnd,
    MessageStart,
    MessageUpdate,
    StepMismatchError,
    StepRequest,
    StepStart,
    TextContent,
    TextDelta,
    TurnStart,
    UserMessage,
)
from shared.errors import LeaseLost
from shared.events import Delta
from shared.records import Event, NewEvent, Step, Written
from tests.waiting import within
from tests.worker.attempts import NOW, TASK, KeepingStore, claim
from worker.task_log import TaskLog
from worker.task_store import AttemptLostError

MODEL_STEP = StepRequest(0, "model", "openai/m", "hash", "pure")
TOOL_STEP = StepRequest(1, "tool", "pay", "hash-2", "external")


def never() -> None:
    raise AssertionError("the attempt was not lost")


def stream(log: TaskLog, *pieces: str) -> AssistantMessage:
    """Start an assistant's message and let it grow."""
    message = AssistantMessage([TextContent("")], timestamp=0)
    log(MessageStart(message))
    for piece in pieces:
        log(MessageUpdate(message, TextDelta(0, piece, message)))
    message.content = [TextContent("".join(pieces))]
    return message


async def test_what_happens_in_one_moment_is_one_write() -> None:
    store = KeepingStore()
    log = TaskLog(claim(), store, on_lost=never)
    said = UserMessage("hi", timestamp=0)
    log.record("task_started", {"attempt": 1})
    log(AgentStart())
    log(TurnStart())
    log(MessageStart(said))
    log(MessageEnd(said))
    start = await log.begin(MODEL_STEP)
    await log.flush()

    message = {"message": said.to_dict(), "number": 0}
    assert start == StepStart("run", idempotency_key=f"{TASK}:0")
    assert store.writes == [
        (
            [
                NewEvent("task_started", {"attempt": 1}),
                NewEvent("agent_start", {}),
                NewEvent("turn_start", {}),
                NewEvent("message_start", message),
                NewEvent("message_end", message),
            ],
            [Step(0, "model", "openai/m", "pure", "hash", "started")],
        )
    ]
    assert [entry.seq for entry in store.told if isinstance(entry, Event)] == [1, 2, 3, 4, 5]


async def test_deltas_come_between_a_messages_start_and_its_end_with_offsets_in_code_points() -> (
    None
):
    store = KeepingStore()
    log = TaskLog(claim(), store, on_lost=never)
    message = stream(log, "a🙂", "é")
    await log.flush()
    log(MessageUpdate(message, TextDelta(0, "b", message)))
    log(MessageEnd(message))
    await log.flush()

    assert [e.type if isinstance(e, Event) else e for e in store.told] == [
        "message_start",
        Delta(0, 0, "a🙂é"),
        Delta(0, 3, "b"),
        "message_end",
    ]
    assert store.events[0].data["message"]["content"] == []


async def test_the_first_delta_does_not_wait_for_others() -> None:
    told = asyncio.Event()

    class Listening(KeepingStore):
        def tell(self, *args: object) -> None:
            told.set()

    log = TaskLog(claim(), Listening(), on_lost=never)
    stream(log, "a")

    for _ in range(20):  # turns of the loop, and no time
        await asyncio.sleep(0)
    assert told.is_set()


async def test_the_end_is_one_write_with_messages_state_and_usage() -> None:
    store = KeepingStore()
    log = TaskLog(claim(), store, on_lost=never)
    message = stream(log, "hello")
    await log.begin(MODEL_STEP)
    usage = {"input": 3, "output": 5, "total_tokens": 8}
    await log.finish(MODEL_STEP, {"usage": usage})
    log(MessageEnd(message))
    written = await log.end("completed", data={"result": {"text": "hello"}}, state={"a": 1})

    assert written.open_tasks == 0
    assert store.outcome is not None
    assert store.outcome.status == "completed"
    assert store.outcome.messages == [message.to_dict()]
    assert store.outcome.state == {"a": 1}
    assert store.outcome.result == {"text": "hello"}
    assert store.outcome.usage is not None
    assert store.outcome.usage["total_tokens"] == 8
    assert store.kinds[-1] == "task_completed"


async def test_a_message_that_was_cut_off_keeps_what_clients_have_seen() -> None:
    store = KeepingStore()
    log = TaskLog(claim(), store, on_lost=never)
    stream(log, "once upon", " a")
    await log.end("cancelled", data={})

    assert store.outcome is not None
    (message,) = store.outcome.messages
    assert message["content"] == [{"type": "text", "text": "once upon a"}]
    assert message["stop_reason"] == "aborted"
    assert store.kinds == ["message_start", "message_end", "task_cancelled"]


def stored(*events: tuple[str, dict[str, object]]) -> list[Event]:
    return [Event(seq, kind, TASK, NOW, data) for seq, (kind, data) in enumerate(events, 1)]


async def test_a_takeover_writes_only_what_is_not_in_the_log_yet() -> None:
    said = UserMessage("hi", timestamp=0)
    user = {"message": said.to_dict(), "number": 0}
    begun = {"message": {"role": "assistant", "content": []}, "number": 1}
    store = KeepingStore(first_seq=7)
    before = stored(
        ("task_started", {"attempt": 1}),
        ("agent_start", {}),
        ("turn_start", {}),
        ("message_start", user),
        ("message_end", user),
        ("message_start", begun),
    )
    log = TaskLog(claim(attempt=2, events=before), store, on_lost=never)
    log.record("task_restarted", {"attempt": 2})
    log(AgentStart())
    log(TurnStart())
    log(MessageStart(UserMessage("hi", timestamp=99)))
    log(MessageEnd(UserMessage("hi", timestamp=99)))
    message = stream(log, "hello")
    log(MessageEnd(message))
    await log.end("completed", data={"result": {}})

    assert store.kinds == ["task_restarted", "message_start", "message_end", "task_completed"]
    assert store.outcome is not None
    assert store.outcome.messages == [said.to_dict(), message.to_dict()]
    assert log.message_ids() == [1, 2]


async def test_a_step_that_is_done_is_given_again_and_counted() -> None:
    output = {"usage": {"input": 1, "output": 2, "total_tokens": 3}}
    done = Step(0, "model", "openai/m", "pure", "hash", "done", output)
    log = TaskLog(claim(attempt=2, steps=[done]), KeepingStore(), on_lost=never)

    assert await log.begin(MODEL_STEP) == StepStart("done", output=output)
    assert log.usage.total_tokens == 3


async def test_a_step_with_another_input_fails_loudly() -> None:
    done = Step(0, "model", "openai/m", "pure", "other", "done", {})
    log = TaskLog(claim(attempt=2, steps=[done]), KeepingStore(), on_lost=never)

    with pytest.raises(StepMismatchError):
        await log.begin(MODEL_STEP)


@pytest.mark.parametrize(
    ("effect", "outcome"), [("pure", "run"), ("state", "run"), ("external", "unknown")]
)
async def test_a_tool_that_was_begun_runs_again_only_if_that_does_no_harm(
    effect: str, outcome: str
) -> None:
    begun = Step(1, "tool", "pay", effect, "hash-2", "started")
    log = TaskLog(claim(attempt=2, steps=[begun]), KeepingStore(), on_lost=never)
    start = await log.begin(
        StepRequest(1, "tool", "pay", "hash-2", effect)  # type: ignore[arg-type]
    )

    assert start.outcome == outcome


async def test_an_external_tool_begins_and_ends_only_once_it_is_written() -> None:
    store = KeepingStore()
    log = TaskLog(claim(), store, on_lost=never)
    await log.begin(TOOL_STEP)
    assert [step.status for _, steps in store.writes for step in steps] == ["started"]
    await log.finish(TOOL_STEP, {"content": []})
    assert [step.status for _, steps in store.writes for step in steps] == ["started", "done"]


async def test_a_lost_lease_stops_the_attempt_for_good() -> None:
    lost = asyncio.Event()
    store = KeepingStore()
    log = TaskLog(claim(), store, on_lost=lost.set)
    store.failure = LeaseLost("session")
    with pytest.raises(AttemptLostError):
        await log.begin(TOOL_STEP)
    store.failure = None

    assert lost.is_set()
    with pytest.raises(AttemptLostError):
        await log.end("completed", data={})
    assert store.writes == []


async def test_a_write_in_the_background_that_fails_stops_the_attempt() -> None:
    lost = asyncio.Event()
    store = KeepingStore()
    store.failure = LeaseLost("session")
    log = TaskLog(claim(), store, on_lost=lost.set)
    log(AgentStart())

    await within(lost.wait())


class SlowStore(KeepingStore):
    """A store whose writes wait for `go`."""

    def __init__(self) -> None:
        super().__init__()
        self.began = asyncio.Event()
        self.go = asyncio.Event()

    async def write(self, *args: Any) -> Written:
        self.began.set()
        await self.go.wait()
        return await super().write(*args)


async def test_an_end_that_is_cancelled_in_the_middle_is_written_and_told_all_the_same() -> None:
    store = SlowStore()
    log = TaskLog(claim(), store, on_lost=never)
    end = asyncio.create_task(log.end("completed", data={"result": {}}))
    await store.began.wait()
    assert log.ending
    end.cancel()
    with pytest.raises(asyncio.CancelledError):
        await end
    store.go.set()
    await log.close()

    assert store.kinds == ["task_completed"]
    assert [entry.seq for entry in store.told if isinstance(entry, Event)] == [1]


async def test_an_end_takes_along_what_waits_and_changes_what_clients_may_see() -> None:
    store = SlowStore()
    log = TaskLog(claim(), store, on_lost=never)
    log(AgentStart())
    flush = asyncio.create_task(log.flush())
    await store.began.wait()
    log(TurnStart())
    waiting = asyncio.create_task(log.flush())
    await asyncio.sleep(0)  # it waits for its turn, before the end does
    end = asyncio.create_task(log.end("completed", data={}, view={"state": {}, "choices": []}))
    store.go.set()
    await asyncio.gather(flush, end)
    with pytest.raises(AttemptLostError):  # what it was to precede must not begin any more
        await waiting

    written = [[event.type for event in events] for events, _ in store.writes]
    assert written == [["agent_start"], ["turn_start", "state_changed", "task_completed"]]


async def test_a_slow_store_lets_no_more_than_one_flush_wait() -> None:
    store = SlowStore()
    log = TaskLog(claim(), store, on_lost=never)
    log(AgentStart())
    flushes = [asyncio.create_task(log.flush())]
    await store.began.wait()
    before = len(asyncio.all_tasks())
    message = AssistantMessage([TextContent("")], timestamp=0)
    log(MessageStart(message))
    for _ in range(10):
        for _ in range(100):
            log(MessageUpdate(message, TextDelta(0, "a", message)))
        await asyncio.sleep(0.001)  # the timer of a full outbox runs
    assert len(asyncio.all_tasks()) <= before + 1
    store.go.set()
    await asyncio.gather(*flushes)
    await log.flush()
    assert store.told[-1] == Delta(0, 0, "a" * 1000)


async def test_a_model_call_waits_until_the_answer_before_it_is_written() -> None:
    store = SlowStore()
    log = TaskLog(claim(), store, on_lost=never)
    await log.begin(MODEL_STEP)
    await log.finish(MODEL_STEP, {"usage": {}})
    await store.began.wait()
    next_call = asyncio.create_task(
        log.begin(StepRequest(1, "model", "openai/m", "hash-2", "pure"))
    )
    await asyncio.sleep(0.05)  # longer than anything waits for others to be written with
    assert not next_call.done()
    store.go.set()
    await next_call
    statuses = {step.no: step.status for _, steps in store.writes for step in steps}
    assert statuses == {0: "done", 1: "started"}


async def test_after_a_write_that_failed_in_any_way_the_next_one_is_not_made() -> None:
    class Broken(SlowStore):
        async def write(self, *args: Any) -> Written:
            await super().write(*args)
            raise TypeError("no JSON")

    store, lost = Broken(), asyncio.Event()
    log = TaskLog(claim(), store, on_lost=lost.set)
    log(AgentStart())
    flush = asyncio.create_task(log.flush())
    await store.began.wait()
    end = asyncio.create_task(log.end("completed", data={}))
    await asyncio.sleep(0)  # it waits for the flush
    store.go.set()
    for one in (flush, end):
        with pytest.raises(AttemptLostError):
            await one

    assert lost.is_set()
    assert store.kinds == ["agent_start"]


async def test_a_lost_attempt_keeps_nothing_of_what_its_agent_still_tells() -> None:
    log = TaskLog(claim(), KeepingStore(), on_lost=lambda: None)
    log.lose("another worker's")
    for _ in range(10):
        log(AgentStart())

    assert log._events.entries == []
    assert "another worker's" in str(log.lost)
