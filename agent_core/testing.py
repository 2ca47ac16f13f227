"""A model that plays a script: for tests and examples, with no network and no randomness."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from agent_core.content import AssistantContent, TextContent, ThinkingContent, ToolCall
from agent_core.errors import ScriptExhaustedError
from agent_core.messages import AssistantMessage, LlmMessage, StopReason
from agent_core.models import Model
from agent_core.streaming import (
    AssistantMessageEvent,
    LlmContext,
    StreamDone,
    StreamError,
    StreamOptions,
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

SCRIPTED_MODEL = Model(id="scripted", provider="test", context_window=8_192, max_tokens=1_024)
"""A model to put into an agent's state when its answers come from a script."""


@dataclass(frozen=True, slots=True)
class ScriptedRequest:
    """What the scripted model was asked; `number` counts from 0, `messages` is a snapshot."""

    number: int
    model: Model
    system_prompt: str
    messages: tuple[LlmMessage, ...]
    tools: tuple[str, ...]
    options: StreamOptions


class ScriptedStream:
    """Takes the events that a script's function pushes."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[AssistantMessageEvent | Exception | None] = asyncio.Queue()

    def push(self, event: AssistantMessageEvent) -> None:
        """Add an event."""
        self._events.put_nowait(event)

    def done(self, message: AssistantMessage) -> None:
        """End with a message."""
        self.push(StreamDone(message.stop_reason, message))

    def fail(self, message: AssistantMessage) -> None:
        """End with a message of stop reason error or aborted."""
        self.push(StreamError(message.stop_reason, message))

    async def play(
        self, play: Play, request: ScriptedRequest
    ) -> AsyncIterator[AssistantMessageEvent]:
        """Run the function and give what it pushes, up to its end."""
        task = asyncio.ensure_future(self._run(play, request))
        try:
            while (event := await self._events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            task.cancel()

    async def _run(self, play: Play, request: ScriptedRequest) -> None:
        try:
            played = play(self, request)
            if inspect.isawaitable(played):
                await played
        except Exception as error:  # noqa: BLE001 - raised again where the stream is read
            self._events.put_nowait(error)
        self._events.put_nowait(None)


Play: TypeAlias = Callable[[ScriptedStream, ScriptedRequest], Awaitable[None] | None]
Reply: TypeAlias = str | AssistantMessage | Exception | list[AssistantMessageEvent] | Play
"""One entry of a script.

A string streams word by word; a message comes at once, whole; an exception is raised; a list of
events is played as it is; a function pushes what it likes into a ScriptedStream.
"""


class ScriptedModel:
    """A stream function that gives one entry of its script per call and keeps the requests.

    A call beyond the script gets `otherwise`, or fails with ScriptExhaustedError.
    """

    def __init__(self, script: Sequence[Reply] = (), *, otherwise: Reply | None = None) -> None:
        self.script = list(script)
        self.requests: list[ScriptedRequest] = []
        self._otherwise = otherwise

    async def __call__(
        self, model: Model, context: LlmContext, options: StreamOptions
    ) -> AsyncIterator[AssistantMessageEvent]:
        """Answer with the next entry of the script."""
        number = len(self.requests)
        request = ScriptedRequest(
            number,
            model,
            context.system_prompt,
            tuple(context.messages),
            tuple(tool.name for tool in context.tools),
            options,
        )
        self.requests.append(request)
        reply = self.script[number] if number < len(self.script) else self._otherwise
        if reply is None:
            raise ScriptExhaustedError(f"the script has no entry {number}")
        if isinstance(reply, Exception):
            raise reply
        return _played(reply, request)


async def _played(reply: Reply, request: ScriptedRequest) -> AsyncIterator[AssistantMessageEvent]:
    if isinstance(reply, str):
        for event in streamed(answer(reply)):
            yield event
    elif isinstance(reply, AssistantMessage):
        failed = reply.stop_reason in {"error", "aborted"}
        yield (
            StreamError(reply.stop_reason, reply)
            if failed
            else StreamDone(reply.stop_reason, reply)
        )
    elif isinstance(reply, list):
        for event in reply:
            yield event
    elif callable(reply):
        async for event in ScriptedStream().play(reply, request):
            yield event


def answer(text: str, *, stop_reason: StopReason = "stop") -> AssistantMessage:
    """Return a message of the scripted model that says `text`."""
    return _message([TextContent(text)], stop_reason)


def calls(*tool_calls: ToolCall, text: str = "") -> AssistantMessage:
    """Return a message of the scripted model that calls tools."""
    said: list[AssistantContent] = [TextContent(text)] if text else []
    return _message([*said, *tool_calls], "tool_use")


def call(call_id: str, name: str, /, **arguments: Any) -> ToolCall:
    """Return a tool call."""
    return ToolCall(call_id, name, arguments)


def failure(error: str, *, text: str = "", aborted: bool = False) -> AssistantMessage:
    """Return a message of the scripted model that failed, perhaps after some text."""
    message = _message([TextContent(text)] if text else [], "aborted" if aborted else "error")
    message.error_message = error
    return message


def streamed(message: AssistantMessage) -> list[AssistantMessageEvent]:
    """Return the events that stream a message word by word.

    The events share a partial message that is already whole: who needs it to grow while it is
    read plays a function.
    """
    events: list[AssistantMessageEvent] = [StreamStart(message)]
    for index, block in enumerate(message.content):
        if isinstance(block, TextContent):
            events.append(TextStart(index, message))
            events += [TextDelta(index, word, message) for word in _words(block.text)]
            events.append(TextEnd(index, block.text, message))
        elif isinstance(block, ThinkingContent):
            events.append(ThinkingStart(index, message))
            events += [ThinkingDelta(index, word, message) for word in _words(block.thinking)]
            events.append(ThinkingEnd(index, block.thinking, message, block.signature))
        else:
            events.append(ToolCallStart(index, message))
            events.append(ToolCallDelta(index, str(block.arguments), message))
            events.append(ToolCallEnd(index, block, message))
    events.append(StreamDone(message.stop_reason, message))
    return events


def _words(text: str) -> list[str]:
    pieces = text.split(" ")
    return [piece if index == 0 else f" {piece}" for index, piece in enumerate(pieces)]


def _message(content: list[AssistantContent], stop_reason: StopReason) -> AssistantMessage:
    return AssistantMessage(
        content, SCRIPTED_MODEL.id, SCRIPTED_MODEL.provider, stop_reason=stop_reason
    )
