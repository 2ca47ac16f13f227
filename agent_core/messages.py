"""The messages of a transcript, and their form as JSON."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias, get_args

from agent_core.content import (
    AssistantContent,
    TextContent,
    ToolCall,
    UserContent,
    assistant_content_from_dict,
    plain_text,
    user_content_from_dict,
)
from agent_core.errors import MalformedDataError
from agent_core.fields import (
    JsonObject,
    items,
    json_object,
    maybe,
    number,
    one_of,
    optional,
    require,
)

StopReason = Literal["stop", "length", "tool_use", "error", "aborted"]
STOP_REASONS: tuple[StopReason, ...] = get_args(StopReason)


def now_ms() -> int:
    """Return the wall clock in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Usage:
    """Tokens of one or more model calls; `cost` is in US dollars."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    total_tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input + other.input,
            self.output + other.output,
            self.cache_read + other.cache_read,
            self.cache_write + other.cache_write,
            self.total_tokens + other.total_tokens,
            self.cost + other.cost,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the usage as JSON."""
        return {
            "input": self.input,
            "output": self.output,
            "cache_read": self.cache_read,
            "cache_write": self.cache_write,
            "total_tokens": self.total_tokens,
            "cost": self.cost,
        }

    @classmethod
    def from_dict(cls, data: object) -> Usage:
        """Read a usage; absent fields count as zero."""
        fields = json_object(data, "usage")
        return cls(
            optional(fields, "input", int, 0),
            optional(fields, "output", int, 0),
            optional(fields, "cache_read", int, 0),
            optional(fields, "cache_write", int, 0),
            optional(fields, "total_tokens", int, 0),
            number(fields, "cost", 0.0),
        )


@dataclass(slots=True)
class UserMessage:
    """What the user says; `timestamp` is in milliseconds since 1970.

    `details` is JSON for programs: what else a model is shown with the message, say.
    """

    role: ClassVar[Literal["user"]] = "user"
    content: str | list[UserContent]
    timestamp: int = field(default_factory=now_ms)
    details: Any = None

    def to_dict(self) -> dict[str, Any]:
        """Return the message as JSON."""
        data: dict[str, Any] = {
            "role": "user",
            "content": _content_to_json(self.content),
            "timestamp": self.timestamp,
        }
        if self.details is not None:
            data["details"] = self.details
        return data

    @classmethod
    def from_dict(cls, data: object) -> UserMessage:
        """Read the message; raises MalformedDataError."""
        fields = json_object(data, "a user message")
        return cls(_user_content(fields), _timestamp(fields), fields.get("details"))


