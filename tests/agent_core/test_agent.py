"""The stateful agent: its state, queues, listeners and its form as JSON."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from agent_core import (
    Agent,
    AgentEvent,
    AgentOptions,
    DuplicateToolError,
    ImageContent,
    Listener,
    MessageStart,
    Model,
    NothingToContinueError,
    TextContent,
    ToolExecutionStart,
    UserMessage,
)
from agent_core.testing import (
    SCRIPTED_MODEL,
    Reply,
    ScriptedRequest,
    ScriptedStream,
    answer,
    call,
    calls,
)
from tests.agent_core.agents import Scripted, hang, ok


async def test_an_agent_without_a_model_says_so() -> None:
    agent = Agent()

    await agent.prompt("hi")

    assert agent.state.error == "No model is set"
    assert [message.role for message in agent.state.messages] == ["user", "assistant"]


async def test_the_settings_count_from_the_next_run() -> None:
    scripted = Scripted(["one"])
    agent = scripted.agent
    agent.set_system_prompt("be kind")
    agent.set_tools([ok])
    agent.set_thinking_level("high")
    other = Model("other", "test")
    agent.set_model(other)

    await agent.prompt("hi")

    request = scripted.model.requests[0]
    assert request.system_prompt == "be kind"
    assert request.tools == ("ok",)
    assert request.options.reasoning == "high"
    assert request.model is other


def test_tools_of_one_name_are_refused() -> None:
    with pytest.raises(DuplicateToolError, match="'ok'"):
        Agent(AgentOptions(initial_state={"tools": [ok, ok]}))
    with pytest.raises(DuplicateToolError, match="'ok'"):
        Agent().set_tools([ok, ok])


async def test_images_go_with_a_text() -> None:
    scripted = Scripted(["one"])
    image = ImageContent(url="https://example.org/i.png")

    with pytest.raises(TypeError, match="images go with a text"):
        await scripted.agent.prompt(UserMessage("hi"), [image])
    await scripted.agent.prompt("look", [image])

    message = scripted.agent.state.messages[0]
    assert message.content == [TextContent("look"), image]


async def test_nothing_is_no_prompt() -> None:
    with pytest.raises(ValueError, match="nothing to prompt with"):
        await Scripted([]).agent.prompt([])


@pytest.mark.parametrize("message", [None, {"role": "user", "content": "hi"}, [b"hi"]])
async def test_what_is_no_message_does_not_get_into_the_transcript(message: Any) -> None:
    scripted = Scripted(["fine"])
    (odd,) = message if isinstance(message, list) else [message]

    with pytest.raises(TypeError, match="is no message"):
        await scripted.agent.prompt(message)
    for queue in (scripted.agent.steer, scripted.agent.follow_up):
        with pytest.raises(TypeError, match="is no message"):
            queue(odd)
    await scripted.agent.prompt([UserMessage("hi"), UserMessage("you")])

    assert scripted.texts() == ["hi", "you", "fine"]


async def test_modes_of_the_queues() -> None:
    scripted = Scripted(["1", "2"])
    agent = scripted.agent
    agent.set_steering_mode("all")
    agent.set_follow_up_mode("all")
    for text in ("s1", "s2"):
        agent.steer(text)
    for text in ("f1", "f2"):
        agent.follow_up(text)

    await agent.prompt("hi")

    assert scripted.texts() == ["hi", "s1", "s2", "1", "f1", "f2", "2"]
    assert not agent.has_queued_messages()


def test_queues_can_be_cleared() -> None:
    agent = Agent()
    agent.steer("s")
    agent.follow_up("f")

    agent.clear_steering_queue()
    assert agent.has_queued_messages()
    agent.clear_follow_up_queue()
    assert not agent.has_queued_messages()
    agent.steer("s")
    agent.clear_all_queues()
    assert not agent.has_queued_messages()


async def test_follow_ups_continue_an_agent_that_has_answered() -> None:
    scripted = Scripted(["1", "2"])
    await scripted.agent.prompt("hi")

    with pytest.raises(NothingToContinueError, match="Cannot continue from message role"):
        await scripted.agent.continue_()
    scripted.agent.follow_up("more")
    await scripted.agent.continue_()

    assert scripted.texts() == ["hi", "1", "more", "2"]


async def test_what_was_said_elsewhere_comes_after_what_was_said_here() -> None:
    steered, later = [[], [UserMessage("s2")]], [[UserMessage("f2")]]

    async def follow_ups() -> list[UserMessage]:
        return later.pop(0) if later else []

    scripted = Scripted(
        ["1", "2", "3", "4"],
        get_steering_messages=lambda: steered.pop(0) if steered else [],
        get_follow_up_messages=follow_ups,
    )
    scripted.agent.follow_up("f1")
    await scripted.agent.prompt("hi")

    assert scripted.texts() == ["hi", "1", "s2", "2", "f1", "3", "f2", "4"]


async def test_reset_forgets() -> None:
    scripted = Scripted([RuntimeError("E1")])
    await scripted.agent.prompt("hi")
    scripted.agent.steer("s")

    scripted.agent.reset()

    assert scripted.agent.state.messages == []
    assert scripted.agent.state.error is None
    assert not scripted.agent.has_queued_messages()


def test_the_transcript_can_be_edited() -> None:
    agent = Agent()
    agent.append_message(UserMessage("a"))
    assert len(agent.state.messages) == 1
    agent.replace_messages([UserMessage("b"), UserMessage("c")])
    assert len(agent.state.messages) == 2
    agent.clear_messages()
    assert agent.state.messages == []


async def test_an_idle_agent_is_idle_at_once_and_abort_does_nothing() -> None:
    agent = Agent()
    agent.abort()
    await agent.wait_for_idle()
    assert agent.signal is None


def bad(_: AgentEvent) -> None:
    raise ValueError("listener broke")


async def bad_by_cancellation(_: AgentEvent) -> None:
    task = asyncio.create_task(asyncio.Event().wait())
    task.cancel()
    await task


@pytest.mark.parametrize("bad", [bad, bad_by_cancellation])
async def test_a_listener_that_raises_is_reported_and_the_run_goes_on(
    bad: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    scripted = Scripted([calls(call("c1", "ok")), "end"], ok)
    scripted.agent.subscribe(bad)
    with caplog.at_level(logging.ERROR):
        await scripted.agent.prompt("hi")

    assert scripted.results() == [("c1", False, "ok")]
    assert scripted.texts()[-1] == "end"
    assert "a listener failed at agent_start" in caplog.text


async def test_listeners_are_awaited_in_order_until_they_leave() -> None:
    scripted = Scripted(["1", "2"])
    heard: list[str] = []

    async def slow(event: AgentEvent) -> None:
        await asyncio.sleep(0)
        heard.append(f"slow {event.type}")

    leave = scripted.agent.subscribe(slow)
    scripted.agent.subscribe(lambda event: heard.append(f"quick {event.type}"))

    await scripted.agent.prompt("hi")
    assert heard[:4] == ["slow agent_start", "quick agent_start", "slow turn_start", heard[3]]
    leave()
    heard.clear()
    await scripted.agent.prompt("again")
    assert {line.split()[0] for line in heard} == {"quick"}


async def test_a_listener_that_is_subscribed_twice_leaves_once_at_a_time() -> None:
    scripted = Scripted(["1", "2"])
    heard: list[AgentEvent] = []
    listener = heard.append
    leave = scripted.agent.subscribe(listener)
    scripted.agent.subscribe(listener)
    leave()
    leave()
    scripted.events.clear()
    await scripted.agent.prompt("hi")

    assert heard == scripted.events


async def test_the_state_is_set_before_listeners_are_told() -> None:
    states: list[tuple[str, bool, int]] = []
    scripted = Scripted([calls(call("c1", "ok")), "end"], ok)
    agent = scripted.agent

    def look(event: AgentEvent) -> None:
        state = agent.state
        states.append((event.type, state.stream_message is not None, len(state.pending_tool_calls)))
        assert state.is_streaming

    agent.subscribe(look)
    await agent.prompt("hi")

    assert ("tool_execution_start", False, 1) in states
    assert ("tool_execution_end", False, 0) in states
    assert ("message_update", True, 0) in states
    assert states[-1] == ("agent_end", False, 0)


async def test_abort_before_the_first_request() -> None:
    scripted = Scripted(["never"])

    def stop(event: AgentEvent) -> None:
        if isinstance(event, MessageStart) and event.message.role == "user":
            scripted.agent.abort()

    scripted.agent.subscribe(stop)
    await scripted.agent.prompt("hi")

    assert scripted.model.requests == []
    assert scripted.agent.state.error == "Request was aborted"
    assert scripted.types()[-2:] == ["turn_end", "agent_end"]


async def test_abort_at_the_start_of_a_call_keeps_it_from_running() -> None:
    ran: list[str] = []

    async def before(*_: object) -> None:
        ran.append("hook")

    scripted = Scripted([calls(call("c1", "ok"), call("c2", "ok"))], ok, before_tool_call=before)

    def stop(event: AgentEvent) -> None:
        if isinstance(event, ToolExecutionStart):
            scripted.agent.abort()

    scripted.agent.subscribe(stop)
    await scripted.agent.prompt("hi")

    assert ran == []
    assert scripted.results() == [
        ("c1", True, "Operation aborted"),
        ("c2", True, "Operation aborted"),
    ]
    assert len(scripted.model.requests) == 1


async def test_abort_after_the_answer_keeps_what_is_queued() -> None:
    scripted = Scripted(["1", "never"])
    scripted.agent.follow_up("later")

    def stop(event: AgentEvent) -> None:
        if event.type == "turn_end":
            scripted.agent.abort()

    scripted.agent.subscribe(stop)
    await scripted.agent.prompt("hi")

    assert scripted.texts() == ["hi", "1"]
    assert scripted.agent.state.error is None
    assert scripted.agent.has_queued_messages()


async def test_calls_of_an_aborted_answer_get_their_results() -> None:
    async def play(stream: ScriptedStream, request: ScriptedRequest) -> None:
        from agent_core import StreamStart  # noqa: PLC0415

        stream.push(StreamStart(calls(call("c1", "ok", a=1))))
        await asyncio.Event().wait()

    scripted = Scripted([play], ok)

    def stop(event: AgentEvent) -> None:
        if isinstance(event, MessageStart) and event.message.role == "assistant":
            scripted.agent.abort()

    scripted.agent.subscribe(stop)
    await scripted.agent.prompt("hi")

    assert scripted.results() == [("c1", True, "Operation aborted")]
    assert scripted.types()[-2:] == ["turn_end", "agent_end"]


async def test_a_cancelled_prompt_leaves_an_idle_agent() -> None:
    scripted = Scripted([calls(call("c1", "hang"))], hang)
    started = asyncio.Event()

    def watch(event: AgentEvent) -> None:
        if isinstance(event, ToolExecutionStart):
            started.set()

    scripted.agent.subscribe(watch)
    task = asyncio.create_task(scripted.agent.prompt("hi"))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert not scripted.agent.state.is_streaming
    assert scripted.agent.state.pending_tool_calls == set()
    await scripted.agent.wait_for_idle()


async def test_interrupted_calls_are_answered_when_the_agent_goes_on() -> None:
    scripted = Scripted(["end"], ok, messages=[UserMessage("hi"), calls(call("c1", "ok"))])

    await scripted.agent.continue_()

    (result,) = scripted.results()
    assert result[:2] == ("c1", True)
    assert "interrupted" in result[2]
    assert [message.role for message in scripted.model.requests[0].messages] == [
        "user",
        "assistant",
        "tool_result",
    ]


async def test_an_agent_comes_back_from_json() -> None:
    scripted = Scripted([calls(call("c1", "ok")), "end"], ok)
    agent = scripted.agent
    agent.set_system_prompt("SP")
    agent.set_thinking_level("low")
    await agent.prompt("hi")
    agent.set_follow_up_mode("all")
    agent.steer("s")
    agent.follow_up("f")

    data = json.loads(json.dumps(agent.to_dict()))
    back = Agent.from_dict(data, AgentOptions(initial_state={"tools": [hang, ok]}))

    assert back.to_dict() == data
    assert back.state.messages == agent.state.messages
    assert back.state.model == SCRIPTED_MODEL
    assert [tool.name for tool in back.state.tools] == ["ok"]


async def test_a_model_of_the_options_goes_before_the_stored_one() -> None:
    data = Scripted([]).agent.to_dict()
    options = AgentOptions(initial_state={"model": Model("new", "test")})

    assert Agent.from_dict(data, options).state.model == Model("new", "test")
    assert Agent.from_dict(data | {"model": None}).state.model is None


async def test_a_run_counts_its_usage_if_asked() -> None:
    first, second = calls(call("c1", "ok")), answer("end")
    first.usage.input, second.usage.output = 10, 5
    first.usage.cost = second.usage.cost = 0.25
    script: list[Reply] = [first, second]
    scripted = Scripted(script, ok, enable_credit_tracking=True)

    await scripted.agent.prompt("hi")

    end: Any = scripted.events[-1]
    assert (end.usage.input, end.usage.output, end.usage.cost) == (10, 5, 0.5)
