"""Tools of a real MCP server, over both of its transports."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvicorn

from agent_core import (
    AgentTool,
    ImageContent,
    McpHttp,
    McpMissingError,
    McpStdio,
    ToolCall,
    ToolContext,
    ToolExecutor,
    ToolRegistry,
    ToolResultMessage,
    mcp_tools,
)
from agent_core.mcp_tools import _package
from tests.agent_core.agents import text_of
from tests.agent_core.mcp_server import build
from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[2]
STDIO = McpStdio(sys.executable, ["-m", "tests.agent_core.mcp_server"], {"PYTHONPATH": str(ROOT)})


async def run(tools: list[AgentTool], name: str, **arguments: object) -> ToolResultMessage:
    executor = ToolExecutor(ToolRegistry(tools))
    return await executor.execute(ToolCall("c1", name, arguments), ToolContext())


async def test_tools_over_stdio() -> None:
    async with mcp_tools(STDIO, timeout=3 * PATIENCE) as tools:
        by_name = {tool.name: tool for tool in tools}
        sums = f"sums_add_{'x' * 55}"
        assert list(by_name) == ["add", "fail", "hang", "silent", "picture", sums, "look"]
        assert by_name["add"].description == "Add two numbers."
        assert by_name["add"].schema["required"] == ["a", "b"]
        assert {tool.effect for tool in tools} == {"external"}

        added = await run(tools, "add", a="1", b=2)
        failed = await run(tools, "fail")
        wrong = await run(tools, "add", a="one", b=2)
        silent = await run(tools, "silent")
        picture = await run(tools, "picture")
        looked = await run(tools, "look")
        by_name["hang"].timeout = 0.2
        hung = await run(tools, "hang")
        again = await run(tools, sums, a=2, b=2)

    assert (text_of(added), added.details) == ("3", {"result": 3})
    assert failed.is_error
    assert text_of(wrong).startswith('Validation failed for tool "add":')
    assert not silent.is_error
    assert isinstance(picture.content[0], ImageContent)
    assert picture.content[0].mime_type == "image/png"
    assert [getattr(block, "text", "") for block in looked.content] == [
        "a memo",
        "more: memo://2",
        "(audio content, which is not shown)",
    ]
    assert "timed out" in text_of(hung)
    assert text_of(again) == "4"


@asynccontextmanager
async def http_server() -> AsyncIterator[str]:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(build().streamable_http_app(), log_level="critical", ws="none")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/mcp"
    finally:
        server.should_exit = True
        await serving


@pytest.mark.parametrize("headers", [{}, {"X-Client": "test"}])
async def test_tools_over_http(headers: dict[str, str]) -> None:
    async with (
        http_server() as url,
        mcp_tools(
            McpHttp(url, headers), prefix="far_", permission="net", trust_hints=True
        ) as tools,
    ):
        assert [tool.name for tool in tools][:2] == ["far_add", "far_fail"]
        assert {tool.permission for tool in tools} == {"net"}
        assert {tool.name: tool.effect for tool in tools}["far_look"] == "pure"
        allowed = ToolContext(permissions=frozenset({"net"}))
        executor = ToolExecutor(ToolRegistry(tools))
        result = await executor.execute(ToolCall("c1", "far_add", {"a": 1, "b": 2}), allowed)

    assert text_of(result) == "3"


def test_without_the_package_it_is_said_what_is_missing() -> None:
    with pytest.raises(McpMissingError, match="need the package mcp"):
        _package("mcp_that_is_not_there")
