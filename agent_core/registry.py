"""The tools an application has, and which of them a context may use."""

from __future__ import annotations

from collections.abc import Iterable

from agent_core.errors import DuplicateToolError, PermissionDeniedError, UnknownToolError
from agent_core.tools import AgentTool, ToolContext


class ToolRegistry:
    """Tools by their names."""

    def __init__(self, tools: Iterable[AgentTool] = ()) -> None:
        self._tools: dict[str, AgentTool] = {}
        for tool in tools:
            self.register(tool)

    def __len__(self) -> int:
        return len(self._tools)

    def register(self, tool: AgentTool) -> AgentTool:
        """Add a tool and return it; raises DuplicateToolError."""
        if tool.name in self._tools:
            raise DuplicateToolError(f"two tools are named {tool.name!r}")
        self._tools[tool.name] = tool
        return tool

    def get(self, name: str, context: ToolContext | None = None) -> AgentTool:
        """Return a tool; raises UnknownToolError, with a context also PermissionDeniedError."""
        tool = self._tools.get(name)
        if tool is None:
            raise UnknownToolError(f"Tool {name} not found")
        if context is not None and not context.allows(tool):
            raise PermissionDeniedError(f"Tool {name} is not permitted here")
        return tool

    def for_context(self, context: ToolContext) -> list[AgentTool]:
        """Return the tools that the context may use, in the order of their registration."""
        return [tool for tool in self._tools.values() if context.allows(tool)]
