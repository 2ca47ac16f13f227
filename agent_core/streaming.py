"""The protocol between the loop and a model: what goes in and the events that come out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias, get_args

from agent_core.content import ToolCall, content_from_dict
from agent_core.errors import MalformedDataError
from agent_core.fields import JsonObject, json_object, maybe, one_of, require
from agent_core.messages import AssistantMessage, LlmMessage, StopReason

if TYPE_CHECKING:
    from agent_core.abort import AbortSignal
    from agent_core.models import Model
    from agent_core.tools import AgentTool

ThinkingLevel = Literal["off", "minimal", "low", "medium", "high", "xhigh"]
"""How much a model may think before it answers."""

THINKING_LEVELS: tuple[ThinkingLevel, ...] = get_args(ThinkingLevel)


@dataclass(slots=True)
class LlmContext:
    """What a model is given: the system prompt, the messages and the tools it may call."""

    system_prompt: str = ""
    messages: list[LlmMessage] = field(default_factory=list)
    tools: list[AgentTool] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class StreamOptions:
    """How a model is called. What is None is left to the model's own setting.

    `signal` is set by abort. `thinking_budgets` maps a level to tokens. `max_retry_delay` is in
    seconds: a provider that asks for a longer wait before a retry gets none. `max_attempts`
    counts the first try, too. `purpose` and the journal's `step` say what the call is for: those
    who keep the books read them, no provider does.
    """

    signal: AbortSignal | None = None
    api_key: str | None = None
    session_id: str | None = None
    reasoning: ThinkingLevel | None = None
    thinking_budgets: Mapping[str, int] | None = None
    max_retry_delay: float = 60.0
    temperature: float | None = None
    max_tokens: int | None = None
    use_cache: bool | None = None
    max_attempts: int | None = None
    purpose: str = ""
    step: int | None = None


@dataclass(slots=True)
class StreamStart:
    """The first content is there; `partial` is the message that grows."""

    type: ClassVar[Literal["start"]] = "start"
    partial: AssistantMessage

    def to_dict(self) -> dict[str, Any]:
        """Return the event as JSON, without the partial message."""
        return {"type": self.type}


@dataclass(slots=True)
class TextStart:
    """A text block begins."""

    type: ClassVar[Literal["text_start"]] = "text_start"
    content_index: int
    partial: AssistantMessage

    def to_dict(self) -> dict[str, Any]:
        """Return the event as JSON, without the partial message."""
        return {"type": self.type, "content_index": self.content_index}


@dataclass(slots=True)
class TextDelta:
    """A text block grew."""

    type: ClassVar[Literal["text_delta"]] = "text_delta"
    content_index: int
    delta: str
    partial: AssistantMessage

    def to_dict(self) -> dict[str, Any]:
        """Return the event as JSON, without the partial message."""
        return {"type": self.type, "content_index": self.content_index, "delta": self.delta}


@dataclass(slots=True)
class TextEnd:
    """A text block is complete."""

    type: ClassVar[Literal["text_end"]] = "text_end"
    content_index: int
    content: str
    partial: AssistantMessage

    def to_dict(self) -> dict[str, Any]:
        """Return the event as JSON, without the partial message."""
        return {"type": self.type, "content_index": self.content_index, "content": self.content}


@dataclass(slots=True)
class ThinkingStart:
    """A thinking block begins."""

    type: ClassVar[Literal["thinking_start"]] = "thinking_start"
    content_index: int
    partial: AssistantMessage

    def to_dict(self) -> dict[str, Any]:
        """Return the event as JSON, without the partial message."""
        return {"type": self.type, "content_index": self.content_index}


@dataclass(slots=True)
class ThinkingDelta:
    """A thinking block grew."""

    type: ClassVar[Literal["thinking_delta"]] = "thinking_delta"
    content_index: int
    delta: str
    partial: AssistantMessage

    def to_dict(self) -> dict[str, Any]:
        """Return the event as JSON, without the partial message."""
        return {"type": self.type, "content_index": self.content_index, "delta": self.delta}


@dataclass(slots=True)
class ThinkingEnd:
    """A thinking block is complete."""

    type: ClassVar[Literal["thinking_end"]] = "thinking_end"
    content_index: int
    content: str
    partial: AssistantMessage
    signature: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the event as JSON, without the partial message."""
        return {
            "type": self.type,
            "content_index": self.content_index,
            "content": self.content,
            "signature": self.signature,
        }


@dataclass(slots=True)
class ToolCallStart:
    """A tool call begins; id and name are known."""

    type: ClassVar[Literal["toolcall_start"]] = "toolcall_start"
    content_index: int
    partial: AssistantMessage

    def to_dict(self) -> dict[str, Any]:
        """Return the event as JSON; the call's id and name stand in for the partial message."""
        block = self.partial.content[self.content_index]
        named = {"id": block.id, "name": block.name} if isinstance(block, ToolCall) else {}
        return {"type": self.type, "content_index": self.content_index, **named}


@dataclass(slots=True)
class ToolCallDelta:
    """The text of a tool call's arguments grew."""

    type: ClassVar[Literal["toolcall_delta"]] = "toolcall_delta"
    content_index: int
    delta: str
    partial: AssistantMessage

    def to_dict(self) -> dict[str, Any]:
        """Return the event as JSON, without the partial message."""
        return {"type": self.type, "content_index": self.content_index, "delta": self.delta}


