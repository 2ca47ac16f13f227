"""Tools of MCP servers as tools of an agent; needs the optional package `mcp`.

async with mcp_tools(McpStdio("my-server")) as tools:
    agent.set_tools(tools)
"""

from __future__ import annotations

import importlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from agent_core.content import ImageContent, TextContent, UserContent
from agent_core.errors import AgentCoreError
from agent_core.journal import Effect
from agent_core.results import AgentToolResult
from agent_core.tools import AgentTool, ToolContext, ToolUpdate

# A server that gives more pages than this does not end.
_MAX_PAGES = 100

# Providers of models take no other names of tools; servers may use dots, and longer ones.
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")
_LONGEST_NAME = 64


class McpMissingError(AgentCoreError, ImportError):
    """The optional package `mcp` is not installed."""


@dataclass(frozen=True, slots=True)
class McpStdio:
    """A server that is started as a process; it sees no more of our environment than `env`."""

    command: str
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class McpHttp:
    """A server that is reached over streamable HTTP."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)


@asynccontextmanager
async def mcp_tools(
    server: McpStdio | McpHttp,
    *,
    prefix: str = "",
    permission: str | None = None,
    timeout: float | None = 60.0,
    trust_hints: bool = False,
) -> AsyncIterator[list[AgentTool]]:
    """Connect to a server and give its tools for as long as the connection stands.

    `prefix` goes before each name, in which `_` stands for what models' providers do not take;
    `permission` goes onto each tool, `timeout` in seconds bounds each call. What a server says of
    its tools' effects is believed only with `trust_hints`; otherwise they count as external.
    """
    mcp = _package("mcp")
    async with AsyncExitStack() as stack:
        target = await _target(server, mcp, stack)
        client = await stack.enter_async_context(mcp.Client(target))
        yield [
            AgentTool(
                name=_NOT_IN_NAMES.sub("_", f"{prefix}{listed.name}")[:_LONGEST_NAME],
                label=listed.title or listed.name,
                description=listed.description or listed.name,
                parameters=listed.input_schema,
                execute=_execute_of(client, listed.name),
                permission=permission,
                effect=_effect(listed.annotations) if trust_hints else "external",
                timeout=timeout,
            )
            for listed in await _listed(client)
        ]


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise McpMissingError(
            "tools of MCP servers need the package mcp, which is not installed"
        ) from error


async def _target(server: McpStdio | McpHttp, mcp: Any, stack: AsyncExitStack) -> Any:
    if isinstance(server, McpStdio):
        return mcp.StdioServerParameters(
            command=server.command, args=list(server.args), env=dict(server.env)
        )
    if not server.headers:
        return server.url
    http = _package("httpx2").AsyncClient(headers=dict(server.headers))
    await stack.enter_async_context(http)
    transport = _package("mcp.client.streamable_http").streamable_http_client
    return transport(server.url, http_client=http)


async def _listed(client: Any) -> list[Any]:
    tools: list[Any] = []
    cursor = None
    for _ in range(_MAX_PAGES):
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if cursor is None:
            break
    return tools


def _effect(hints: Any) -> Effect:
    if hints is not None and hints.read_only_hint:
        return "pure"
    return "external"


def _execute_of(client: Any, name: str) -> Any:
    async def execute(
        _: str, params: dict[str, Any], __: ToolContext, ___: ToolUpdate
    ) -> AgentToolResult:
        result = await client.call_tool(name, params)
        content = [_content(block) for block in result.content]
        return AgentToolResult(
            content or [TextContent("(no output)")],
            details=result.structured_content,
            is_error=bool(result.is_error),
        )

    return execute


def _content(block: Any) -> UserContent:
    if block.type == "text":
        return TextContent(block.text)
    if block.type == "image":
        return ImageContent(block.data, mime_type=block.mime_type)
    if block.type == "resource" and hasattr(block.resource, "text"):
        return TextContent(block.resource.text)
    if block.type == "resource_link":
        return TextContent(f"{block.name}: {block.uri}")
    return TextContent(f"({block.type} content, which is not shown)")
