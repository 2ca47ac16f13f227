"""The scenarios of the recorded traces, in Python; time passes in turns of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from agent_core.agent import Agent
from agent_core.content import AssistantContent, ImageContent, TextContent, ToolCall
from agent_core.errors import AgentBusyError
from agent_core.events import AgentEnd, AgentEvent
from agent_core.hooks import AfterToolCall, BeforeToolCall, ToolCallBlock, ToolResultOverride
from agent_core.messages import AssistantMessage, Message, StopReason, UserMessage
from agent_core.options import AgentOptions
from agent_core.results import AgentToolResult
from agent_core.streaming import StreamStart, TextDelta, TextEnd, TextStart
from agent_core.testing import (
    SCRIPTED_MODEL,
    Play,
    Reply,
    ScriptedRequest,
    ScriptedStream,
    answer,
    call,
    calls,
    failure,
)
from agent_core.tools import AgentTool, ToolContext, ToolUpdate
from tests.agent_core.trace_lines import Log, LoggedModel, event_line, run

Scenario = Callable[[Log], Awaitable[None]]
SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    SCENARIOS[function.__name__] = function
    return function


async def ticks(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def user(text: str) -> UserMessage:
    return UserMessage(text, timestamp=1)


def said(content: list[AssistantContent], stop_reason: StopReason) -> AssistantMessage:
    return AssistantMessage(content, "mock", "openai", stop_reason=stop_reason)


def streams(*parts: str) -> Play:
    """Push all events at once: the partial message has grown before the first one is read."""

    def play(stream: ScriptedStream, _: ScriptedRequest) -> None:
        block = TextContent("")
        partial = said([], "stop")
        stream.push(StreamStart(partial))
        partial.content.append(block)
        stream.push(TextStart(0, partial))
        for part in parts:
            block.text += part
            stream.push(TextDelta(0, part, partial))
        stream.push(TextEnd(0, block.text, partial))
        stream.done(partial)

    return play


def after(act: Callable[[], object], count: int, message: AssistantMessage) -> Play:
    """Do something, let time pass, answer."""

    async def play(stream: ScriptedStream, _: ScriptedRequest) -> None:
        act()
        await ticks(count)
        if message.stop_reason == "error":
            stream.fail(message)
        else:
            stream.done(message)

    return play


def nothing() -> None:
    pass


Execute = Callable[[str, Any, ToolContext, ToolUpdate], Awaitable[AgentToolResult]]


def tool(name: str, execute: Execute, **extra: Any) -> AgentTool:
    parameters = extra.pop("parameters", {"type": "object", "properties": {}})
    return AgentTool(name, name, name, parameters, execute, **extra)


def ok_tool(name: str, pause: int = 0, **extra: Any) -> AgentTool:
    async def execute(_: str, params: Any, __: ToolContext, ___: ToolUpdate) -> AgentToolResult:
        await ticks(pause)
        return AgentToolResult.text(f"{name} ok", details={"p": params})

    return tool(name, execute, **extra)


def ending_tool() -> AgentTool:
    async def execute(_: str, __: Any, ___: ToolContext, ____: ToolUpdate) -> AgentToolResult:
        return AgentToolResult([TextContent("ok")], terminate=True)

    return tool("t", execute)


def agent_of(
    script: list[Reply],
    log: Log,
    *tools: AgentTool,
    messages: list[Message] | None = None,
    listener: Callable[[AgentEvent], Awaitable[None] | None] | None = None,
    **options: Any,
) -> Agent:
    agent = Agent(
        AgentOptions(
            initial_state={
                "system_prompt": "SP",
                "model": SCRIPTED_MODEL,
                "tools": tools,
                "messages": messages or [],
            },
            stream_fn=LoggedModel(script, log),
            **options,
        )
    )
    agent.subscribe(lambda event: log.append(event_line(event)))
    if listener is not None:
        agent.subscribe(listener)
    return agent


async def hi(agent: Agent) -> None:
    await agent.prompt("hi")


ONE_CALL = calls(call("c1", "t"))


@scenario
async def stream_text(log: Log) -> None:
    await run(agent_of([streams("Hel", "lo")], log), log, hi)


@scenario
async def prompt_batch_and_images(log: Log) -> None:
    agent = agent_of([answer("1"), answer("2")], log)
    await run(agent, log, lambda agent: agent.prompt([user("a"), user("b")]))
    await run(agent, log, lambda agent: agent.prompt("look", [ImageContent("AA==")]))


@scenario
async def one_tool(log: Log) -> None:
    script: list[Reply] = [calls(call("c1", "t", x=1)), answer("fin")]
    await run(agent_of(script, log, ok_tool("t")), log, hi)


@scenario
async def tool_updates(log: Log) -> None:
    background: list[asyncio.Task[None]] = []

    async def execute(_: str, __: Any, ___: ToolContext, update: ToolUpdate) -> AgentToolResult:
        async def late() -> None:
            await ticks(20)
            update(AgentToolResult.text("late"))

        update(AgentToolResult.text("10%"))
        await ticks(5)
        update(AgentToolResult.text("90%"))
        background.append(asyncio.create_task(late()))
        return AgentToolResult.text("ok")

    script: list[Reply] = [ONE_CALL, after(nothing, 60, answer("fin"))]
    await run(agent_of(script, log, tool("t", execute)), log, hi)
    await background[0]


@scenario
async def tool_not_found(log: Log) -> None:
    await run(agent_of([calls(call("c1", "nope")), answer("fin")], log), log, hi)


@scenario
async def tool_missing_required(log: Log) -> None:
    parameters = {"type": "object", "properties": {"n": {"type": "number"}}, "required": ["n"]}
    strict = ok_tool("t", parameters=parameters)
    await run(agent_of([ONE_CALL, answer("fin")], log, strict), log, hi)


@scenario
async def tool_throws(log: Log) -> None:
    async def execute(_: str, __: Any, ___: ToolContext, ____: ToolUpdate) -> AgentToolResult:
        raise RuntimeError("boom")

    await run(agent_of([ONE_CALL, answer("fin")], log, tool("t", execute)), log, hi)


def slow_and_fast() -> list[Reply]:
    return [calls(call("c1", "slow"), call("c2", "fast")), answer("fin")]


@scenario
async def two_tools_default(log: Log) -> None:
    tools = ok_tool("slow", 40), ok_tool("fast", 5)
    await run(agent_of(slow_and_fast(), log, *tools), log, hi)


@scenario
async def two_tools_per_tool_sequential(log: Log) -> None:
    tools = ok_tool("slow", 40), ok_tool("fast", 5, execution_mode="sequential")
    await run(agent_of(slow_and_fast(), log, *tools), log, hi)


@scenario
async def steer_before_prompt_one_at_a_time(log: Log) -> None:
    agent = agent_of([answer("1"), answer("2"), answer("3")], log)
    agent.steer(user("s1"))
    agent.steer(user("s2"))
    await run(agent, log, hi)


@scenario
async def steer_during_text_only_turn(log: Log) -> None:
    def steer() -> None:
        agent.steer(user("S"))

    agent = agent_of([after(steer, 0, answer("1")), answer("2")], log)
    await run(agent, log, hi)


@scenario
async def followup_one_at_a_time(log: Log) -> None:
    agent = agent_of([answer("1"), answer("2"), answer("3")], log)
    agent.follow_up(user("f1"))
    agent.follow_up(user("f2"))
    await run(agent, log, hi)


@scenario
async def followup_all(log: Log) -> None:
    agent = agent_of([answer("1"), answer("2")], log, follow_up_mode="all")
    agent.follow_up(user("f1"))
    agent.follow_up(user("f2"))
    await run(agent, log, hi)


@scenario
async def queue_during_agent_end(log: Log) -> None:
    def listener(event: AgentEvent) -> None:
        if isinstance(event, AgentEnd) and not agent.has_queued_messages():
            agent.follow_up(user("late"))

    agent = agent_of([answer("1")], log, listener=listener)
    await run(agent, log, hi)


@scenario
async def error_after_start(log: Log) -> None:
    def play(stream: ScriptedStream, _: ScriptedRequest) -> None:
        stream.push(StreamStart(answer("par")))
        stream.fail(failure("E1", text="par"))

    await run(agent_of([play], log), log, hi)


@scenario
async def error_keeps_queues(log: Log) -> None:
    agent = agent_of([after(nothing, 5, failure("E1"))], log)
    agent.follow_up(user("f"))
    await run(agent, log, hi)


@scenario
async def length_with_toolcalls(log: Log) -> None:
    cut = said([call("c1", "t", x=1)], "length")
    await run(agent_of([cut, answer("fin")], log, ok_tool("t")), log, hi)


@scenario
async def stop_reason_stop_with_toolcalls(log: Log) -> None:
    stopped = said([ToolCall("c1", "t")], "stop")
    await run(agent_of([stopped, answer("fin")], log, ok_tool("t")), log, hi)


@scenario
async def streamfn_throws(log: Log) -> None:
    await run(agent_of([RuntimeError("setup failed")], log), log, hi)


@scenario
async def abort_mid_stream(log: Log) -> None:
    async def play(stream: ScriptedStream, request: ScriptedRequest) -> None:
        stream.push(StreamStart(answer("par")))
        assert request.options.signal is not None
        await request.options.signal.wait()
        stream.fail(failure("Request was aborted", text="par", aborted=True))

    async def act(agent: Agent) -> None:
        prompting = asyncio.create_task(agent.prompt("hi"))
        await ticks(20)
        agent.abort()
        await prompting

    await run(agent_of([play], log), log, act)


@scenario
async def abort_during_two_parallel_tools(log: Log) -> None:
    async def first(_: str, __: Any, ___: ToolContext, ____: ToolUpdate) -> AgentToolResult:
        await ticks(5)
        agent.abort()
        return AgentToolResult.text("t1 ok")

    async def second(_: str, __: Any, context: ToolContext, ___: ToolUpdate) -> AgentToolResult:
        await context.signal.wait()
        raise RuntimeError("t2 aborted")

    script: list[Reply] = [calls(call("c1", "t1"), call("c2", "t2"))]
    agent = agent_of(script, log, tool("t1", first), tool("t2", second))
    await run(agent, log, hi)


@scenario
async def before_block(log: Log) -> None:
    async def deny_first(asked: BeforeToolCall, _: object) -> ToolCallBlock | None:
        return ToolCallBlock("denied") if asked.tool_call.id == "c1" else None

    script: list[Reply] = [calls(call("c1", "t"), call("c2", "t")), answer("fin")]
    agent = agent_of(script, log, ok_tool("t"), before_tool_call=deny_first)
    await run(agent, log, hi)


@scenario
async def after_override(log: Log) -> None:
    async def patch(_: AfterToolCall, __: object) -> ToolResultOverride:
        return ToolResultOverride([TextContent("patched")], is_error=True)

    script: list[Reply] = [ONE_CALL, answer("fin")]
    await run(agent_of(script, log, ok_tool("t"), after_tool_call=patch), log, hi)


@scenario
async def terminate_all(log: Log) -> None:
    script: list[Reply] = [calls(call("c1", "t"), call("c2", "t")), answer("fin")]
    await run(agent_of(script, log, ending_tool()), log, hi)


@scenario
async def terminate_with_followup(log: Log) -> None:
    agent = agent_of([ONE_CALL, answer("fin")], log, ending_tool())
    agent.follow_up(user("f"))
    await run(agent, log, hi)


@scenario
async def continue_empty(log: Log) -> None:
    await run(agent_of([answer("x")], log), log, lambda agent: agent.continue_())


@scenario
async def continue_user_tail(log: Log) -> None:
    agent = agent_of([answer("1")], log, messages=[user("u")])
    await run(agent, log, lambda agent: agent.continue_())


@scenario
async def continue_assistant_tail_steer_two(log: Log) -> None:
    agent = agent_of([answer("1"), answer("2"), answer("3")], log)
    await agent.prompt("hi")
    log.clear()
    agent.steer(user("s1"))
    agent.steer(user("s2"))
    await run(agent, log, lambda agent: agent.continue_())


@scenario
async def prompt_and_continue_while_streaming(log: Log) -> None:
    async def act(agent: Agent) -> None:
        prompting = asyncio.create_task(agent.prompt("hi"))
        await ticks(1)
        try:
            await agent.prompt("no")
        except AgentBusyError as error:
            log.append(f"! prompt: {error}")
        try:
            await agent.continue_()
        except AgentBusyError as error:
            log.append(f"! continue: {error}")
        try:
            agent.reset()
        except AgentBusyError as error:
            log.append(f"! reset: {error}")
        await prompting

    await run(agent_of([after(nothing, 30, answer("1"))], log), log, act)


@scenario
async def async_listener_awaited(log: Log) -> None:
    async def listener(event: AgentEvent) -> None:
        if isinstance(event, AgentEnd):
            await ticks(20)
            log.append("! listener done")

    async def idle(agent: Agent) -> None:
        await agent.wait_for_idle()
        log.append("! idle")

    async def act(agent: Agent) -> None:
        prompting = asyncio.create_task(agent.prompt("hi"))
        idling = asyncio.create_task(idle(agent))
        await prompting
        log.append("! prompt resolved")
        await idling

    await run(agent_of([answer("1")], log, listener=listener), log, act)
