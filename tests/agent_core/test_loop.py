"""The stateless loop: its stream, its hooks, and model streams that misbehave."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest

from agent_core import (
    AbortedError,
    AgentContext,
    AgentLoopConfig,
    AssistantMessage,
    CustomMessage,
    DuplicateToolError,
    FinishedTurn,
    LlmContext,
    Message,
    Model,
    NextTurn,
    NothingToContinueError,
    ProviderError,
    StreamDone,
    StreamError,
    StreamOptions,
    StreamStart,
    TextContent,
    TextDelta,
    TextEnd,
    ToolContext,
    UpcomingTurn,
    UserMessage,
    agent_loop,
    agent_loop_continue,
    complete,
    convert_to_llm,
    tool,
)
from agent_core.abort import CLEANUP_SECONDS
from agent_core.testing import (
    SCRIPTED_MODEL,
    Reply,
    ScriptedModel,
    answer,
    call,
    calls,
    failure,
    streamed,
)
from tests.agent_core.agents import Scripted, hang, ok, text_of
from tests.agent_core.clock import Leap

CONFIG = AgentLoopConfig(SCRIPTED_MODEL)


async def test_a_stream_gives_events_and_the_new_messages() -> None:
    context = AgentContext("SP", [UserMessage("old"), answer("yes")], [ok])
    stream = agent_loop([UserMessage("hi")], context, CONFIG, None, ScriptedModel(["hello"]))

    types = [event.type async for event in stream]

    assert types[0] == "agent_start"
    assert types[-1] == "agent_end"
    assert [text_of(message) for message in await stream.result()] == ["hi", "hello"]
    assert len(context.messages) == 2


async def test_the_result_can_be_had_without_reading() -> None:
    stream = agent_loop([UserMessage("hi")], AgentContext(), CONFIG, None, ScriptedModel(["yo"]))

    assert [text_of(message) for message in await stream.result()] == ["hi", "yo"]


async def test_the_run_goes_only_as_far_as_it_is_read() -> None:
    model = ScriptedModel(["yo"])
    stream = agent_loop([UserMessage("hi")], AgentContext(), CONFIG, None, model)

    async with stream:
        async for event in stream:
            if event.type == "message_end":
                break
        await asyncio.sleep(0)
        assert model.requests == []

    assert [event async for event in stream] == []


async def test_closing_a_stream_cancels_its_tools() -> None:
    cancelled = asyncio.Event()

    async def play() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def execute(*_: object) -> Any:
        await play()

    hanging = type(hang)("hang", "hang", "hang", {"type": "object"}, execute)
    model = ScriptedModel([calls(call("c1", "hang"), call("c2", "ok"))])
    context = AgentContext(tools=[hanging, ok])
    stream = agent_loop([UserMessage("hi")], context, CONFIG, None, model)
    async for event in stream:
        if event.type == "tool_execution_end":
            break

    await stream.aclose()

    assert cancelled.is_set()


@pytest.mark.parametrize("events", [0, 1])
async def test_a_stream_that_was_closed_has_no_result_and_runs_no_more(events: int) -> None:
    model = ScriptedModel(["never"])
    stream = agent_loop([UserMessage("hi")], AgentContext(), CONFIG, None, model)
    for _ in range(events):
        await anext(stream)
    await stream.aclose()

    with pytest.raises(AbortedError, match="closed before its end"):
        await stream.result()

    assert model.requests == []


async def test_a_reader_that_is_cancelled_ends_the_run() -> None:
    context = AgentContext(tools=[hang])
    model = ScriptedModel([calls(call("c1", "hang"))])
    stream = agent_loop([UserMessage("hi")], context, CONFIG, None, model)
    started = asyncio.Event()

    async def read() -> None:
        async for event in stream:
            if event.type == "tool_execution_start":
                started.set()

    reading = asyncio.create_task(read())
    await started.wait()
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading

    assert [event async for event in stream] == []


async def test_a_stream_that_is_forgotten_ends_its_run() -> None:
    stream = agent_loop([UserMessage("hi")], AgentContext(), CONFIG, None, ScriptedModel(["yo"]))
    await anext(stream)
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    del stream
    gc.collect()
    await asyncio.wait(tasks)

    assert all(task.cancelled() for task in tasks)


async def test_what_can_be_continued() -> None:
    with pytest.raises(NothingToContinueError, match="No messages"):
        agent_loop_continue(AgentContext(), CONFIG)
    with pytest.raises(NothingToContinueError, match="role: assistant"):
        agent_loop_continue(AgentContext(messages=[answer("yes")]), CONFIG)
    with pytest.raises(DuplicateToolError):
        agent_loop_continue(AgentContext(messages=[UserMessage("x")], tools=[ok, ok]), CONFIG)
    context = AgentContext(messages=[UserMessage("hi"), calls(call("c1", "ok"))], tools=[ok])
    stream = agent_loop_continue(context, CONFIG, None, ScriptedModel(["end"]))

    roles = [message.role for message in await stream.result()]

    assert roles == ["tool_result", "assistant"]


@pytest.mark.parametrize("before", [True, False])
async def test_an_event_of_the_callers_cancels(before: bool) -> None:
    cancel = asyncio.Event()

    async def wait(*_: object) -> Any:
        cancel.set()
        await asyncio.Event().wait()

    waiting = type(hang)("wait", "wait", "wait", {"type": "object"}, wait)
    if before:
        cancel.set()
    model = ScriptedModel([calls(call("c1", "wait"))])
    config = AgentLoopConfig(SCRIPTED_MODEL, abort_grace=0.01)
    context = AgentContext(tools=[waiting])
    messages = await agent_loop([UserMessage("hi")], context, config, cancel, model).result()

    assert len(model.requests) == (0 if before else 1)
    last = messages[-1]
    assert isinstance(last, AssistantMessage)
    assert last.stop_reason == "aborted"


# Hooks


async def test_the_context_can_be_changed_for_the_model_only() -> None:
    async def transform(messages: list[Message], _: object) -> list[Message]:
        return [*messages, CustomMessage("hint", "psst")]

    def convert(messages: list[Message]) -> list[Any]:
        return [
            UserMessage(f"({message.content})") if isinstance(message, CustomMessage) else message
            for message in messages
        ]

    scripted = Scripted(["yo"], transform_context=transform, convert_to_llm=convert)
    await scripted.agent.prompt("hi")

    assert [text_of(message) for message in scripted.model.requests[0].messages] == ["hi", "(psst)"]
    assert scripted.texts() == ["hi", "yo"]


async def test_keys_are_asked_for_by_provider() -> None:
    asked: list[str] = []

    async def key(provider: str) -> str:
        asked.append(provider)
        return "k1"

    scripted = Scripted(["a"], get_api_key=key)
    await scripted.agent.prompt("hi")
    fixed = Scripted(["a"], api_key="k2", get_api_key=lambda _: None)
    await fixed.agent.prompt("hi")

    assert asked == ["test"]
    assert scripted.model.requests[0].options.api_key == "k1"
    assert fixed.model.requests[0].options.api_key == "k2"


async def test_the_next_turn_can_be_prepared() -> None:
    other = Model("other", "test")
    upcoming: list[tuple[int, int]] = []

    def prepare(turn: UpcomingTurn) -> NextTurn | None:
        upcoming.append((turn.turn, len(turn.messages)))
        if turn.turn == 2:
            return NextTurn(other, "high", [UserMessage("summary")])
        return None

    script: list[Reply] = [calls(call("c1", "ok")), calls(call("c2", "ok")), "end"]
    scripted = Scripted(script, ok, prepare_next_turn=prepare)
    await scripted.agent.prompt("hi")

    second, third = scripted.model.requests[1:]
    assert (second.model, second.options.reasoning) == (other, "high")
    assert [text_of(message) for message in second.messages] == ["summary"]
    assert len(third.messages) == 3
    assert upcoming == [(2, 3), (3, 3)]
    assert len(scripted.texts()) == 6


async def test_a_turn_can_end_the_run_or_keep_it_going() -> None:
    finished: list[int] = []

    def finish(turn: FinishedTurn) -> Any:
        finished.append(turn.turn)
        return {1: "continue", 2: None, 3: "end"}[turn.turn]

    script: list[Reply] = ["one", calls(call("c1", "ok")), calls(call("c2", "ok")), "never"]
    scripted = Scripted(script, ok, finish_turn=finish)
    await scripted.agent.prompt("hi")

    assert finished == [1, 2, 3]
    assert len(scripted.model.requests) == 3
    assert scripted.agent.state.error is None


def raises(*_: object) -> Any:
    raise ValueError("hook broke")


async def cancelled(*_: object) -> Any:
    """Await what has been cancelled: a cancellation that nobody means for the run."""
    task = asyncio.create_task(asyncio.Event().wait())
    task.cancel()
    await task


async def panic(*_: object) -> Any:
    raise BaseExceptionGroup("all at once", [SystemExit(1)])


HOOKS = [
    ("transform_context", 0),
    ("convert_to_llm", 0),
    ("get_api_key", 0),
    ("finish_turn", 1),
    ("prepare_next_turn", 1),
]


@pytest.mark.parametrize(("hook", "requests"), HOOKS)
@pytest.mark.parametrize(
    ("broken", "error"),
    [
        (raises, "hook broke"),
        (cancelled, "{} was cancelled"),
        (panic, "BaseExceptionGroup: all at once (1 sub-exception)"),
    ],
)
async def test_a_hook_that_raises_ends_the_run_with_an_error(
    hook: str, requests: int, broken: Any, error: str
) -> None:
    options: dict[str, Any] = {hook: broken}
    await ends_with_an_error(options, requests, error.format(hook))


async def ends_with_an_error(options: dict[str, Any], requests: int, error: str) -> None:
    """Run an agent whose hook fails before or after its first request."""
    scripted = Scripted([calls(call("c1", "ok")), "end"], ok, **options)
    scripted.agent.follow_up("later")

    await scripted.agent.prompt("hi")

    assert len(scripted.model.requests) == requests
    assert scripted.agent.state.error == error
    ending = ["message_start", "message_end", "turn_end", "agent_end"]
    between = ["turn_end", "turn_start"] if requests else ["message_end"]
    assert scripted.types()[-4 - len(between) :] == between + ending
    assert scripted.agent.has_queued_messages()


MESSAGES = "a list of messages"
FOR_A_MODEL = "a list of messages for a model"
NEXT_TURN = "a NextTurn or None"
VERDICT = '"continue", "end" or None'


@pytest.mark.parametrize(
    ("hook", "answer", "error"),
    [
        ("transform_context", None, f"NoneType, not {MESSAGES}"),
        ("transform_context", "hi", f"str, not {MESSAGES}"),
        ("transform_context", [{"role": "user"}], f"a list with dict in it, not {MESSAGES}"),
        ("convert_to_llm", None, f"NoneType, not {FOR_A_MODEL}"),
        (
            "convert_to_llm",
            [CustomMessage("hint", "psst")],
            f"a list with CustomMessage in it, not {FOR_A_MODEL}",
        ),
        ("get_api_key", 5, "int, not a string or None"),
        ("finish_turn", True, f"bool, not {VERDICT}"),
        ("finish_turn", "stop", f"'stop', not {VERDICT}"),
        ("prepare_next_turn", {"model": None}, f"dict, not {NEXT_TURN}"),
        ("prepare_next_turn", NextTurn("gpt"), "a NextTurn with str for a model"),  # type: ignore[arg-type]
        (
            "prepare_next_turn",
            NextTurn(None, "deep"),  # type: ignore[arg-type]
            "a NextTurn with 'deep' for a thinking level",
        ),
        (
            "prepare_next_turn",
            NextTurn(messages="new"),  # type: ignore[arg-type]
            f"str, not {MESSAGES}",
        ),
    ],
)
async def test_a_hooks_wrong_answer_ends_the_run_with_an_error(
    hook: str, answer: Any, error: str
) -> None:
    options: dict[str, Any] = {hook: lambda *_: answer}
    await ends_with_an_error(options, dict(HOOKS)[hook], f"{hook} returned {error}")


@pytest.mark.parametrize("queue", ["get_steering_messages", "get_follow_up_messages"])
@pytest.mark.parametrize("answer", ["wait", 5, [None]])
async def test_a_queues_wrong_answer_ends_the_run_with_an_error(queue: str, answer: Any) -> None:
    options: dict[str, Any] = {queue: lambda: answer}
    config = AgentLoopConfig(SCRIPTED_MODEL, **options)
    model = ScriptedModel(["one"])
    messages = await agent_loop([UserMessage("hi")], AgentContext(), config, None, model).result()

    last = messages[-1]
    assert isinstance(last, AssistantMessage)
    assert last.stop_reason == "error"
    given = "a list with NoneType in it" if answer == [None] else type(answer).__name__
    assert last.error_message == f"{queue} returned {given}, not a list of messages"


async def test_a_cancellation_of_the_run_is_no_failure_of_the_hook_it_reaches() -> None:
    reached = asyncio.Event()

    async def hanging(*_: object) -> Any:
        reached.set()
        await asyncio.Event().wait()

    scripted = Scripted(["never"], transform_context=hanging)
    run = asyncio.create_task(scripted.agent.prompt("hi"))
    await reached.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run

    assert "agent_end" not in scripted.types()
    assert not scripted.agent.state.is_streaming


@pytest.mark.parametrize("queue", ["get_steering_messages", "get_follow_up_messages"])
async def test_a_queue_that_raises_ends_the_run_with_an_error(queue: str) -> None:
    options: dict[str, Any] = {queue: raises}
    config = AgentLoopConfig(SCRIPTED_MODEL, convert_to_llm, **options)
    model = ScriptedModel(["one"])
    messages = await agent_loop([UserMessage("hi")], AgentContext(), config, None, model).result()

    last = messages[-1]
    assert isinstance(last, AssistantMessage)
    assert (last.stop_reason, last.error_message) == ("error", "hook broke")


@pytest.mark.parametrize("hook", ["transform_context", "finish_turn", "prepare_next_turn"])
async def test_a_hook_that_hangs_ends_with_abort(hook: str) -> None:
    async def hanging(*_: object) -> Any:
        scripted.agent.abort()
        await asyncio.Event().wait()

    options: dict[str, Any] = {hook: hanging}
    scripted = Scripted([calls(call("c1", "ok")), "never"], ok, **options)
    scripted.agent.steer("s")
    await scripted.agent.prompt("hi")

    assert scripted.agent.state.error == "Request was aborted"
    assert scripted.types()[-2:] == ["turn_end", "agent_end"]
    assert "never" not in scripted.texts()


# What does not end

DAY = 24 * 3600.0


async def ends(run: Awaitable[None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the run end, with so much time as cleaning up may take."""
    leap = Leap(monkeypatch)
    task = asyncio.ensure_future(run)
    for _ in range(5):
        for _ in range(20):
            await asyncio.sleep(0)
        leap.seconds += CLEANUP_SECONDS
    await asyncio.wait_for(task, 10)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("hook", ["transform_context", "before_tool_call", "after_tool_call"])
