"""Whatever a model, its tools and its users do: the grammar holds, and the run ends."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, Literal

from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent_core import (
    AgentEvent,
    AgentTool,
    AgentToolResult,
    AssistantMessage,
    AssistantMessageEvent,
    MemoryJournal,
    StreamDone,
    StreamError,
    StreamStart,
    TextContent,
    TextDelta,
    ToolCall,
    ToolContext,
    ToolResultMessage,
    ToolUpdate,
)
from agent_core.messages import STOP_REASONS, StopReason
from agent_core.testing import Play, ScriptedRequest, ScriptedStream
from tests.agent_core.agents import Scripted
from tests.waiting import PATIENCE

Happening = Literal["nothing", "steer", "follow_up", "abort", "wait"]
RUNS = {"stop", "tool_use"}
HAPPENINGS = st.sampled_from(["nothing", "nothing", "steer", "follow_up", "abort", "wait"])

TOOLS = ("fine", "raises", "hangs", "wrong", "ends", "updates", "late", "missing", "serial")

calls_of_tools = st.lists(
    st.builds(
        ToolCall,
        st.sampled_from(["c1", "c2", "c3", "c4", ""]),
        st.sampled_from(TOOLS),
        st.sampled_from([{}, {}, {"n": 1}, {"n": "x"}]),
        st.sampled_from([None] * 7 + ['{"n"']),
    ),
    max_size=5,
)
texts = st.lists(st.text(max_size=3).map(TextContent), max_size=2)


@st.composite
def answers(draw: st.DrawFn) -> AssistantMessage:
    reason = draw(st.sampled_from((*STOP_REASONS, "tool_use", "tool_use")))
    calls = draw(calls_of_tools)
    return AssistantMessage([*draw(texts), *calls], stop_reason=reason)


@st.composite
def streams(draw: st.DrawFn) -> list[AssistantMessageEvent | Exception]:
    message = draw(answers())
    final: AssistantMessageEvent = (
        StreamError(message.stop_reason, message)
        if message.stop_reason in {"error", "aborted"}
        else StreamDone(message.stop_reason, message)
    )
    odd: list[AssistantMessageEvent | Exception] = [
        StreamStart(message),
        TextDelta(0, "x", message),
        OSError("broken"),
    ]
    events = draw(st.lists(st.sampled_from(odd), max_size=3))
    return [*events, final] if draw(st.integers(0, 9)) else list(events)


steps = st.lists(st.tuples(streams(), HAPPENINGS, HAPPENINGS), max_size=5)


class World:
    """An agent to which things happen at given moments."""

    def __init__(self, script: list[Any], tool_happening: Happening, **options: Any) -> None:
        self.tool_happening = tool_happening
        self.requests_at_abort: int | None = None
        self.ran: list[str] = []
        self.late: list[asyncio.Task[None]] = []
        self.scripted = Scripted(
            [self.play(events, before, after) for events, before, after in script],
            *(self.tool(name) for name in TOOLS if name != "missing"),
            max_turns=6,
            tool_timeout=0.003,
            abort_grace=0.001,
            **options,
        )

    async def happen(self, what: Happening) -> None:
        agent = self.scripted.agent
        if what == "steer":
            agent.steer("steered")
        elif what == "follow_up":
            agent.follow_up("followed")
        elif what == "abort":
            agent.abort()
            if self.requests_at_abort is None:
                self.requests_at_abort = len(self.scripted.model.requests)
        elif what == "wait":
            await asyncio.sleep(0)

    def play(self, events: list[Any], before: Happening, after: Happening) -> Play:
        async def play(stream: ScriptedStream, _: ScriptedRequest) -> None:
            await self.happen(before)
            for number, event in enumerate(events):
                if number == 1:
                    await self.happen(after)
                if isinstance(event, Exception):
                    raise event
                stream.push(event)

        return play

    def tool(self, name: str) -> AgentTool:
        async def execute(
            call_id: str, __: Any, context: ToolContext, update: ToolUpdate
        ) -> AgentToolResult:
            last = self.scripted.model.requests[-1]
            self.ran.append(f"{last.number}:{call_id}")
            await self.happen(self.tool_happening)
            if name == "raises":
                raise ValueError("raised")
            if name == "hangs":
                await asyncio.Event().wait()
            if name == "wrong":
                return {"content": "x"}  # type: ignore[return-value]
            if name == "updates":
                update(AgentToolResult.text("half"))
            if name == "late":
                self.late.append(asyncio.create_task(tell_late(update)))
            return AgentToolResult([TextContent("ok")], terminate=name == "ends")

        schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
        mode: Any = "sequential" if name == "serial" else None
        return AgentTool(name, name, name, schema, execute, execution_mode=mode)


async def tell_late(update: ToolUpdate) -> None:
    """Tell of a call's progress when the call is over, while those beside it still run."""
    for _ in range(10):
        await asyncio.sleep(0)
        update(AgentToolResult.text("too late"))


