"""The registry of tools, and running tools without a model."""

from __future__ import annotations

import asyncio

import pytest

from agent_core import (
    AgentLoopConfig,
    ChainLink,
    DuplicateToolError,
    MemoryJournal,
    PermissionDeniedError,
    ToolCall,
    ToolContext,
    ToolExecutor,
    ToolRegistry,
    ToolResultMessage,
    UnknownToolError,
    tool,
)
from tests.agent_core.agents import hang, ok, text_of


@tool(permission="write", effect="state")
async def add(a: int, b: int) -> str:
    """Add."""
    return str(a + b)


WRITER = ToolContext(permissions=frozenset({"write"}))


def test_tools_are_found_by_name_and_permission() -> None:
    registry = ToolRegistry([ok])
    assert registry.register(add) is add

    assert len(registry) == 2
    assert registry.get("add") is add
    assert registry.get("add", WRITER) is add
    assert registry.for_context(ToolContext()) == [ok]
    assert registry.for_context(WRITER) == [ok, add]
    with pytest.raises(DuplicateToolError):
        registry.register(ok)
    with pytest.raises(UnknownToolError, match="Tool nope not found"):
        registry.get("nope")
    with pytest.raises(PermissionDeniedError, match="not permitted"):
        registry.get("add", ToolContext())


def outcome(results: list[ToolResultMessage]) -> list[tuple[bool, str]]:
    return [(result.is_error, text_of(result)) for result in results]


async def test_tools_run_without_a_model() -> None:
    executor = ToolExecutor(ToolRegistry([ok, add]))
    calls = [
        ToolCall("c1", "add", {"a": "1", "b": 2}),
        ToolCall("c2", "nope"),
        ToolCall("c3", "add", {"a": "x"}),
    ]

    results = await executor.execute_all(calls, WRITER)

    assert outcome(results)[:2] == [(False, "3"), (True, "Tool nope not found")]
    assert outcome(results)[2][1].startswith('Validation failed for tool "add":')
    refused = await executor.execute(calls[0], ToolContext())
    assert outcome([refused]) == [(True, "Tool add not found")]


async def test_a_chain_feeds_results_on_and_ends_at_a_failure() -> None:
    executor = ToolExecutor(ToolRegistry([add, ok]))
    links = [
        ChainLink("add", {"a": 1, "b": 2}),
        ChainLink("add", lambda results: {"a": text_of(results[-1]), "b": 10}),
        ChainLink("add", {"a": "x", "b": 1}),
        ChainLink("ok", {}),
    ]

    results = await executor.chain(links, WRITER)

    assert outcome(results)[:2] == [(False, "3"), (False, "13")]
    assert len(results) == 3
    assert results[2].is_error


async def test_an_executors_steps_are_counted_on() -> None:
    journal = MemoryJournal()
    config = AgentLoopConfig(None, journal=journal, first_step=5)
    links = [ChainLink("add", {"a": 1, "b": 2}), ChainLink("add", {"a": 3, "b": 4})]
    for _ in range(2):  # run, and replayed
        executor = ToolExecutor(ToolRegistry([add]), config)
        results = await executor.chain(links, WRITER)
        results.append(await executor.execute(ToolCall("c1", "add", {"a": 5, "b": 6}), WRITER))

        assert outcome(results) == [(False, "3"), (False, "7"), (False, "11")]
        assert sorted(journal.outputs) == [5, 6, 7]


async def test_an_executor_has_the_caps_of_a_run() -> None:
    config = AgentLoopConfig(None, tool_timeout=0.01, abort_grace=0.01)
    executor = ToolExecutor(ToolRegistry([hang]), config)

    timed_out = await executor.execute(ToolCall("c1", "hang"), ToolContext())
    cancel = asyncio.Event()
    cancel.set()
    aborted = await executor.execute(ToolCall("c1", "hang"), ToolContext(), cancel)

    assert outcome([timed_out, aborted]) == [
        (True, 'Tool "hang" timed out after 0.01 seconds'),
        (True, "Operation aborted"),
    ]
