"""Tool calls that go wrong, take long, are many, or are not wanted: each gets one result."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from typing import Any

import orjson
import pytest
from pydantic import BaseModel, field_validator

from agent_core import (
    AfterToolCall,
    Agent,
    AgentOptions,
    AgentTool,
    AgentToolResult,
    BeforeToolCall,
    ImageContent,
    StreamDone,
    StreamStart,
    TextContent,
    ToolCall,
    ToolCallBlock,
    ToolContext,
    ToolExecutionUpdate,
    ToolResultOverride,
    ToolUpdate,
    tool,
)
from agent_core.testing import Reply, call, calls
from tests.agent_core.agents import Scripted, hang, ok, text_of


def raw_tool(name: str, result: Any) -> AgentTool:
    """A tool whose execute gives whatever it is told to."""

    async def execute(*_: object) -> AgentToolResult:
        return result  # type: ignore[no-any-return]

    return AgentTool(name, name, name, {"type": "object"}, execute)


def one_call(name: str, **arguments: Any) -> list[Reply]:
    return [calls(call("c1", name, **arguments)), "end"]


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        (5, 'Tool "t" returned int, not an AgentToolResult'),
        (None, 'Tool "t" returned NoneType, not an AgentToolResult'),
        (
            AgentToolResult([object()]),  # type: ignore[list-item]
            'Tool "t" returned content that is not text or images',
        ),
        (
            AgentToolResult(None),  # type: ignore[arg-type]
            'Tool "t" returned content that is not text or images',
        ),
        *(
            (AgentToolResult([block]), 'Tool "t" returned content that is not text or images')
            for block in (
                TextContent(5),  # type: ignore[arg-type]
                TextContent(None),  # type: ignore[arg-type]
                ImageContent(b"PNG"),  # type: ignore[arg-type]
                ImageContent(url="http://h/1.png", mime_type=None),  # type: ignore[arg-type]
            )
        ),
    ],
)
async def test_a_wrong_result_is_an_error(returned: Any, text: str) -> None:
    scripted = Scripted(one_call("t"), raw_tool("t", returned))

    await scripted.agent.prompt("hi")

    assert scripted.results() == [("c1", True, text)]
    assert scripted.texts()[-1] == "end"


async def test_a_bare_string_is_a_result_of_text() -> None:
    scripted = Scripted(one_call("t"), raw_tool("t", AgentToolResult("fine")))  # type: ignore[arg-type]

    await scripted.agent.prompt("hi")

    assert scripted.results() == [("c1", False, "fine")]


async def test_a_result_whose_marks_are_no_booleans_can_be_read_again() -> None:
    result = AgentToolResult("gone", is_error="no such file", terminate=0)  # type: ignore[arg-type]
    scripted = Scripted(one_call("t"), raw_tool("t", result))

    await scripted.agent.prompt("hi")

    stored = json.loads(json.dumps(scripted.agent.to_dict()))
    options = AgentOptions(initial_state={"tools": scripted.agent.state.tools})
    assert scripted.results() == [("c1", True, "gone")]
    assert Agent.from_dict(stored, options).state.messages == scripted.agent.state.messages


async def test_keys_in_an_error_are_hidden(caplog: pytest.LogCaptureFixture) -> None:
    @tool
    async def leak() -> str:
        """Raise an error with a key."""
        raise PermissionError("rejected key sk-abcdefghijklmnopqrstuv for user")

    scripted = Scripted(one_call("leak"), leak)
    with caplog.at_level(logging.DEBUG):
        await scripted.agent.prompt("hi")

    assert scripted.results() == [("c1", True, "rejected key [hidden] for user")]
    assert "sk-abc" not in caplog.text


async def test_what_a_tool_prints_goes_nowhere_else(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    @tool
    async def chatty(secret: str) -> str:
        """Print its argument."""
        print(secret)
        return "done"

    scripted = Scripted(one_call("chatty", secret="hunter2-hunter2"), chatty)
    with caplog.at_level(logging.DEBUG):
        await scripted.agent.prompt("hi")

    assert scripted.results() == [("c1", False, "done")]
    assert "hunter2" in capsys.readouterr().out
    assert "hunter2" not in caplog.text


class Picky(BaseModel):
    """Arguments that fail in another way than by not fitting."""

    table: str

    @field_validator("table")
    @classmethod
    def look_up(cls, table: str) -> str:
        raise LookupError(f"there is no {table}")


async def test_arguments_that_cannot_be_checked_are_an_error() -> None:
    ran: list[object] = []

    async def execute(*arguments: object) -> AgentToolResult:
        ran.append(arguments)
        return AgentToolResult.text("never")

    scripted = Scripted(one_call("t", table="x"), AgentTool("t", "t", "t", Picky, execute))
    await scripted.agent.prompt("hi")

    text = 'The arguments of tool "t" could not be checked: there is no x'
    assert scripted.results() == [("c1", True, text)]
    assert scripted.types()[-2:] == ["turn_end", "agent_end"]
    assert ran == []


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "integer"}, "Infinity"),
        ({"type": "integer"}, float("inf")),
        ({"type": "string", "pattern": r"^\p{L}+$"}, "x"),
    ],
)
async def test_no_argument_ends_the_run(schema: dict[str, Any], value: object) -> None:
    async def execute(*_: object) -> AgentToolResult:
        return AgentToolResult.text("ok")

    parameters = {"type": "object", "properties": {"value": schema}}
    scripted = Scripted(one_call("t", value=value), AgentTool("t", "t", "t", parameters, execute))
    await scripted.agent.prompt("hi")

    assert len(scripted.results()) == 1
    assert scripted.texts()[-1] == "end"
    assert scripted.types()[-2:] == ["turn_end", "agent_end"]


class Panic(BaseException):
    """What extensions raise that are written in Rust: it is no Exception."""


class Unspeakable(Exception):
    """An error that fails to say what it is."""

    def __str__(self) -> str:
        raise AttributeError("response")


def raising(error: BaseException) -> AgentTool:
    """A tool that raises what it is told to."""

    async def execute(*_: object) -> AgentToolResult:
        raise error

    return AgentTool("bad", "bad", "bad", {"type": "object"}, execute)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (Panic("rust"), "Panic: rust"),
        (Panic(), "Panic"),
        (SystemExit(2), "SystemExit: 2"),
        (
            BaseExceptionGroup("both", [Panic(), ValueError()]),
            "BaseExceptionGroup: both (2 sub-exceptions)",
        ),
        (Unspeakable(), "Unspeakable"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_whatever_a_tool_raises_is_its_result(error: BaseException, text: str) -> None:
    batch = calls(call("c1", "bad"), call("c2", "ok"))
    scripted = Scripted([batch, "end"], raising(error), ok)
    async with asyncio.timeout(5):
        await scripted.agent.prompt("hi")

    assert scripted.results() == [("c1", True, text), ("c2", False, "ok")]
    assert scripted.texts()[-1] == "end"
    assert scripted.types()[-2:] == ["turn_end", "agent_end"]


async def test_details_that_cannot_be_told_are_an_error() -> None:
    details: dict[str, Any] = {}
    details["self"] = details
    odd = AgentToolResult.text("ok", details=details)
    fine = AgentToolResult.text("fine")
    returned = Scripted(one_call("t"), raw_tool("t", odd))
    overridden = Scripted(one_call("t"), raw_tool("t", fine), after_tool_call=lambda *_: odd)
    for scripted in (returned, overridden):
        await scripted.agent.prompt("hi")

        ((_, is_error, text),) = scripted.results()
        assert is_error
        assert text.startswith('Tool "t" returned details that are no JSON: ')
        assert "Circular reference" in text
        assert scripted.texts()[-1] == "end"


@pytest.mark.parametrize(
    ("details", "told"),
    [
        ({1: "one", None: 2}, {"1": "one", "null": 2}),
        ({"n": [10**30, 2**64 - 1]}, {"n": [str(10**30), 2**64 - 1]}),
        ({"n": {10**30}}, {"n": [str(10**30)]}),
        (("a", float("nan")), ["a", None]),
    ],
)
async def test_details_become_what_can_be_stored(details: object, told: object) -> None:
    scripted = Scripted(one_call("t"), raw_tool("t", AgentToolResult.text("ok", details=details)))
    await scripted.agent.prompt("hi")

    (end,) = scripted.ends()
    assert (end.result.details, end.is_error) == (told, False)
    # as what stores it does, which knows no such keys and no such numbers
    assert orjson.loads(orjson.dumps(end.result.to_dict()))["details"] == told


async def test_an_error_without_words_is_named() -> None:
    @tool
    async def mute() -> str:
        """Raise without a word."""
        raise LookupError

    scripted = Scripted(one_call("mute"), mute)
    await scripted.agent.prompt("hi")

    assert scripted.results() == [("c1", True, "LookupError")]


async def test_a_tool_that_hangs_is_cut_off() -> None:
    scripted = Scripted(one_call("hang"), hang, tool_timeout=0.01)

    await scripted.agent.prompt("hi")

    assert scripted.results() == [("c1", True, 'Tool "hang" timed out after 0.01 seconds')]
    assert scripted.ends()[0].duration >= 0.01


async def test_a_tools_own_timeout_goes_before_the_runs() -> None:
    @tool(timeout=0.01)
    async def slow() -> str:
        """Wait for ever."""
        await asyncio.Event().wait()
        return "never"

    scripted = Scripted(one_call("slow"), slow, tool_timeout=None)
    await scripted.agent.prompt("hi")

    assert scripted.results()[0][2] == 'Tool "slow" timed out after 0.01 seconds'


class Stubborn:
    """A tool that does not heed its cancellation until it is released."""

    def __init__(self) -> None:
        self.release = asyncio.Event()

        @tool
        async def stubborn() -> str:
            """Wait, whatever happens."""
            while not self.release.is_set():
                try:
                    await self.release.wait()
                except asyncio.CancelledError:
                    continue
            raise ValueError("nobody listens any more")

        self.tool = stubborn


async def test_a_tool_that_does_not_heed_is_left_behind() -> None:
    stubborn = Stubborn()
    script = one_call("stubborn")
    scripted = Scripted(script, stubborn.tool, tool_timeout=0.01, abort_grace=0.01)

    await scripted.agent.prompt("hi")

    assert scripted.results()[0][2].endswith("timed out after 0.01 seconds")
    stubborn.release.set()
    await asyncio.sleep(0)


async def test_abort_gives_tools_a_moment_and_then_cancels_them() -> None:
    cancelled = asyncio.Event()

    @tool
    async def wait() -> str:
        """Wait for ever."""
        scripted.agent.abort()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return "never"

    scripted = Scripted(one_call("wait"), wait, abort_grace=0.01)
    await scripted.agent.prompt("hi")

    assert cancelled.is_set()
    assert scripted.results() == [("c1", True, "Operation aborted")]
    assert scripted.texts()[-1] == ""
    assert scripted.agent.state.error == "Request was aborted"


@pytest.mark.parametrize("way", ["cancel", "cancel after abort"])
async def test_a_tool_that_cancels_itself_has_a_result(way: str) -> None:
    @tool
    async def odd() -> str:
        """Raise a cancellation."""
        if way != "cancel":
            scripted.agent.abort()
        raise asyncio.CancelledError

    scripted = Scripted(one_call("odd"), odd)
    await scripted.agent.prompt("hi")

    expected = 'Tool "odd" was cancelled' if way == "cancel" else "Operation aborted"
    assert scripted.results() == [("c1", True, expected)]


async def test_a_tool_can_stop_by_itself_on_abort() -> None:
    @tool
    async def polite(ctx: ToolContext) -> str:
        """Stop when it is told to."""
        scripted.agent.abort()
        await ctx.signal.wait()
        return "stopped in time"

    scripted = Scripted(one_call("polite"), polite)
    await scripted.agent.prompt("hi")

    assert scripted.results() == [("c1", False, "stopped in time")]


async def test_no_more_tools_run_at_once_than_allowed() -> None:
    running: list[int] = [0, 0]

    @tool
    async def count() -> str:
        """Count how many run."""
        running[0] += 1
        running[1] = max(running)
        await asyncio.sleep(0)
        running[0] -= 1
        return "ok"

    batch = calls(*(call(f"c{number}", "count") for number in range(10)))
    scripted = Scripted([batch, "end"], count, max_parallel_tools=3)
    await scripted.agent.prompt("hi")

    assert running == [0, 3]
    assert [result[0] for result in scripted.results()] == [f"c{n}" for n in range(10)]


async def test_calls_that_wait_for_a_slot_are_aborted() -> None:
    @tool
    async def stop() -> str:
        """Abort."""
        scripted.agent.abort()
        return "stopped"

    batch = calls(call("c1", "stop"), call("c2", "ok"), call("c3", "ok"))
    scripted = Scripted([batch], stop, ok, max_parallel_tools=1)
    await scripted.agent.prompt("hi")

    assert scripted.results() == [
        ("c1", False, "stopped"),
        ("c2", True, "Operation aborted"),
        ("c3", True, "Operation aborted"),
    ]


async def test_sequential_execution_of_the_whole_run() -> None:
    scripted = Scripted(
        [calls(call("c1", "ok"), call("c2", "ok")), "end"], ok, tool_execution="sequential"
    )
    await scripted.agent.prompt("hi")

    kinds = [kind for kind in scripted.types() if kind.startswith(("tool", "message_end"))]
    assert kinds[2:8] == [
        "tool_execution_start",
        "tool_execution_end",
        "message_end",
        "tool_execution_start",
        "tool_execution_end",
        "message_end",
    ]


@pytest.mark.parametrize("execution", ["sequential", "parallel"])
async def test_steering_skips_calls_that_have_not_begun(execution: str) -> None:
    @tool
    async def steer() -> str:
        """Have the user say something."""
        scripted.agent.steer("wait!")
        return "ok"

    scripted = Scripted(
        [calls(call("c1", "steer"), call("c2", "ok")), "end"],
        steer,
        ok,
        tool_execution=execution,
        max_parallel_tools=1,
        steering_policy="skip",
    )
    await scripted.agent.prompt("hi")

    assert scripted.results() == [
        ("c1", False, "ok"),
        ("c2", True, "Skipped due to queued user message."),
    ]
    assert scripted.texts()[-2:] == ["wait!", "end"]


async def test_steering_lets_calls_finish_by_default() -> None:
    @tool
    async def steer() -> str:
        """Have the user say something."""
        scripted.agent.steer("wait!")
        return "ok"

    batch = calls(call("c1", "steer"), call("c2", "ok"))
    scripted = Scripted([batch, "end"], steer, ok, max_parallel_tools=1)
    await scripted.agent.prompt("hi")

    assert [result[1] for result in scripted.results()] == [False, False]


async def test_permissions_are_needed_to_be_offered_and_to_run() -> None:
    @tool(permission="write")
    async def write() -> str:
        """Write."""
        return "written"

    script = one_call("write")
    refused = Scripted(script, write, ok)
    await refused.agent.prompt("hi")
    granted = Scripted(
        script, write, ok, tool_context=ToolContext(permissions=frozenset({"write"}))
    )
    await granted.agent.prompt("hi")

    assert refused.model.requests[0].tools == ("ok",)
    assert refused.results() == [("c1", True, "Tool write is not permitted here")]
    assert granted.model.requests[0].tools == ("write", "ok")
    assert granted.results() == [("c1", False, "written")]


async def test_the_callers_data_reaches_the_tool() -> None:
    seen: list[Any] = []

    @tool
    async def look(ctx: ToolContext) -> str:
        """Look at the context."""
        seen.append((ctx.data, ctx.idempotency_key, ctx.signal.is_set()))
        return "ok"

    data = {"user": "u1"}
    scripted = Scripted(one_call("look"), look, tool_context=ToolContext(data=data))
    await scripted.agent.prompt("hi")

    assert seen == [(data, None, False)]
    assert seen[0][0] is data


async def test_a_block_without_a_reason_and_one_that_ends_the_run() -> None:
    def block(_: BeforeToolCall, __: object) -> ToolCallBlock:
        return ToolCallBlock(terminate=True)

    scripted = Scripted(one_call("ok"), ok, before_tool_call=block)
    await scripted.agent.prompt("hi")

    assert scripted.results() == [("c1", True, "Tool execution was blocked")]
    assert len(scripted.model.requests) == 1


async def test_a_hook_before_a_call_that_raises_keeps_it_from_running() -> None:
    def broken(_: BeforeToolCall, __: object) -> None:
        raise ValueError("cannot judge")

    scripted = Scripted(one_call("ok"), ok, before_tool_call=broken)
    await scripted.agent.prompt("hi")

    assert scripted.results() == [("c1", True, "cannot judge")]
    assert scripted.texts()[-1] == "end"


async def cancelled(*_: object) -> Any:
    """Await what has been cancelled: a cancellation that nobody means for the run."""
    task = asyncio.create_task(asyncio.Event().wait())
    task.cancel()
    await task


async def panic(*_: object) -> Any:
    raise Panic("rust")


def leave(*_: object) -> Any:
    raise SystemExit(3)


@pytest.mark.parametrize("name", ["before_tool_call", "after_tool_call"])
@pytest.mark.parametrize(
    ("hook", "text"),
    [(cancelled, "{} was cancelled"), (panic, "Panic: rust"), (leave, "SystemExit: 3")],
)
async def test_whatever_a_hook_of_a_call_raises_is_the_calls_result(
    name: str, hook: Any, text: str
) -> None:
    options: dict[str, Any] = {name: hook}
    scripted = Scripted(one_call("ok"), ok, **options)
    async with asyncio.timeout(5):
        await scripted.agent.prompt("hi")

    assert scripted.results() == [("c1", True, text.format(name))]
    assert scripted.types()[-2:] == ["turn_end", "agent_end"]


async def test_a_hook_after_a_call_that_cancels_its_task_cancels_the_run() -> None:
    async def after(*_: object) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.Event().wait()

    scripted = Scripted(one_call("ok"), ok, after_tool_call=after)
    run = asyncio.create_task(scripted.agent.prompt("hi"))
    await asyncio.wait({run}, timeout=5)

    assert run.cancelled()
    assert not scripted.agent.state.is_streaming


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"block": True, "reason": "no"}, "dict, not a ToolCallBlock or None"),
        (False, "bool, not a ToolCallBlock or None"),
        (
            ToolCallBlock(ValueError("no")),  # type: ignore[arg-type]
            "a ToolCallBlock with ValueError for a reason",
        ),
    ],
)
async def test_a_call_does_not_run_after_an_answer_that_says_nothing(
    answer: Any, text: str
) -> None:
    ran: list[str] = []

    @tool
    async def write() -> str:
        """Write."""
        ran.append("write")
        return "written"

    scripted = Scripted(one_call("write"), write, before_tool_call=lambda *_: answer)
    await scripted.agent.prompt("hi")

    assert ran == []
    assert scripted.results() == [("c1", True, f"before_tool_call returned {text}")]
    assert scripted.texts()[-1] == "end"


async def test_a_result_is_an_error_after_an_answer_that_says_nothing() -> None:
    scripted = Scripted(one_call("ok"), ok, after_tool_call=lambda *_: {"content": "x"})
    await scripted.agent.prompt("hi")

    text = "after_tool_call returned dict, not an AgentToolResult, a ToolResultOverride or None"
    assert scripted.results() == [("c1", True, text)]
    assert scripted.texts()[-1] == "end"


async def test_a_hook_after_a_call_that_times_out_says_so() -> None:
    def after(*_: object) -> None:
        raise TimeoutError("the judge took too long")

    scripted = Scripted(one_call("ok"), ok, after_tool_call=after)
    await scripted.agent.prompt("hi")

    assert scripted.results() == [("c1", True, "the judge took too long")]


async def test_a_hook_before_a_call_that_hangs_ends_with_abort() -> None:
    async def slow(_: BeforeToolCall, __: object) -> None:
        scripted.agent.abort()
        await asyncio.Event().wait()

    scripted = Scripted(one_call("ok"), ok, before_tool_call=slow)
    await scripted.agent.prompt("hi")

    assert scripted.results() == [("c1", True, "Operation aborted")]


async def test_a_hook_sees_checked_arguments() -> None:
    seen: list[Any] = []

    @tool
    async def double(number: int) -> str:
        """Double."""
        return str(2 * number)

    def before(asked: BeforeToolCall, _: object) -> None:
        seen.append(asked.args.number)

    def after(asked: AfterToolCall, _: object) -> None:
        seen.append((text_of(asked.result), asked.is_error))

    scripted = Scripted(
        one_call("double", number="4"), double, before_tool_call=before, after_tool_call=after
    )
    await scripted.agent.prompt("hi")

    assert seen == [4, ("8", False)]


async def test_a_hook_after_a_call_that_raises_makes_it_an_error() -> None:
    def broken(_: AfterToolCall, __: object) -> None:
        raise ValueError("cannot judge")

    scripted = Scripted(one_call("ok"), ok, after_tool_call=broken)
    await scripted.agent.prompt("hi")

    assert scripted.results() == [("c1", True, "cannot judge")]


@pytest.mark.parametrize(
    "override",
    [
        AgentToolResult.error("instead"),
        ToolResultOverride([TextContent("instead")], is_error=True, terminate=True),
    ],
)
async def test_a_hook_after_a_call_can_change_the_result(override: Any) -> None:
    scripted = Scripted(one_call("ok"), ok, after_tool_call=lambda *_: override)
    await scripted.agent.prompt("hi")

    assert scripted.results() == [("c1", True, "instead")]


async def test_a_hook_after_a_call_is_asked_after_abort_but_not_for_ever() -> None:
    asked: list[str] = []

    async def after(call_: AfterToolCall, _: object) -> ToolResultOverride | None:
        asked.append(call_.tool_call.id)
        if call_.tool_call.id == "c2":
            await asyncio.Event().wait()
        return ToolResultOverride([TextContent("judged")])

    @tool
    async def stop() -> str:
        """Abort and end well."""
        scripted.agent.abort()
        return "secret"

    batch = calls(call("c1", "stop"), call("c2", "stop"))
    scripted = Scripted([batch], stop, after_tool_call=after, abort_grace=0.01)
    await scripted.agent.prompt("hi")

    assert sorted(asked) == ["c1", "c2"]
    assert scripted.results() == [("c1", False, "judged"), ("c2", True, "Operation aborted")]


async def test_a_hook_after_a_call_that_hangs_ends_with_abort() -> None:
    async def after(_: AfterToolCall, __: object) -> None:
        scripted.agent.abort()
        await asyncio.Event().wait()

    scripted = Scripted(one_call("ok"), ok, after_tool_call=after)
    await scripted.agent.prompt("hi")

    assert scripted.results() == [("c1", True, "Operation aborted")]


async def test_a_timed_out_call_is_judged_too() -> None:
    scripted = Scripted(
        one_call("hang"),
        hang,
        tool_timeout=0.01,
        after_tool_call=lambda *_: ToolResultOverride([TextContent("judged")]),
    )
    await scripted.agent.prompt("hi")

    assert scripted.results() == [("c1", True, "judged")]


async def test_updates_that_are_none_are_refused() -> None:
    async def execute(_: str, __: Any, ___: ToolContext, update: ToolUpdate) -> AgentToolResult:
        update(AgentToolResult.text("half"))
        update("more")  # type: ignore[arg-type]
        return AgentToolResult.text("ok")

    bad = AgentTool("bad", "bad", "bad", {"type": "object"}, execute)
    scripted = Scripted(one_call("bad"), bad)
    await scripted.agent.prompt("hi")

    assert scripted.results() == [("c1", True, "an update is an AgentToolResult")]
    updates = [event for event in scripted.events if isinstance(event, ToolExecutionUpdate)]
    assert [text_of(update.partial_result) for update in updates] == ["half"]


async def test_updates_are_told_with_details_as_they_are_then_and_as_json() -> None:
    async def execute(_: str, __: Any, ___: ToolContext, update: ToolUpdate) -> AgentToolResult:
        done: set[str] = set()
        half = AgentToolResult.text("half", details={1: done})
        update(half)
        done.add("mill")
        update(half)
        return AgentToolResult.text("ok")

    slow = AgentTool("slow", "slow", "slow", {"type": "object"}, execute)
    scripted = Scripted(one_call("slow"), slow)
    await scripted.agent.prompt("hi")

    updates = [event for event in scripted.events if isinstance(event, ToolExecutionUpdate)]
    told = [update.partial_result.details for update in updates]
    assert told == [{"1": []}, {"1": ["mill"]}]


async def test_an_update_stays_what_it_was_when_its_text_grows() -> None:
    async def execute(_: str, __: Any, ___: ToolContext, update: ToolUpdate) -> AgentToolResult:
        block = TextContent("")
        for digit in "012":
            block.text += digit
            update(AgentToolResult([block]))
        return AgentToolResult.text("ok")

    slow = AgentTool("slow", "slow", "slow", {"type": "object"}, execute)
    scripted = Scripted(one_call("slow"), slow)
    await scripted.agent.prompt("hi")

    updates = [event for event in scripted.events if isinstance(event, ToolExecutionUpdate)]
    assert [text_of(update.partial_result) for update in updates] == ["0", "01", "012"]


async def test_a_batch_ends_the_run_only_if_all_its_calls_say_so() -> None:
    last = raw_tool("last", AgentToolResult([TextContent("bye")], terminate=True))
    scripted = Scripted([calls(call("c1", "last"), call("c2", "ok")), "end"], last, ok)
    await scripted.agent.prompt("hi")

    assert scripted.texts()[-1] == "end"


@pytest.mark.parametrize("ids", [("", ""), ("c1", "c1")])
async def test_calls_without_ids_of_their_own_get_some(ids: tuple[str, str]) -> None:
    scripted = Scripted([calls(*(ToolCall(each, "ok") for each in ids)), "end"], ok)
    await scripted.agent.prompt("hi")

    first, second = scripted.results()
    assert first[0]
    assert second[0]
    assert first[0] != second[0]
    assert {end.tool_call_id for end in scripted.ends()} == {first[0], second[0]}


async def test_calls_of_an_answer_that_is_told_to_be_cut_do_not_run() -> None:
    cut = replace(calls(call("c1", "ok")), stop_reason="stop")  # as that of a message that grows
    scripted = Scripted([[StreamStart(cut), StreamDone("length", cut)], "end"], ok)

    await scripted.agent.prompt("hi")

    ((_, is_error, text),) = scripted.results()
    assert is_error
    assert "hit the output token limit" in text
    assert scripted.agent.state.messages[1].to_dict()["stop_reason"] == "length"


async def test_calls_of_an_answer_that_says_it_was_aborted_do_not_run() -> None:
    aborted = calls(call("c1", "ok"))
    aborted.stop_reason = "aborted"
    scripted = Scripted([aborted, "never"], ok)
    await scripted.agent.prompt("hi")

    assert scripted.results() == [("c1", True, "Operation aborted")]
    assert len(scripted.model.requests) == 1


async def test_a_loop_of_calls_ends_at_the_cap() -> None:
    scripted = Scripted([], ok, max_turns=3)
    scripted.model.script = [calls(call(f"c{n}", "ok")) for n in range(5)]
    scripted.agent.follow_up("later")
    await scripted.agent.prompt("hi")

    assert len(scripted.model.requests) == 3
    assert len(scripted.results()) == 3
    assert scripted.agent.state.error == "Turn limit of 3 reached"
    assert scripted.types()[-2:] == ["turn_end", "agent_end"]
    assert scripted.agent.has_queued_messages()
    assert getattr(scripted.events[-1], "error", None) == "Turn limit of 3 reached"


async def test_an_answer_at_the_cap_is_no_error() -> None:
    scripted = Scripted(["done"], max_turns=1)
    await scripted.agent.prompt("hi")

    assert scripted.agent.state.error is None
