"""Building an answer from a provider's chunks, as events of the stream protocol."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from agent_core.content import TextContent, ThinkingContent, ToolCall
from agent_core.errors import ProviderError
from agent_core.messages import AssistantMessage, StopReason, Usage
from agent_core.models import Model
from agent_core.partial_json import partial_arguments, whole_arguments
from agent_core.streaming import (
    AssistantMessageEvent,
    PartialEvent,
    StreamDone,
    StreamStart,
    TextDelta,
    TextEnd,
    TextStart,
    ThinkingDelta,
    ThinkingEnd,
    ThinkingStart,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)

_STOP_REASONS: dict[str, StopReason] = {
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
}

UNSPECIFIED = "finish_reason_unspecified"
"""The finish reason of an answer that broke off where litellm cannot tell the provider's own."""

BROKEN_OFF = frozenset(
    {"abort", "error", "insufficient_system_resource", "network_error", UNSPECIFIED}
)
"""Finish reasons of answers that their provider did not bring to an end."""

_WITHHELD = ("content_filter", "prohibited_content", "recitation", "refusal", "safety", "sensitive")
"""How the finish reasons of answers begin that a provider does not give, in whatever case."""


@dataclass(slots=True)
class ToolCallPiece:
    """A piece of a tool call: its first carries id and name, all carry text of the arguments."""

    index: int | None = None
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class ChatChunk:
    """What a provider sends at once, in no provider's own terms."""

    text: str = ""
    thinking: str = ""
    signature: str | None = None
    tool_calls: list[ToolCallPiece] = field(default_factory=list)
    finish_reason: str | None = None
    usage: Usage | None = None

    def has_content(self) -> bool:
        """Whether there is anything of the answer in it."""
        return bool(self.text or self.thinking or self.signature or self.tool_calls)

    def is_text(self) -> bool:
        """Whether there is text in it and nothing else."""
        return bool(self.text) and not (
            self.thinking
            or self.signature
            or self.tool_calls
            or self.finish_reason
            or self.usage is not None
        )


class StreamAssembler:
    """Grows one message from chunks."""

    def __init__(self, model: Model) -> None:
        self.message = AssistantMessage([], model.id, model.provider)
        self.began = False
        self._model = model
        self._open: TextContent | ThinkingContent | None = None
        self._calls: list[GrowingCall] = []
        self._newest_at: dict[int, GrowingCall] = {}
        self._finish_reason: str | None = None

    def take(self, chunk: ChatChunk) -> Iterator[PartialEvent]:
        """Add a chunk and give what it changes."""
        if chunk.usage is not None:
            self.message.usage = self._model.price(chunk.usage)
        self._finish_reason = chunk.finish_reason or self._finish_reason
        if not chunk.has_content():
            return
        if not self.began:
            self.began = True
            yield StreamStart(self.message)
        if chunk.thinking or chunk.signature:
            yield from self._think(chunk.thinking, chunk.signature)
        if chunk.text:
            yield from self._say(chunk.text)
        for piece in chunk.tool_calls:
            yield from self._call(piece)

    def finish(self) -> Iterator[AssistantMessageEvent]:
        """End the message; raises ProviderError for an answer that is none."""
        reason = self._finish_reason
        if reason is None:
            raise ProviderError("The model's answer broke off", retryable=True)
        if reason.lower().startswith(_WITHHELD):
            raise ProviderError("The provider's content filter withheld the answer")
        if reason.lower() in BROKEN_OFF:
            raise ProviderError(f"The provider broke its answer off ({reason})", retryable=True)
        if not self.began:
            yield StreamStart(self.message)
        yield from self._close()
        for call in self._calls:
            block = call.block
            block.arguments, block.raw = whole_arguments(call.text)
            yield ToolCallEnd(call.position, block, self.message)
        stop_reason = _STOP_REASONS.get(reason, "stop")
        if stop_reason == "stop" and self._calls:
            stop_reason = "tool_use"
        self.message.stop_reason = stop_reason
        yield StreamDone(stop_reason, self.message)

    def _say(self, delta: str) -> Iterator[PartialEvent]:
        block = self._open
        if not isinstance(block, TextContent):
            yield from self._close()
            block = self._open = TextContent("")
            self.message.content.append(block)
            yield TextStart(self._last(), self.message)
        block.text += delta
        yield TextDelta(self._last(), delta, self.message)

    def _think(self, delta: str, signature: str | None) -> Iterator[PartialEvent]:
        block = self._open
        if not isinstance(block, ThinkingContent):
            yield from self._close()
            block = self._open = ThinkingContent("")
            self.message.content.append(block)
            yield ThinkingStart(self._last(), self.message)
        block.signature = signature or block.signature
        if delta:
            block.thinking += delta
            yield ThinkingDelta(self._last(), delta, self.message)

    def _call(self, piece: ToolCallPiece) -> Iterator[PartialEvent]:
        call = self._call_of(piece)
        if call is None:
            yield from self._close()
            call = GrowingCall(ToolCall(piece.id, piece.name), len(self.message.content))
            self._calls.append(call)
            if piece.index is not None:
                self._newest_at[piece.index] = call
            self.message.content.append(call.block)
            yield ToolCallStart(call.position, self.message)
        call.block.id = call.block.id or piece.id
        call.block.name = call.block.name or piece.name
        if piece.arguments:
            call.grow(piece.arguments)
            yield ToolCallDelta(call.position, piece.arguments, self.message)

    def _call_of(self, piece: ToolCallPiece) -> GrowingCall | None:
        """The call that a piece belongs to; None if it begins one."""
        if piece.index is not None:
            call = self._newest_at.get(piece.index)
            # Some providers give all calls of an answer the same index.
            return None if call is not None and _is_another(call.block, piece) else call
        # Some count no index: then a new id is a new call.
        if piece.id:
            return next((call for call in self._calls if call.block.id == piece.id), None)
        return self._calls[-1] if self._calls else None

    def _close(self) -> Iterator[PartialEvent]:
        """End the text or thinking that is being given."""
        block, self._open = self._open, None
        if isinstance(block, TextContent):
            yield TextEnd(self._last(), block.text, self.message)
        elif isinstance(block, ThinkingContent):
            yield ThinkingEnd(self._last(), block.thinking, self.message, block.signature)

    def _last(self) -> int:
        return len(self.message.content) - 1


def _is_another(call: ToolCall, piece: ToolCallPiece) -> bool:
    """Whether a piece names another call than that which its index says."""
    known = call.id or call.name
    return bool(known and piece.id and piece.name and piece.id != call.id)


class GrowingCall:
    """A tool call whose arguments are still coming."""

    __slots__ = ("_parse_at", "block", "position", "text")

    def __init__(self, block: ToolCall, position: int) -> None:
        self.block = block
        self.position = position
        self.text = ""
        self._parse_at = 0

    def grow(self, delta: str) -> None:
        """Add a piece of their text."""
        self.text += delta
        # Parsing after every piece would be quadratic; a tenth more text at a time is linear.
        if len(self.text) >= self._parse_at:
            self.block.arguments = partial_arguments(self.text)
            self._parse_at = len(self.text) + max(1, len(self.text) // 10)
