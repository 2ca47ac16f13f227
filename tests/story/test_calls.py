"""The calls of a story task: deadlines, cancelling, and the same over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from uuid import UUID

import pytest

from agent_core import (
    AbortedError,
    AbortSignal,
    CallReport,
    LlmContext,
    MemoryJournal,
    Model,
    ModelCall,
)
from agent_core.litellm_stream import preload
from agent_core.testing import SCRIPTED_MODEL, Reply, ScriptedModel, ScriptedRequest, ScriptedStream
from deploy.models.control import ScriptedModel as HttpModel
from tests.agent_core.clock import Leap
from tests.story.playing import Table, begun, ruling, verdict
from tests.worker.attempts import KeepingStore, claim
from worker.agents import Resources, RunningTask
from worker.in_process import InProcess
from worker.metering import Meter
from worker.narration import written
from worker.story import StoryAgent
from worker.story_calls import StoryCalls
from worker.task_log import TaskLog


@pytest.fixture
def litellm() -> None:
    """Its import takes seconds, for which the first call may be given up."""
    preload()


async def hang(stream: ScriptedStream, request: ScriptedRequest) -> None:
    await asyncio.Event().wait()


async def no_story(story_hash: str) -> str:
    raise AssertionError(story_hash)


def task_of(journal: MemoryJournal, *replies: Reply) -> RunningTask:
    return RunningTask(
        user_id="user",
        session_id=UUID(int=1),
        task_id=UUID(int=2),
        action={"type": "say", "text": "hi"},
        story=None,
        story_hash=None,
        character={"name": "", "soul": ""},
        metadata={},
        state={},
        view={"state": {}, "choices": []},
        history=[],
        resources=Resources(SCRIPTED_MODEL, None, no_story, stream_fn=ScriptedModel(replies)),
        emit=lambda event: None,
        journal=journal,
        signal=AbortSignal(),
    )


async def test_a_model_that_never_answers_is_given_up_for_good() -> None:
    journal = MemoryJournal()
    first = StoryCalls(task_of(journal, hang), reply_seconds=0.02)

    assert await first.ask("referee", "Rule.", "hi", {}) is None
    assert first.failed
    assert journal.outputs[0]["error_message"] == "no answer within 0.02 seconds"

    second = StoryCalls(task_of(journal))
    assert await second.ask("referee", "Rule.", "hi", {}) is None
    assert second.failed


async def test_cancelling_ends_a_call_and_records_nothing() -> None:
    journal = MemoryJournal()
    task = task_of(journal, hang)
    call = asyncio.ensure_future(StoryCalls(task).ask("judge", "Judge.", "hi", {}))
    await asyncio.sleep(0)
    task.signal.set()

    with pytest.raises(AbortedError):
        await call
    assert journal.outputs == {}


async def test_a_cancelled_say_leaves_the_story_where_it_was() -> None:
    table = await begun()
    kept = dict(table.session.state)
    signal = AbortSignal()

    def cancel(stream: ScriptedStream, request: ScriptedRequest) -> None:
        signal.set()

    table.script(ruling(1), cancel)
    event = await table.runner.act(
        table.session, {"type": "say", "text": "greet him"}, signal=signal
    )

    assert event.type == "task_cancelled"
    assert table.session.state == kept
    await table.still_plays()


async def test_after_a_failed_call_the_narrator_tries_only_once() -> None:
    model = ScriptedModel([RuntimeError("down"), "Well."])
    task = task_of(MemoryJournal())
    task = replace(task, resources=replace(task.resources, stream_fn=model))
    calls = StoryCalls(task)

    await calls.ask("referee", "Rule.", "hi", {})
    message = await calls.narrate(LlmContext("Narrate."), written("A shrug.", "ink"))

    assert message.text == "Well."
    assert [request.model.max_attempts for request in model.requests] == [2, 1]


@pytest.mark.usefixtures("litellm")
@pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Item .* is using the .ReadOnly. qualifier:UserWarning")
async def test_a_whole_say_over_http(scripted_model: HttpModel) -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    scripted_model.script(
        {
            "match": {"json": True, "system": "You are the referee"},
            "reply": {"text": ruling(1), "usage": usage},
        },
        {
            "match": {"json": True, "system": "You keep the books"},
            "reply": {"text": verdict(trust=5), "usage": usage},
        },
        {"match": {"json": False}, "reply": {"text": "He nods at you.", "usage": usage}},
    )
    table = Table()
    model = Model("scripted", "openai", base_url=scripted_model.url, max_attempts=1)
    table.runner = InProcess({"story": StoryAgent()}, Resources(model, "key", table.read))
    await table.done("start")

    result = await table.done("say", text="I wish him a good evening")

    assert result["text"] == "He nods at you."
    assert result["decision"]["choice"]["text"] == "Greet the guard"
    assert result["decision"]["judge"]["changes"] == {"trust": 5}
    calls = [(call["purpose"], call["tokens"]) for call in result["decision"]["calls"]]
    assert calls == [("referee", 110), ("narrator", 110), ("judge", 110)]
    assert [seen.body["max_tokens"] for seen in scripted_model.requests()] == [300, 1000, 300]


@pytest.mark.usefixtures("litellm")
@pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Item .* is using the .ReadOnly. qualifier:UserWarning")
async def test_an_endpoint_that_refuses_the_format_is_asked_again(
    scripted_model: HttpModel,
) -> None:
    fault = {"kind": "status", "status": 400, "message": "response_format: unknown parameter"}
    scripted_model.script(
        {"match": {"json": True}, "reply": {"fault": fault}},
        {"match": {"system": "You are the referee"}, "reply": {"text": ruling(1)}},
        {"match": {"system": "You keep the books"}, "reply": {"text": verdict(trust=5)}},
        {"reply": {"text": "He nods at you."}},
    )
    table = Table()
    model = Model("scripted", "openai", base_url=scripted_model.url, max_attempts=3)
    table.runner = InProcess({"story": StoryAgent()}, Resources(model, "key", table.read))
    await table.done("start")

    result = await table.done("say", text="I wish him a good evening")

    assert result["decision"]["referee"]["by"] == "model"
    assert result["decision"]["judge"]["changes"] == {"trust": 5}
    assert len(scripted_model.requests()) == 5


async def test_a_call_that_waits_for_its_turn_is_no_call_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task, leap = task_of(MemoryJournal(), "{}"), Leap(monkeypatch)

    class Slow:
        @asynccontextmanager
        async def admit(self, call: ModelCall) -> AsyncIterator[CallReport]:
            leap.seconds += 31.0
            await asyncio.sleep(0.01)  # what is due by then is done
            yield lambda final: None

    resources = replace(task.resources, limiter=Slow())
    meter = Meter(claim(), TaskLog(claim(), KeepingStore(), on_lost=lambda: None), resources.tariff)
    waits = replace(task, resources=resources.for_user("user", task.deadlines.stopped, meter))

    assert await StoryCalls(waits, reply_seconds=30.0).ask("referee", "Rule.", "hi", {}) == "{}"


async def test_without_money_a_story_is_told_in_its_own_words() -> None:
    task = task_of(MemoryJournal(), "never asked")
    of, store = replace(claim(), left_usd=Decimal(0)), KeepingStore()
    store.money = Decimal(0)
    meter = Meter(of, TaskLog(of, store, on_lost=lambda: None), task.resources.tariff)
    poor = replace(task, resources=task.resources.for_user("user", task.deadlines.stopped, meter))
    calls, own = StoryCalls(poor), written("The rain goes on.", "ink")

    assert await calls.ask("referee", "Rule.", "hi", {}) is None
    assert await calls.narrate(LlmContext("Tell."), own) is own
    assert meter.refused
