"""A real MCP server for the tests: run as a program it speaks over stdin and stdout."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import Any


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def fail() -> str:
    """Fail."""
    raise ValueError("out of order")


async def hang() -> str:
    """Wait for ever."""
    await asyncio.Event().wait()
    return "never"


def silent() -> None:
    """Say nothing."""


def build() -> Any:
    package = import_module("mcp.server.mcpserver")
    server = package.MCPServer("test", log_level="CRITICAL")

    def picture() -> Any:
        return package.Image(data=b"\x89PNG", format="png")

    picture.__annotations__["return"] = package.Image
    for function in (add, fail, hang, silent, picture):
        server.tool()(function)
    server.tool(name=f"sums/add.{'x' * 60}")(add)
    types = import_module("mcp.types")

    def look() -> Any:
        """Look something up."""
        return [
            types.EmbeddedResource(
                type="resource",
                resource=types.TextResourceContents(uri="memo://1", text="a memo"),
            ),
            types.ResourceLink(type="resource_link", name="more", uri="memo://2"),
            types.AudioContent(type="audio", data="AA==", mime_type="audio/wav"),
        ]

    hints = types.ToolAnnotations(read_only_hint=True)
    server.tool(annotations=hints, structured_output=False)(look)
    return server


if __name__ == "__main__":
    build().run()