@dataclass(slots=True)
class AssistantMessage:
    """What a model says. While it streams, `stop_reason` is `stop` until it is known."""

    role: ClassVar[Literal["assistant"]] = "assistant"
    content: list[AssistantContent]
    model: str = ""
    provider: str = ""
    usage: Usage = field(default_factory=Usage)
    stop_reason: StopReason = "stop"
    error_message: str | None = None
    timestamp: int = field(default_factory=now_ms)

    @property
    def text(self) -> str:
        """The text blocks, joined."""
        return plain_text(self.content)

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The tool calls, in order."""
        return [block for block in self.content if isinstance(block, ToolCall)]

    def to_dict(self) -> dict[str, Any]:
        """Return the message as JSON."""
        data: dict[str, Any] = {
            "role": "assistant",
            "content": [block.to_dict() for block in self.content],
            "model": self.model,
            "provider": self.provider,
            "usage": self.usage.to_dict(),
            "stop_reason": self.stop_reason,
            "timestamp": self.timestamp,
        }
        if self.error_message is not None:
            data["error_message"] = self.error_message
        return data

    @classmethod
    def from_dict(cls, data: object) -> AssistantMessage:
        """Read the message; raises MalformedDataError."""
        fields = json_object(data, "an assistant message")
        return cls(
            items(fields, "content", assistant_content_from_dict),
            optional(fields, "model", str, ""),
            optional(fields, "provider", str, ""),
            Usage.from_dict(fields.get("usage") or {}),
            one_of(fields, "stop_reason", STOP_REASONS, "stop"),
            maybe(fields, "error_message", str),
            _timestamp(fields),
        )


@dataclass(slots=True)
class ToolResultMessage:
    """What a tool gave back; `details` is JSON for programs, not shown to the model."""

    role: ClassVar[Literal["tool_result"]] = "tool_result"
    tool_call_id: str
    tool_name: str
    content: list[UserContent]
    details: Any = None
    is_error: bool = False
    timestamp: int = field(default_factory=now_ms)

    def to_dict(self) -> dict[str, Any]:
        """Return the message as JSON."""
        data: dict[str, Any] = {
            "role": "tool_result",
            "tool_call_id": self.tool_call_id,
            "tool_name": self.tool_name,
            "content": [block.to_dict() for block in self.content],
            "is_error": self.is_error,
            "timestamp": self.timestamp,
        }
        if self.details is not None:
            data["details"] = self.details
        return data

    @classmethod
    def from_dict(cls, data: object) -> ToolResultMessage:
        """Read the message; raises MalformedDataError."""
        fields = json_object(data, "a tool result")
        return cls(
            require(fields, "tool_call_id", str),
            require(fields, "tool_name", str),
            items(fields, "content", user_content_from_dict),
            fields.get("details"),
            optional(fields, "is_error", bool, default=False),
            _timestamp(fields),
        )


@dataclass(slots=True)
class CustomMessage:
    """A message of the application's own; it reaches a model only if `convert_to_llm` maps it."""

    role: str
    content: str | list[UserContent] = ""
    details: Any = None
    timestamp: int = field(default_factory=now_ms)

    def __post_init__(self) -> None:
        if self.role in {"user", "assistant", "tool_result"}:
            raise MalformedDataError(f"{self.role!r} is not a custom role")

    def to_dict(self) -> dict[str, Any]:
        """Return the message as JSON."""
        data: dict[str, Any] = {
            "role": self.role,
            "content": _content_to_json(self.content),
            "timestamp": self.timestamp,
        }
        if self.details is not None:
            data["details"] = self.details
        return data

    @classmethod
    def from_dict(cls, data: object) -> CustomMessage:
        """Read the message; raises MalformedDataError."""
        fields = json_object(data, "a custom message")
        return cls(
            require(fields, "role", str),
            _user_content(fields) if "content" in fields else "",
            fields.get("details"),
            _timestamp(fields),
        )


LlmMessage: TypeAlias = UserMessage | AssistantMessage | ToolResultMessage
"""A message that a model can be given."""

Message: TypeAlias = UserMessage | AssistantMessage | ToolResultMessage | CustomMessage
"""A message of a transcript."""


def message_from_dict(data: object) -> Message:
    """Read a message of any role; raises MalformedDataError."""
    fields = json_object(data, "a message")
    role = fields.get("role")
    if role == "user":
        return UserMessage.from_dict(fields)
    if role == "assistant":
        return AssistantMessage.from_dict(fields)
    if role == "tool_result":
        return ToolResultMessage.from_dict(fields)
    return CustomMessage.from_dict(fields)


def convert_to_llm(messages: Iterable[Message]) -> list[LlmMessage]:
    """Keep what a model can be given: the default of `AgentOptions.convert_to_llm`.

    Custom messages are left out, and answers that failed before they said anything.
    """
    return [
        message
        for message in messages
        if not isinstance(message, CustomMessage)
        and not (isinstance(message, AssistantMessage) and not message.content)
    ]


def text_result(text: str) -> list[UserContent]:
    """Return a text as the content of a tool result."""
    return [TextContent(text)]


def _content_to_json(content: str | list[UserContent]) -> Any:
    return content if isinstance(content, str) else [block.to_dict() for block in content]


def _user_content(fields: JsonObject) -> str | list[UserContent]:
    if isinstance(fields.get("content"), str):
        return require(fields, "content", str)
    return items(fields, "content", user_content_from_dict)


def _timestamp(fields: JsonObject) -> int:
    value = maybe(fields, "timestamp", int)
    return now_ms() if value is None else value