class Grammar:
    """Follows the events of one run and fails where they break the grammar of `events.py`."""

    def __init__(self, events: list[AgentEvent]) -> None:
        self.events = events
        self.at = 0

    def next(self) -> AgentEvent | None:
        return self.events[self.at] if self.at < len(self.events) else None

    def take(self, *types: str) -> Any:
        event = self.next()
        assert event is not None
        assert event.type in types, (event.type, types)
        self.at += 1
        return event

    def sees(self, kind: str, role: str | None = None) -> bool:
        event: Any = self.next()
        if event is None or event.type != kind:
            return False
        return role is None or event.message.role == role

    def check(self) -> None:
        self.take("agent_start")
        while self.sees("turn_start"):
            self.turn()
        end = self.take("agent_end")
        assert self.next() is None
        assert [m for m in end.messages if m.role == "assistant"]

    def turn(self) -> None:
        self.take("turn_start")
        while self.sees("message_start", "user"):
            self.message()
        answer = self.message()
        assert answer.role == "assistant"
        results: list[ToolResultMessage] = []
        running: Counter[str] = Counter()
        ended: Counter[str] = Counter()
        while not self.sees("turn_end"):
            if self.sees("message_start"):
                results.append(self.message())
                continue
            event = self.take("tool_execution_start", "tool_execution_update", "tool_execution_end")
            if event.type == "tool_execution_start":
                running[event.tool_call_id] += 1
            elif event.type == "tool_execution_update":
                assert running[event.tool_call_id]
            else:
                running[event.tool_call_id] -= 1
                ended[event.tool_call_id] += 1
        called = [call.id for call in answer.tool_calls]
        assert [result.tool_call_id for result in results] == called
        assert ended == Counter(called)
        assert len(set(called)) == len(called)
        assert not +running
        end = self.take("turn_end")
        assert end.message is answer
        assert end.tool_results == results
        if answer.stop_reason not in {"stop", "length", "tool_use"}:
            assert self.sees("agent_end")

    def message(self) -> Any:
        start = self.take("message_start")
        while self.sees("message_update"):
            assert start.message.role == "assistant"
            self.take("message_update")
        end = self.take("message_end")
        assert end.message.role == start.message.role
        return end.message


def answering(*tools: str, reason: StopReason = "tool_use") -> list[AssistantMessageEvent]:
    """A stream that begins, says something and ends with calls of these tools."""
    calls = [ToolCall(f"c{number}", name, {}) for number, name in enumerate(tools)]
    message = AssistantMessage([TextContent("x"), *calls], stop_reason=reason)
    final: AssistantMessageEvent = (
        StreamError(reason, message)
        if reason in {"error", "aborted"}
        else StreamDone(reason, message)
    )
    return [StreamStart(message), TextDelta(0, "x", message), final]


def case(
    *script: tuple[list[AssistantMessageEvent], Happening, Happening],
    tool_happening: Happening = "nothing",
    policy: str = "finish",
    execution: str = "parallel",
    slots: int = 8,
    journalled: bool = False,
) -> example:
    """A case that is tried each time; behind its script the model always has a further answer."""
    return example(
        script=[*script, (answering(reason="stop"), "nothing", "nothing")],
        tool_happening=tool_happening,
        policy=policy,
        mode="one-at-a-time",
        execution=execution,
        slots=slots,
        journalled=journalled,
    )


