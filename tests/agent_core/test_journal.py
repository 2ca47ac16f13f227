"""Runs that are recorded step by step and taken up again."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from agent_core import (
    Agent,
    AgentContext,
    AgentEvent,
    AgentLoopConfig,
    AgentTool,
    AgentToolResult,
    JournalError,
    LlmContext,
    MemoryJournal,
    MessageEnd,
    Model,
    StepMismatchError,
    StepRequest,
    StepStart,
    StreamOptions,
    TextContent,
    ToolCall,
    ToolContext,
    ToolExecutionEnd,
    ToolResultMessage,
    UserMessage,
    agent_loop,
    complete,
    stream_completion,
    tool,
)
from agent_core.content import plain_text
from agent_core.journal import model_step_hash, tool_step_hash
from agent_core.testing import SCRIPTED_MODEL, Reply, ScriptedModel, answer, call, calls, failure
from shared.encoding import dumps, loads
from tests.agent_core.agents import Scripted, text_of


def agent_with(
    script: list[Reply], journal: Any, *tools: AgentTool, **options: Any
) -> tuple[Agent, ScriptedModel, list[AgentEvent]]:
    scripted = Scripted(script, *tools, journal=journal, **options)
    return scripted.agent, scripted.model, scripted.events


class Counter:
    """A tool that counts its runs."""

    def __init__(self, effect: Any = "external") -> None:
        self.runs = 0
        self.keys: list[str | None] = []

        @tool(effect=effect)
        async def add(amount: int, ctx: ToolContext) -> str:
            """Add."""
            self.runs += 1
            self.keys.append(ctx.idempotency_key)
            return f"{self.runs}:{amount}"

        self.tool = add


SCRIPT: list[Reply] = [
    calls(call("c1", "add", amount=1), call("c2", "nope"), call("c3", "add", amount=3)),
    answer("done"),
]


async def test_steps_are_numbered_by_the_order_of_the_calls() -> None:
    journal = MemoryJournal("task")
    counter = Counter()
    agent, _, _ = agent_with(SCRIPT, journal, counter.tool, first_step=10)

    await agent.prompt("hi")

    kinds = {no: (step.kind, step.name) for no, step in journal.steps.items()}
    assert kinds == {
        10: ("model", "test/scripted"),
        11: ("tool", "add"),
        13: ("tool", "add"),
        14: ("model", "test/scripted"),
    }
    assert counter.keys == ["task:11", "task:13"]


async def test_the_steps_of_further_runs_follow_on() -> None:
    journal = MemoryJournal()
    counter = Counter()
    script: list[Reply] = [*SCRIPT, answer("again"), failure("broken"), answer("at last")]
    agent, _, _ = agent_with(script, journal, counter.tool)
    await agent.prompt(UserMessage("hi", timestamp=1))
    await agent.prompt(UserMessage("and?", timestamp=2))
    await agent.prompt(UserMessage("so?", timestamp=3))
    await agent.prompt(UserMessage("well?", timestamp=4))
    again, model, _ = agent_with([failure("broken")], journal, counter.tool)
    for number, word in enumerate(["hi", "and?", "so?", "well?"], 1):
        await again.prompt(UserMessage(word, timestamp=number))

    assert sorted(journal.steps) == [0, 1, 3, 4, 5, 6, 7]
    assert [text_of(one) for one in again.state.messages if one.role == "assistant"] == [
        "",
        "done",
        "again",
        "",
        "at last",
    ]
    assert len(model.requests) == 1
    assert counter.runs == 2


async def test_a_recorded_run_is_replayed_without_calls() -> None:
    journal = MemoryJournal()
    counter = Counter()
    agent, _, first = agent_with(SCRIPT, journal, counter.tool)
    await agent.prompt(UserMessage("hi", timestamp=1))
    again, model, second = agent_with([], journal, counter.tool)

    await again.prompt(UserMessage("hi", timestamp=2))

    assert model.requests == []
    assert counter.runs == 2
    assert [message.content for message in again.state.messages] == [
        message.content for message in agent.state.messages
    ]
    assert [event.type for event in second] == [
        event.type for event in first if event.type != "message_update"
    ]


@pytest.mark.parametrize("by_schema", [True, False])
async def test_a_tool_that_changes_its_params_changes_no_message(by_schema: bool) -> None:
    @tool
    async def find(query: dict[str, Any]) -> str:
        """Find what the filters let pass."""
        query["filters"].clear()
        return "found"

    if by_schema:
        find = replace(find, parameters={"type": "object"}, execute=_clear)
    arguments = {"query": {"filters": ["red"]}}
    script: list[Reply] = [calls(call("c1", "find", **arguments)), "done"]
    journal = MemoryJournal()
    agent, model, _ = agent_with(script, journal, find)
    await agent.prompt("hi")
    assert model.requests[1].messages[1].content == [ToolCall("c1", "find", arguments)]

    del journal.outputs[2]  # as where a crash came before the second answer
    agent, _, _ = agent_with(["done"], journal, find)
    await agent.prompt("hi")
    assert plain_text(agent.state.messages[-1].content) == "done"


async def _clear(_: str, params: dict[str, Any], *__: object) -> AgentToolResult:
    params["query"]["filters"].clear()
    return AgentToolResult.text("found")


async def test_a_run_goes_on_where_the_record_ends() -> None:
    journal = MemoryJournal()
    counter = Counter()
    agent, _, _ = agent_with(SCRIPT, journal, counter.tool)
    await agent.prompt("hi")
    del journal.outputs[4], journal.steps[4]
    again, model, _ = agent_with([answer("other")], journal, counter.tool)

    await again.prompt("hi")

    assert len(model.requests) == 1
    assert plain_text(again.state.messages[-1].content) == "other"


@pytest.mark.parametrize("recorded", [True, False])
async def test_a_message_skips_only_calls_that_the_record_does_not_have(recorded: bool) -> None:
    journal = MemoryJournal()
    counter = Counter()
    script: list[Reply] = [calls(call("c1", "add", amount=5)), "end"]
    if recorded:
        first, _, _ = agent_with(script, journal, counter.tool)
        await first.prompt("hi")
        # The worker was lost before it asked for the next answer.
        journal.steps.pop(2)
        journal.outputs.pop(2)
    again = Scripted(
        ["end"] if recorded else script, counter.tool, journal=journal, steering_policy="skip"
    )
    steer_once(again.agent)

    await again.agent.prompt("hi")

    text = "1:5" if recorded else "Skipped due to queued user message."
    assert again.results() == [("c1", not recorded, text)]
    assert counter.runs == (1 if recorded else 0)


async def test_a_skipped_call_is_skipped_the_next_time_too() -> None:
    journal = MemoryJournal()
    counter = Counter()
    script: list[Reply] = [calls(call("c1", "add", amount=5)), "end"]
    first = Scripted(script, counter.tool, journal=journal, steering_policy="skip")
    steer_once(first.agent)
    await first.agent.prompt("hi")
    again = Scripted([], counter.tool, journal=journal, steering_policy="skip")
    # The message that was taken while the call was skipped is told again by who keeps it.
    again.agent.subscribe(
        lambda event: again.agent.steer("wait!") if event.type == "tool_execution_end" else None
    )

    await again.agent.prompt("hi")

    assert again.results() == first.results()
    assert again.texts() == first.texts()
    assert (again.model.requests, counter.runs) == ([], 0)


def steer_once(agent: Agent) -> None:
    """Say something as soon as the model has answered."""

    def on_event(event: AgentEvent) -> None:
        if isinstance(event, MessageEnd) and event.message.role == "assistant":
            agent.steer("wait!")
            unsubscribe()

    unsubscribe = agent.subscribe(on_event)


async def test_a_call_is_not_run_if_nobody_can_say_whether_to_skip_it() -> None:
    def broken() -> bool:
        raise ConnectionError("the queue is away")

    counter = Counter()
    journal = MemoryJournal()
    config = AgentLoopConfig(
        SCRIPTED_MODEL,
        journal=journal,
        steering_policy="skip",
        has_steering_messages=broken,
    )
    model = ScriptedModel([calls(call("c1", "add", amount=5)), "end"])
    context = AgentContext(tools=[counter.tool])
    messages = await agent_loop([UserMessage("hi")], context, config, None, model).result()

    (result,) = (message for message in messages if isinstance(message, ToolResultMessage))
    assert (result.is_error, plain_text(result.content)) == (True, "the queue is away")
    assert plain_text(messages[-1].content) == "end"
    assert counter.runs == 0


@pytest.mark.parametrize(("effect", "runs"), [("external", 1), ("state", 2), ("pure", 2)])
async def test_a_call_that_was_begun_is_repeated_only_if_it_may(effect: Any, runs: int) -> None:
    journal = MemoryJournal()
    counter = Counter(effect)
    agent, _, _ = agent_with([calls(call("c1", "add", amount=1)), "end"], journal, counter.tool)
    await agent.prompt("hi")
    for no in (1, 2):
        journal.outputs.pop(no)
    journal.steps.pop(2)
    again, model, events = agent_with(["end"], journal, counter.tool)

    await again.prompt("hi")

    assert counter.runs == runs
    end = next(event for event in events if isinstance(event, ToolExecutionEnd))
    assert end.is_error == (effect == "external")
    if end.is_error:
        assert "unknown" in plain_text(end.result.content)
    # The request that follows is another one then, and is made.
    assert len(model.requests) == 1


async def test_another_input_fails_loudly() -> None:
    journal = MemoryJournal()
    agent, _, _ = agent_with(["one"], journal)
    await agent.prompt("hi")
    again, model, events = agent_with(["two"], journal)

    with pytest.raises(StepMismatchError, match="step 0"):
        await again.prompt("something else")

    assert model.requests == []
    assert [event.type for event in events][-1] == "message_end"
    assert not again.state.is_streaming


class Lost(MemoryJournal):
    """A journal whose lease is lost when step `no` is finished."""

    def __init__(self, no: int, error: Exception) -> None:
        super().__init__()
        self.no = no
        self.error = error

    async def finish(self, step: StepRequest, output: dict[str, Any]) -> None:
        if step.no == self.no:
            raise self.error
        await super().finish(step, output)


@pytest.mark.parametrize("error", [JournalError("lease lost"), ConnectionError("gone")])
async def test_a_lost_lease_ends_the_run_after_its_tools_are_cancelled(error: Exception) -> None:
    cancelled: list[str] = []

    @tool
    async def quick() -> str:
        """End at once."""
        return "ok"

    @tool
    async def hang() -> str:
        """Wait for ever."""
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append("hang")
        return "never"

    script: list[Reply] = [calls(call("c1", "quick"), call("c2", "hang"))]
    agent, model, events = agent_with(script, Lost(1, error), quick, hang)

    with pytest.raises(type(error), match=str(error)):
        await agent.prompt("hi")

    assert cancelled == ["hang"]
    assert not any(isinstance(event, ToolExecutionEnd) for event in events)
    assert len(model.requests) == 1
    assert not agent.state.is_streaming
    assert agent.state.pending_tool_calls == set()


async def test_a_journal_that_refuses_the_model_step_ends_the_run() -> None:
    agent, _, events = agent_with(["one"], Lost(0, JournalError("lease lost")))

    with pytest.raises(JournalError, match="lease lost"):
        await agent.prompt("hi")

    ended = [event.message for event in events if isinstance(event, MessageEnd)]
    assert [message.role for message in ended] == ["user"]


async def test_a_failed_answer_is_not_recorded() -> None:
    journal = MemoryJournal()
    agent, _, _ = agent_with([failure("E1")], journal)
    await agent.prompt("hi")
    again, _, _ = agent_with(["fine"], journal)

    await again.prompt("hi")

    assert plain_text(again.state.messages[-1].content) == "fine"


async def test_what_an_abort_cut_is_not_recorded() -> None:
    journal = MemoryJournal()

    @tool
    async def stop() -> str:
        """Abort, and end well."""
        agent.abort()
        return "stopped"

    @tool
    async def hang() -> str:
        """Wait for ever."""
        await asyncio.Event().wait()
        return "never"

    script: list[Reply] = [calls(call("c1", "stop"), call("c2", "hang"))]
    agent, _, _ = agent_with(script, journal, stop, hang, abort_grace=0.01)

    await agent.prompt("hi")

    assert sorted(journal.outputs) == [0, 1]
    results = [m for m in agent.state.messages if isinstance(m, ToolResultMessage)]
    assert [(r.tool_call_id, plain_text(r.content)) for r in results] == [
        ("c1", "stopped"),
        ("c2", "Operation aborted"),
    ]


async def test_a_single_completion_is_journalled_too() -> None:
    journal = MemoryJournal()
    context = LlmContext("judge", [UserMessage("is it so?", timestamp=1)])
    model = ScriptedModel(["yes"])

    first = await complete(SCRIPTED_MODEL, context, stream_fn=model, journal=journal, step_no=3)
    context.messages[0].timestamp = 2
    second = await complete(SCRIPTED_MODEL, context, stream_fn=model, journal=journal, step_no=3)

    assert first.text == second.text == "yes"
    assert len(model.requests) == 1
    events = [
        event
        async for event in stream_completion(
            SCRIPTED_MODEL, context, stream_fn=model, journal=journal, step_no=3
        )
    ]
    assert [event.type for event in events] == ["done"]


def test_the_hash_covers_what_decides_the_answer() -> None:
    context = LlmContext("sp", [UserMessage("hi", timestamp=1)], [Counter().tool])
    options = StreamOptions(api_key="k1", session_id="s1")
    same = LlmContext("sp", [UserMessage("hi", timestamp=2)], [Counter().tool])

    digest = model_step_hash(SCRIPTED_MODEL, context, options)

    assert digest == model_step_hash(SCRIPTED_MODEL, same, StreamOptions(api_key="k2"))
    others: list[tuple[Model, LlmContext, StreamOptions]] = [
        (replace(SCRIPTED_MODEL, id="other"), context, options),
        (SCRIPTED_MODEL, replace(context, system_prompt="other"), options),
        (SCRIPTED_MODEL, replace(context, messages=[]), options),
        (SCRIPTED_MODEL, replace(context, tools=[]), options),
        (SCRIPTED_MODEL, context, replace(options, temperature=0.5)),
        (SCRIPTED_MODEL, context, replace(options, reasoning="high")),
    ]
    assert len({digest, *(model_step_hash(*other) for other in others)}) == 7


@pytest.mark.parametrize(
    ("said", "stored"),
    [
        ("a\x00b", "a\ufffdb"),
        ("\\\x00", "\\\ufffd"),
        ("\ud83d\ude00", "\U0001f600"),
        ("\ud83d!", "\ufffd!"),
    ],
)
def test_what_a_store_has_no_form_for_has_the_hash_of_what_it_keeps(said: str, stored: str) -> None:
    def hashes(text: str) -> list[str]:
        message = answer(text)
        message.content.append(call("c1", "add", amount=text))
        context = LlmContext("", [message, ToolResultMessage("c1", "add", [TextContent(text)])])
        step = model_step_hash(SCRIPTED_MODEL, context, StreamOptions())
        return [step, tool_step_hash(call("c1", "add", amount=text))]

    assert loads(dumps(said)) == stored
    assert hashes(said) == hashes(stored)
    assert hashes(said) != hashes("other")
    assert hashes(r"\u0000") != hashes("\ufffd")


async def test_an_unknown_model_step_is_run() -> None:
    class Unsure(MemoryJournal):
        async def begin(self, step: StepRequest) -> StepStart:
            return StepStart("unknown")

    agent, model, _ = agent_with(["one"], Unsure())

    await agent.prompt("hi")

    assert len(model.requests) == 1


async def test_details_that_are_no_json_are_recorded_as_such() -> None:
    journal = MemoryJournal()

    @tool
    async def odd() -> AgentToolResult:
        """Give details that are no JSON."""
        details = {"nan": float("nan"), "set": {1}, "o": object, "large": 2**64}
        return AgentToolResult.text("ok", details=details)

    agent, _, _ = agent_with([calls(call("c1", "odd")), "end"], journal, odd)

    await agent.prompt("hi")

    details = journal.outputs[1]["details"]
    assert (details["nan"], details["set"], details["large"]) == (None, [1], str(2**64))
