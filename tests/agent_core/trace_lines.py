"""Writes what an agent does as the lines of the recorded traces, in their spelling of names."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import groupby
from typing import Any

from agent_core.agent import Agent
from agent_core.content import TextContent, ToolCall
from agent_core.errors import AgentCoreError
from agent_core.events import (
    AgentEnd,
    AgentEvent,
    MessageEnd,
    MessageStart,
    MessageUpdate,
    ToolExecutionEnd,
    ToolExecutionStart,
    ToolExecutionUpdate,
    TurnEnd,
)
from agent_core.messages import AssistantMessage, LlmMessage, Message, ToolResultMessage
from agent_core.models import Model
from agent_core.streaming import AssistantMessageEvent, LlmContext, StreamOptions
from agent_core.testing import Reply, ScriptedModel

Log = list[str]

_SPELLING = {"tool_use": "toolUse", "tool_result": "toolResult"}


def spelled(name: str) -> str:
    return _SPELLING.get(name, name)


def flag(value: bool) -> str:
    return "true" if value else "false"


def text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "|".join(_block(block) for block in content)


def _block(block: Any) -> str:
    if isinstance(block, TextContent):
        return block.text
    if isinstance(block, ToolCall):
        return f"call({block.id}:{block.name})"
    return str(block.type)


def message_line(message: Message) -> str:
    text = text_of(message.content)
    if isinstance(message, AssistantMessage):
        error = f"{{{message.error_message}}}" if message.error_message else ""
        return f'assistant<{spelled(message.stop_reason)}>{error}"{text}"'
    if isinstance(message, ToolResultMessage):
        return f'toolResult({message.tool_call_id},isError={flag(message.is_error)})"{text}"'
    return f'{message.role}"{text}"'


def event_line(event: AgentEvent) -> str:
    match event:
        case MessageStart() | MessageEnd():
            return f"{event.type} {message_line(event.message)}"
        case MessageUpdate():
            inner = event.assistant_message_event
            delta = getattr(inner, "delta", "")
            shown = f"{inner.type}:{delta}" if delta else inner.type
            return f"{event.type}[{shown}] {message_line(event.message)}"
        case TurnEnd():
            return (
                f"{event.type} {message_line(event.message)} toolResults={len(event.tool_results)}"
            )
        case AgentEnd():
            roles = ",".join(spelled(message.role) for message in event.messages)
            return f"{event.type} n={len(event.messages)} [{roles}]"
        case ToolExecutionStart():
            arguments = json.dumps(event.args, separators=(",", ":"))
            return f"{event.type} {event.tool_call_id}:{event.tool_name} args={arguments}"
        case ToolExecutionUpdate():
            return f'{event.type} {event.tool_call_id} "{text_of(event.partial_result.content)}"'
        case ToolExecutionEnd():
            return (
                f"{event.type} {event.tool_call_id}:{event.tool_name} "
                f'isError={flag(event.is_error)} "{text_of(event.result.content)}"'
            )
    return event.type


def request_line(number: int, messages: list[LlmMessage]) -> str:
    return f"> llm_request#{number} roles=[{', '.join(map(_asked, messages))}]"


def _asked(message: LlmMessage) -> str:
    if message.role != "user":
        return spelled(message.role)
    if isinstance(message.content, str):
        return f"user:{message.content}"
    return "user:" + "+".join(getattr(block, "text", block.type) for block in message.content)


def state_lines(agent: Agent) -> list[str]:
    state = agent.state
    messages = " ; ".join(map(message_line, state.messages))
    return [
        f"= state.messages [{messages}]",
        f"= isStreaming={flag(state.is_streaming)} error={state.error or 'null'} "
        f"pending={','.join(state.pending_tool_calls)} "
        f"streaming={flag(state.stream_message is not None)} "
        f"queued={flag(agent.has_queued_messages())}",
    ]


class LoggedModel(ScriptedModel):
    """A scripted model that writes a line per request."""

    def __init__(self, script: list[Reply], log: Log) -> None:
        super().__init__(script)
        self._log = log

    async def __call__(
        self, model: Model, context: LlmContext, options: StreamOptions
    ) -> AsyncIterator[AssistantMessageEvent]:
        self._log.append(request_line(len(self.requests), context.messages))
        return await super().__call__(model, context, options)


async def run(agent: Agent, log: Log, act: Callable[[Agent], Awaitable[object]]) -> None:
    try:
        await act(agent)
    except AgentCoreError as error:
        log.append(f"! throws {error}")
    log.extend(state_lines(agent))


def normalised(lines: list[str]) -> tuple[list[str], list[str]]:
    """Return the lines of the run and those of its callers, as the traces may be compared."""
    run_lines = [_first_line_of_validation(line) for line in lines if not line.startswith("! ")]
    ordered: list[str] = []
    for is_end, group in groupby(run_lines, lambda line: line.startswith("tool_execution_end ")):
        lines_of_group = list(group)
        ordered += sorted(lines_of_group) if is_end else lines_of_group
    return ordered, [line for line in lines if line.startswith("! ")]


def _first_line_of_validation(line: str) -> str:
    rest = r'(Validation failed for tool "\w+":)\n.*?\nReceived arguments:\n.*?(?="(?: ;|\]|$))'
    return re.sub(rest, r"\1", line, flags=re.DOTALL)