async def test_a_hook_whose_cleanup_hangs_ends_with_abort(
    hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hanging(*_: object) -> Any:
        scripted.agent.abort()
        try:
            await asyncio.sleep(DAY)
        finally:
            await asyncio.sleep(DAY)

    options: dict[str, Any] = {hook: hanging}
    scripted = Scripted([calls(call("c1", "ok")), "never"], ok, **options)
    await ends(scripted.agent.prompt("hi"), monkeypatch)

    assert scripted.agent.state.error == "Request was aborted"
    assert scripted.types()[-2:] == ["turn_end", "agent_end"]
    assert "never" not in scripted.texts()


async def test_a_hook_that_is_asked_after_an_abort_has_no_longer_than_a_tool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def hanging(*_: object) -> Any:
        try:
            await asyncio.sleep(DAY)
        finally:
            await asyncio.sleep(DAY)

    @tool
    async def stop() -> str:
        """Stop the run."""
        scripted.agent.abort()
        return "stopped"

    scripted = Scripted([calls(call("c1", "stop"))], stop, after_tool_call=hanging)
    await ends(scripted.agent.prompt("hi"), monkeypatch)

    assert scripted.results() == [("c1", True, "Operation aborted")]


@pytest.mark.parametrize("answers", [False, True])
async def test_a_stream_whose_cleanup_hangs_ends(
    answers: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def stream_fn(_: Model, __: LlmContext, ___: StreamOptions) -> AsyncIterator[Any]:
        try:
            if answers:
                yield StreamDone("stop", answer("Once"))
            scripted.agent.abort()
            await asyncio.sleep(DAY)
        finally:
            try:
                await asyncio.sleep(DAY)
            finally:
                await asyncio.sleep(DAY)

    scripted = Scripted([], stream_fn=stream_fn)
    await ends(scripted.agent.prompt("hi"), monkeypatch)

    assert scripted.types()[-2:] == ["turn_end", "agent_end"]
    assert scripted.agent.state.error == (None if answers else "Request was aborted")
    assert scripted.texts()[1:] == (["Once"] if answers else [""])
    assert ("closing a model's stream failed" in caplog.text) == answers


# Streams that misbehave


async def run_stream(events: list[Any]) -> tuple[AssistantMessage, list[str]]:
    async def stream_fn(_: Model, __: LlmContext, ___: StreamOptions) -> AsyncIterator[Any]:
        async def play() -> AsyncIterator[Any]:
            for event in events:
                if isinstance(event, Exception):
                    raise event
                yield event

        return play()

    scripted = Scripted([], stream_fn=stream_fn)
    await scripted.agent.prompt("hi")
    assert scripted.types()[-2:] == ["turn_end", "agent_end"]
    last = scripted.agent.state.messages[-1]
    assert isinstance(last, AssistantMessage)
    return last, scripted.types()


PARTIAL = AssistantMessage([TextContent("Once")], "m", "p")


async def test_a_stream_that_ends_early_keeps_its_text() -> None:
    message, _ = await run_stream([StreamStart(PARTIAL), TextDelta(0, "Once", PARTIAL)])

    assert (message.stop_reason, message.text) == ("error", "Once")
    assert "ended without a result" in str(message.error_message)


async def test_a_stream_that_raises_keeps_its_text() -> None:
    message, _ = await run_stream([StreamStart(PARTIAL), ConnectionError("reset")])

    assert (message.stop_reason, message.text, message.error_message) == ("error", "Once", "reset")


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        (cancelled, "The model call was cancelled"),
        (panic, "BaseExceptionGroup: all at once (1 sub-exception)"),
    ],
)
@pytest.mark.parametrize("when", ["opened", "read", "closed"])
async def test_whatever_a_stream_raises_is_the_answers_error(
    broken: Any, error: str, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Stream:
        async def __anext__(self) -> Any:
            return StreamDone("stop", answer("fine")) if when == "closed" else await broken()

        async def aclose(self) -> None:
            if when == "closed":
                await broken()

    async def stream_fn(*_: object) -> Any:
        return await broken() if when == "opened" else Stream()

    scripted = Scripted([], stream_fn=stream_fn)
    await scripted.agent.prompt("hi")

    assert scripted.types()[-4:] == ["message_start", "message_end", "turn_end", "agent_end"]
    assert scripted.agent.state.error == (None if when == "closed" else error)
    assert ("closing a model's stream failed" in caplog.text) == (when == "closed")


async def test_an_empty_stream_is_an_error() -> None:
    message, types = await run_stream([])

    assert message.stop_reason == "error"
    assert types.count("message_start") == types.count("message_end") == 2


async def test_events_out_of_order_keep_the_grammar() -> None:
    message, types = await run_stream(
        [
            TextEnd(0, "x", PARTIAL),
            StreamStart(PARTIAL),
            TextDelta(0, "Once", PARTIAL),
            StreamStart(PARTIAL),
            StreamDone("stop", PARTIAL),
            TextDelta(0, "after the end", PARTIAL),
            StreamError("error", failure("late")),
        ]
    )

    assert message.stop_reason == "stop"
    assert types[4:] == [
        "message_start",
        "message_update",
        "message_update",
        "message_end",
        "turn_end",
        "agent_end",
    ]


async def test_what_is_no_event_is_an_error() -> None:
    message, _ = await run_stream([StreamStart(PARTIAL), {"type": "text_delta"}])

    assert "gave dict, which is no stream event" in str(message.error_message)


async def test_an_error_without_a_message_or_reason_has_one() -> None:
    message, _ = await run_stream([StreamError("error", AssistantMessage([]))])

    assert (message.stop_reason, message.error_message) == ("error", "The model call failed")


async def test_calls_of_a_failed_answer_get_their_results() -> None:
    failed = calls(call("c1", "ok"))
    failed.stop_reason, failed.error_message = "error", "E1"
    scripted = Scripted([failed], ok)
    await scripted.agent.prompt("hi")

    ((call_id, is_error, text),) = scripted.results()
    assert (call_id, is_error) == ("c1", True)
    assert text.endswith("the response ended with an error.")
    assert len(scripted.model.requests) == 1


async def test_a_stream_function_may_be_a_plain_generator() -> None:
    async def stream_fn(_: Model, __: LlmContext, ___: StreamOptions) -> AsyncIterator[Any]:
        for event in streamed(answer("two words")):
            yield event

    scripted = Scripted([], stream_fn=stream_fn)
    await scripted.agent.prompt("hi")

    assert scripted.texts() == ["hi", "two words"]


async def test_a_stream_that_cannot_be_closed_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Stuck:
        def __aiter__(self) -> Stuck:
            return self

        async def __anext__(self) -> Any:
            return StreamDone("stop", answer("fine"))

        async def aclose(self) -> None:
            raise OSError("cannot close")

    scripted = Scripted([], stream_fn=lambda *_: Stuck())
    await scripted.agent.prompt("hi")

    assert scripted.texts() == ["hi", "fine"]
    assert "closing a model's stream failed" in caplog.text


async def test_a_stream_that_is_no_generator_needs_no_close() -> None:
    class Bare:
        def __aiter__(self) -> Bare:
            return self

        async def __anext__(self) -> Any:
            return StreamDone("stop", answer("fine"))

    scripted = Scripted([], stream_fn=lambda *_: Bare())
    await scripted.agent.prompt("hi")

    assert scripted.texts() == ["hi", "fine"]


async def test_complete_raises_what_went_wrong() -> None:
    context = LlmContext("", [UserMessage("hi")])
    with pytest.raises(ProviderError, match="E1"):
        await complete(SCRIPTED_MODEL, context, stream_fn=ScriptedModel([failure("E1")]))
    cancel = asyncio.Event()
    cancel.set()
    with pytest.raises(AbortedError, match="Request was aborted"):
        await complete(SCRIPTED_MODEL, context, stream_fn=ScriptedModel([]), cancel=cancel)


async def test_a_script_that_is_too_short_says_so() -> None:
    scripted = Scripted([])
    await scripted.agent.prompt("hi")

    assert scripted.agent.state.error == "the script has no entry 0"


async def test_a_script_may_have_an_end_that_repeats() -> None:
    model = ScriptedModel(["one"], otherwise=[StreamDone("stop", answer("again"))])
    scripted = Scripted([], stream_fn=model)
    for _ in range(3):
        await scripted.agent.prompt("hi")

    assert scripted.texts()[1::2] == ["one", "again", "again"]


async def test_a_play_that_raises_is_an_error() -> None:
    def play(*_: object) -> None:
        raise ValueError("played out")

    scripted = Scripted([play])
    await scripted.agent.prompt("hi")

    assert scripted.agent.state.error == "played out"


async def test_data_of_the_caller_is_copied_for_each_call() -> None:
    context = ToolContext(data=[1])
    signal = ToolContext().signal

    copied = context.for_call(signal, "key")

    assert copied.data is context.data
    assert (copied.signal, copied.idempotency_key) == (signal, "key")
    assert context.idempotency_key is None
