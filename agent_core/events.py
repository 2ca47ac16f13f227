"""What an agent tells while it runs: one union, told apart by `type`.

The grammar of a run, where message(x) is message_start and message_end of x and call(c) is
tool_execution_start, any number of updates, and tool_execution_end:

    agent_start
    ( turn_start  message(user)*  message(assistant) with updates  call*  message(tool_result)*
      turn_end )+
    agent_end
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from agent_core.errors import MalformedDataError
from agent_core.fields import items, json_object, maybe, number, optional, require
from agent_core.messages import (
    AssistantMessage,
    Message,
    ToolResultMessage,
    Usage,
    message_from_dict,
)
from agent_core.results import AgentToolResult
from agent_core.streaming import AssistantMessageEvent, stream_event_from_dict

# `step` is the journal's number of the model or tool call behind an event, for those who record
# events beside a journal; it is no part of an event's JSON.


@dataclass(slots=True)
class AgentStart:
    """A run begins."""

    type: ClassVar[Literal["agent_start"]] = "agent_start"

    def to_dict(self) -> dict[str, Any]:
        """Return the event as JSON."""
        return {"type": self.type}


@dataclass(slots=True)
class AgentEnd:
    """A run is over; `messages` are the new ones.

    `error` says why the run ended early, `usage` is the run's sum if the caller asked for it.
    """

    type: ClassVar[Literal["agent_end"]] = "agent_end"
    messages: list[Message]
    error: str | None = None
    usage: Usage | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the event as JSON."""
        data: dict[str, Any] = {
            "type": self.type,
            "messages": [message.to_dict() for message in self.messages],
        }
        if self.error is not None:
            data["error"] = self.error
        if self.usage is not None:
            data["usage"] = self.usage.to_dict()
        return data


@dataclass(slots=True)
class TurnStart:
    """A turn begins: one answer of the model and the tool calls in it."""

    type: ClassVar[Literal["turn_start"]] = "turn_start"
    step: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the event as JSON."""
        return {"type": self.type}


@dataclass(slots=True)
class TurnEnd:
    """A turn is over."""

    type: ClassVar[Literal["turn_end"]] = "turn_end"
    message: AssistantMessage
    tool_results: list[ToolResultMessage]
    step: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the event as JSON."""
        return {
            "type": self.type,
            "message": self.message.to_dict(),
            "tool_results": [result.to_dict() for result in self.tool_results],
        }


@dataclass(slots=True)
class MessageStart:
    """A message begins; an assistant's grows afterwards."""

    type: ClassVar[Literal["message_start"]] = "message_start"
    message: Message
    step: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the event as JSON."""
        return {"type": self.type, "message": self.message.to_dict()}


@dataclass(slots=True)
class MessageUpdate:
    """An assistant's message grew."""

    type: ClassVar[Literal["message_update"]] = "message_update"
    message: AssistantMessage
    assistant_message_event: AssistantMessageEvent
    step: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the event as JSON."""
        return {
            "type": self.type,
            "message": self.message.to_dict(),
            "assistant_message_event": self.assistant_message_event.to_dict(),
        }


@dataclass(slots=True)
class MessageEnd:
    """A message is complete and part of the transcript."""

    type: ClassVar[Literal["message_end"]] = "message_end"
    message: Message
    step: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the event as JSON."""
        return {"type": self.type, "message": self.message.to_dict()}


@dataclass(slots=True)
class ToolExecutionStart:
    """A tool call is taken up; `args` are as the model gave them."""

    type: ClassVar[Literal["tool_execution_start"]] = "tool_execution_start"
    tool_call_id: str
    tool_name: str
    args: dict[str, Any]
    step: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the event as JSON."""
        return {
            "type": self.type,
            "tool_call_id": self.tool_call_id,
            "tool_name": self.tool_name,
            "args": self.args,
        }


@dataclass(slots=True)
class ToolExecutionUpdate:
    """A tool tells how far it is."""

    type: ClassVar[Literal["tool_execution_update"]] = "tool_execution_update"
    tool_call_id: str
    tool_name: str
    args: dict[str, Any]
    partial_result: AgentToolResult
    step: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the event as JSON."""
        return {
            "type": self.type,
            "tool_call_id": self.tool_call_id,
            "tool_name": self.tool_name,
            "args": self.args,
            "partial_result": self.partial_result.to_dict(),
        }


@dataclass(slots=True)
class ToolExecutionEnd:
    """A tool call is done; `duration` is in seconds, 0 for a call that never ran."""

    type: ClassVar[Literal["tool_execution_end"]] = "tool_execution_end"
    tool_call_id: str
    tool_name: str
    result: AgentToolResult
    is_error: bool
    duration: float = 0.0
    step: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the event as JSON."""
        return {
            "type": self.type,
            "tool_call_id": self.tool_call_id,
            "tool_name": self.tool_name,
            "result": self.result.to_dict(),
            "is_error": self.is_error,
            "duration": self.duration,
        }


AgentEvent: TypeAlias = (
    AgentStart
    | AgentEnd
    | TurnStart
    | TurnEnd
    | MessageStart
    | MessageUpdate
    | MessageEnd
    | ToolExecutionStart
    | ToolExecutionUpdate
    | ToolExecutionEnd
)

Emit: TypeAlias = Callable[[AgentEvent], Awaitable[None]]
"""Tells an event; the run goes on when it returns."""


def event_from_dict(data: object) -> AgentEvent:
    """Read an event; raises MalformedDataError."""
    fields = json_object(data, "an event")
    kind = fields.get("type")
    if kind == "agent_start":
        return AgentStart()
    if kind == "agent_end":
        usage = maybe(fields, "usage", dict)
        return AgentEnd(
            items(fields, "messages", message_from_dict),
            maybe(fields, "error", str),
            None if usage is None else Usage.from_dict(usage),
        )
    if kind == "turn_start":
        return TurnStart()
    if kind == "turn_end":
        return TurnEnd(
            AssistantMessage.from_dict(fields.get("message")),
            items(fields, "tool_results", ToolResultMessage.from_dict),
        )
    if kind == "message_start":
        return MessageStart(message_from_dict(fields.get("message")))
    if kind == "message_end":
        return MessageEnd(message_from_dict(fields.get("message")))
    if kind == "message_update":
        message = AssistantMessage.from_dict(fields.get("message"))
        event = stream_event_from_dict(fields.get("assistant_message_event"), message)
        return MessageUpdate(message, event)
    return _tool_event_from_dict(data)


def _tool_event_from_dict(data: object) -> AgentEvent:
    fields = json_object(data, "an event")
    kind = fields.get("type")
    if kind not in {"tool_execution_start", "tool_execution_update", "tool_execution_end"}:
        raise MalformedDataError(f"unknown type of event: {kind!r}")
    call_id = require(fields, "tool_call_id", str)
    name = require(fields, "tool_name", str)
    if kind == "tool_execution_start":
        return ToolExecutionStart(call_id, name, require(fields, "args", dict))
    if kind == "tool_execution_update":
        partial = AgentToolResult.from_dict(fields.get("partial_result"))
        return ToolExecutionUpdate(call_id, name, require(fields, "args", dict), partial)
    return ToolExecutionEnd(
        call_id,
        name,
        AgentToolResult.from_dict(fields.get("result")),
        optional(fields, "is_error", bool, default=False),
        number(fields, "duration", 0.0),
    )