@dataclass(slots=True)
class ToolCallEnd:
    """A tool call is complete, its arguments parsed."""

    type: ClassVar[Literal["toolcall_end"]] = "toolcall_end"
    content_index: int
    tool_call: ToolCall
    partial: AssistantMessage

    def to_dict(self) -> dict[str, Any]:
        """Return the event as JSON, without the partial message."""
        return {
            "type": self.type,
            "content_index": self.content_index,
            "tool_call": self.tool_call.to_dict(),
        }


@dataclass(slots=True)
class StreamDone:
    """The message is complete."""

    type: ClassVar[Literal["done"]] = "done"
    reason: StopReason
    message: AssistantMessage

    def to_dict(self) -> dict[str, Any]:
        """Return the event as JSON."""
        return {"type": self.type, "reason": self.reason, "message": self.message.to_dict()}

    @classmethod
    def from_dict(cls, data: object) -> StreamDone:
        """Read the event; raises MalformedDataError."""
        fields = json_object(data, "a done event")
        return cls(
            one_of(fields, "reason", _DONE_REASONS),
            AssistantMessage.from_dict(require(fields, "message", dict)),
        )


LONGEST_WAIT = 3_600.0
"""Seconds for which a model is left alone at the most, whatever its `retry_after` asks for: some
give the time itself for the seconds until then, which is decades."""


@dataclass(slots=True)
class StreamError:
    """The message failed or was aborted; `error` is what there is of it.

    `status` and `retry_after` (seconds) are the provider's, `retryable` whether the same request
    may succeed later: for routing and limits; they are no part of the event's JSON.
    """

    type: ClassVar[Literal["error"]] = "error"
    reason: StopReason
    error: AssistantMessage
    status: int | None = None
    retry_after: float | None = None
    retryable: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the event as JSON."""
        return {"type": self.type, "reason": self.reason, "error": self.error.to_dict()}

    @classmethod
    def from_dict(cls, data: object) -> StreamError:
        """Read the event; raises MalformedDataError."""
        fields = json_object(data, "an error event")
        return cls(
            one_of(fields, "reason", _ERROR_REASONS),
            AssistantMessage.from_dict(require(fields, "error", dict)),
        )


_DONE_REASONS: tuple[StopReason, ...] = ("stop", "length", "tool_use")
_ERROR_REASONS: tuple[StopReason, ...] = ("error", "aborted")

PartialEvent: TypeAlias = (
    StreamStart
    | TextStart
    | TextDelta
    | TextEnd
    | ThinkingStart
    | ThinkingDelta
    | ThinkingEnd
    | ToolCallStart
    | ToolCallDelta
    | ToolCallEnd
)
FinalEvent: TypeAlias = StreamDone | StreamError
AssistantMessageEvent: TypeAlias = PartialEvent | FinalEvent

PARTIAL_EVENTS = (
    StreamStart,
    TextStart,
    TextDelta,
    TextEnd,
    ThinkingStart,
    ThinkingDelta,
    ThinkingEnd,
    ToolCallStart,
    ToolCallDelta,
    ToolCallEnd,
)


class StreamFn(Protocol):
    """A model as the loop sees it: called once per answer, it gives the events of that answer."""

    def __call__(
        self, model: Model, context: LlmContext, options: StreamOptions, /
    ) -> AsyncIterator[AssistantMessageEvent] | Awaitable[AsyncIterator[AssistantMessageEvent]]:
        """Begin a call."""


def stream_event_from_dict(data: object, partial: AssistantMessage) -> AssistantMessageEvent:
    """Read an event of a stream whose message so far is `partial`; raises MalformedDataError."""
    fields = json_object(data, "a stream event")
    kind = fields.get("type")
    if kind == "start":
        return StreamStart(partial)
    if kind == "done":
        return StreamDone.from_dict(fields)
    if kind == "error":
        return StreamError.from_dict(fields)
    if kind in _BEGINNINGS:
        return _BEGINNINGS[kind](require(fields, "content_index", int), partial)
    if kind in _DELTAS:
        return _DELTAS[kind](
            require(fields, "content_index", int), require(fields, "delta", str), partial
        )
    return _ending(fields, partial)


_BEGINNINGS: dict[object, type[TextStart | ThinkingStart | ToolCallStart]] = {
    event.type: event for event in (TextStart, ThinkingStart, ToolCallStart)
}
_DELTAS: dict[object, type[TextDelta | ThinkingDelta | ToolCallDelta]] = {
    event.type: event for event in (TextDelta, ThinkingDelta, ToolCallDelta)
}


def _ending(fields: JsonObject, partial: AssistantMessage) -> TextEnd | ThinkingEnd | ToolCallEnd:
    kind = fields.get("type")
    index = require(fields, "content_index", int)
    if kind == "text_end":
        return TextEnd(index, require(fields, "content", str), partial)
    if kind == "thinking_end":
        signature = maybe(fields, "signature", str)
        return ThinkingEnd(index, require(fields, "content", str), partial, signature)
    if kind == "toolcall_end":
        call = content_from_dict(require(fields, "tool_call", dict))
        if isinstance(call, ToolCall):
            return ToolCallEnd(index, call, partial)
    raise MalformedDataError(f"unknown type of stream event: {kind!r}")
