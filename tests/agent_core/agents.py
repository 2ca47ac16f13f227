"""Agents of scripted models, for tests."""

from __future__ import annotations

import asyncio
from typing import Any

from agent_core import (
    Agent,
    AgentEvent,
    AgentOptions,
    AgentTool,
    AgentToolResult,
    Message,
    StreamFn,
    ToolExecutionEnd,
    ToolResultMessage,
    tool,
)
from agent_core.content import plain_text
from agent_core.testing import SCRIPTED_MODEL, Reply, ScriptedModel


class Scripted:
    """An agent, the model it talks to and the events it gave."""

    def __init__(
        self,
        script: list[Reply],
        *tools: AgentTool,
        messages: list[Message] | None = None,
        stream_fn: StreamFn | None = None,
        **options: Any,
    ) -> None:
        self.model = ScriptedModel(script)
        self.agent = Agent(
            AgentOptions(
                initial_state={
                    "model": SCRIPTED_MODEL,
                    "tools": tools,
                    "messages": messages or [],
                },
                stream_fn=stream_fn or self.model,
                **options,
            )
        )
        self.events: list[AgentEvent] = []
        self.agent.subscribe(self.events.append)

    def types(self) -> list[str]:
        return [event.type for event in self.events]

    def texts(self) -> list[str]:
        return [text_of(message) for message in self.agent.state.messages]

    def results(self) -> list[tuple[str, bool, str]]:
        """Return id, is_error and text of each tool result in the transcript."""
        return [
            (message.tool_call_id, message.is_error, text_of(message))
            for message in self.agent.state.messages
            if isinstance(message, ToolResultMessage)
        ]

    def ends(self) -> list[ToolExecutionEnd]:
        return [event for event in self.events if isinstance(event, ToolExecutionEnd)]


def text_of(message: Message | AgentToolResult) -> str:
    return plain_text(message.content)


@tool
async def ok() -> str:
    """Do well."""
    return "ok"


@tool
async def hang() -> str:
    """Wait for ever."""
    await asyncio.Event().wait()
    return "never"