# No further request after an abort: by a tool, before the answer, in the midst of it, after it.
@case((answering("fine"), "nothing", "nothing"), tool_happening="abort")
@case((answering("fine"), "nothing", "nothing"), tool_happening="abort", journalled=True)
@case((answering("fine"), "abort", "nothing"))
@case((answering("fine"), "nothing", "abort"))
@case((answering(reason="stop"), "follow_up", "abort"))
@case((answering(reason="stop"), "steer", "abort"), policy="skip")
# A call that waits for a slot, or for its turn, has its result, too.
@case((answering("fine", "fine", "fine"), "nothing", "nothing"), slots=1)
@case((answering("fine", "fine", "hangs"), "nothing", "nothing"), tool_happening="abort", slots=1)
@case((answering("hangs", "fine", "fine"), "nothing", "nothing"), tool_happening="abort", slots=1)
@case(
    (answering("fine", "fine", "fine"), "nothing", "nothing"),
    tool_happening="abort",
    execution="sequential",
)
# An update that comes too late is not told.
@case((answering("late", "hangs"), "nothing", "nothing"))
@case((answering("late", "hangs"), "nothing", "nothing"), tool_happening="wait", journalled=True)
# Calls of an answer that is no whole one do not run.
@case((answering("fine", "fine", reason="aborted"), "nothing", "nothing"))
@case((answering("fine", "fine", reason="error"), "nothing", "nothing"))
@case((answering("fine", "fine", reason="length"), "nothing", "nothing"))
@settings(max_examples=400, deadline=None)
@given(
    script=steps,
    tool_happening=st.sampled_from(["nothing", "abort", "steer", "wait"]),
    policy=st.sampled_from(["finish", "skip"]),
    mode=st.sampled_from(["one-at-a-time", "all"]),
    execution=st.sampled_from(["parallel", "sequential"]),
    slots=st.sampled_from([1, 2, 8]),
    journalled=st.booleans(),
)
def test_the_grammar_holds(
    script: list[Any],
    tool_happening: Happening,
    policy: str,
    mode: str,
    execution: str,
    slots: int,
    journalled: bool,
) -> None:
    async def run() -> None:
        world = World(
            script,
            tool_happening,
            steering_policy=policy,
            steering_mode=mode,
            follow_up_mode=mode,
            tool_execution=execution,
            max_parallel_tools=slots,
            journal=MemoryJournal() if journalled else None,
        )
        scripted = world.scripted
        async with asyncio.timeout(PATIENCE):
            await scripted.agent.prompt("hi")
            await asyncio.gather(*world.late)
        Grammar(scripted.events).check()
        end: Any = scripted.events[-1]
        assert end.messages == scripted.agent.state.messages
        assert not scripted.agent.state.is_streaming
        assert scripted.agent.state.pending_tool_calls == set()
        assert len(scripted.model.requests) <= 6
        if world.requests_at_abort is not None:
            assert len(scripted.model.requests) == world.requests_at_abort
        assert len(world.ran) == len(set(world.ran))
        answers = [each for each in end.messages if each.role == "assistant"]
        assert all(answers[int(ran.split(":")[0])].stop_reason in RUNS for ran in world.ran)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert all(task.done() or task.cancelling() for task in others)

    asyncio.run(run())


@settings(max_examples=100, deadline=None)
@given(script=steps, tool_happening=st.sampled_from(["nothing", "wait"]))
def test_a_replay_gives_the_same_transcript_and_calls_nothing(
    script: list[Any], tool_happening: Happening
) -> None:
    calm = [(events, "nothing", "nothing") for events, _, _ in script]

    async def run() -> None:
        journal = MemoryJournal()
        first = World(calm, tool_happening, journal=journal).scripted
        await first.agent.prompt("hi")
        done = len(journal.outputs)
        again = World(calm[len(first.model.requests) - 1 :], tool_happening, journal=journal)
        await again.scripted.agent.prompt("hi")
        failed = first.agent.state.error is not None and "limit" not in first.agent.state.error
        assert len(again.scripted.model.requests) == (1 if failed else 0)
        assert again.scripted.results() == first.results()
        assert len(journal.outputs) == done

    asyncio.run(run())
