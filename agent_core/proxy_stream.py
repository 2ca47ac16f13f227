"""Calling models through a server of ours that holds the keys; the server's half is here, too.

The client posts the model's name, the context and the options as JSON and reads events without
the partial message, which it grows again. The server decides which models there are and where
they are: nothing of the client's but name, context and harmless options is used.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, closing
from typing import Any

from agent_core.abort import CancelEvent
from agent_core.assembly import GrowingCall
from agent_core.attempts import is_retryable, next_in_time
from agent_core.completion import stream_completion
from agent_core.content import TextContent, ThinkingContent, ToolCall
from agent_core.errors import AgentCoreError, MalformedDataError, ProviderError
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
from agent_core.http_connections import http_session, network_errors
from agent_core.messages import (
    AssistantMessage,
    CustomMessage,
    LlmMessage,
    message_from_dict,
)
from agent_core.models import Model
from agent_core.patience import Patience
from agent_core.redaction import error_text
from agent_core.results import AgentToolResult
from agent_core.sse import SseReader
from agent_core.streaming import (
    THINKING_LEVELS,
    AssistantMessageEvent,
    LlmContext,
    StreamError,
    StreamFn,
    StreamOptions,
    stream_event_from_dict,
)
from agent_core.tools import AgentTool, ToolContext, ToolUpdate

FindModel = Callable[[str, str], Model]
"""Gives the server's model of a provider and id; raises UnknownModelError."""


def stream_proxy(url: str, token: str | None = None) -> StreamFn:
    """Return a stream function that posts to `url`; the token names the client to the server.

    It waits for the server as long as for a model: the attempts that the server makes are all
    within the client's `first_token_timeout`.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def stream(
        model: Model, context: LlmContext, options: StreamOptions
    ) -> AsyncGenerator[AssistantMessageEvent, None]:
        growing = _GrowingMessage(model)
        first_by: float | None = asyncio.get_running_loop().time() + model.first_token_timeout
        async with aclosing(_posted(url, headers, _request(model, context, options))) as events:
            with closing(Patience()) as patience:
                while (data := await next_in_time(events, patience, model, first_by)) is not None:
                    first_by = None
                    yield growing.take(data)

    return stream


async def _posted(
    url: str, headers: Mapping[str, str], request: JsonObject
) -> AsyncGenerator[str, None]:
    """The data of each event that answers a request."""
    session = await http_session()
    reader = SseReader()
    try:
        async with session.post(url, json=request, headers=headers) as response:
            if response.status >= 400:
                text = f"The proxy refused the call: {response.status}"
                retryable = is_retryable(response.status)
                raise ProviderError(text, status=response.status, retryable=retryable)
            async for piece in response.content.iter_any():
                for data in reader.feed(piece):
                    yield data
            for data in reader.end():
                yield data
    except network_errors() as error:
        text = str(error) or type(error).__name__
        raise ProviderError(f"Connection failed: {text}", retryable=True) from error


class _GrowingMessage:
    """Grows the partial message from events that come without it."""

    def __init__(self, model: Model) -> None:
        self._message = AssistantMessage([], model.id, model.provider)
        self._calls: dict[int, GrowingCall] = {}

    def take(self, data: str) -> AssistantMessageEvent:
        try:
            fields = json_object(json.loads(data), "an event")
            self._grow(fields)
            return stream_event_from_dict(fields, self._message)
        except (ValueError, LookupError) as error:
            raise ProviderError("The proxy sent what is no event") from error

    def _grow(self, fields: JsonObject) -> None:
        kind = fields.get("type")
        content = self._message.content
        if kind == "text_start":
            content.append(TextContent(""))
        elif kind == "thinking_start":
            content.append(ThinkingContent(""))
        elif kind == "toolcall_start":
            call = ToolCall(optional(fields, "id", str, ""), optional(fields, "name", str, ""))
            self._calls[len(content)] = GrowingCall(call, len(content))
            content.append(call)
        elif kind in {"text_delta", "thinking_delta", "toolcall_delta"}:
            index = require(fields, "content_index", int)
            self._add(index, require(fields, "delta", str))
        elif kind == "thinking_end":
            block = content[require(fields, "content_index", int)]
            if isinstance(block, ThinkingContent):
                block.signature = maybe(fields, "signature", str)
        elif kind == "toolcall_end":
            end = stream_event_from_dict(fields, self._message)
            content[require(fields, "content_index", int)] = end.tool_call  # type: ignore[union-attr]

    def _add(self, index: int, delta: str) -> None:
        block = self._message.content[index]
        if isinstance(block, TextContent):
            block.text += delta
        elif isinstance(block, ThinkingContent):
            block.thinking += delta
        else:
            self._calls[index].grow(delta)


def _request(model: Model, context: LlmContext, options: StreamOptions) -> dict[str, Any]:
    return {
        "provider": model.provider,
        "model": model.id,
        "system_prompt": context.system_prompt,
        "messages": [message.to_dict() for message in context.messages],
        "tools": [
            {"name": tool.name, "description": tool.description, "parameters": tool.schema}
            for tool in context.tools
        ],
        "session_id": options.session_id,
        "reasoning": options.reasoning,
        "thinking_budgets": dict(options.thinking_budgets) if options.thinking_budgets else None,
        "temperature": options.temperature,
        "max_tokens": options.max_tokens,
    }


async def serve_proxy(
    body: bytes | str,
    find_model: FindModel,
    stream_fn: StreamFn | None = None,
    *,
    api_key: str | None = None,
    cancel: CancelEvent | None = None,
) -> AsyncGenerator[bytes, None]:
    """Answer a client's request: give the bytes of an event stream, in any web framework.

    The caller has checked who the client is, and bounds the size of the body.
    """
    try:
        fields = json_object(json.loads(body), "a request")
        model = find_model(require(fields, "provider", str), require(fields, "model", str))
        context = _context(fields)
        options = _options(fields, api_key)
    except (ValueError, AgentCoreError) as error:
        failed = AssistantMessage([], stop_reason="error", error_message=error_text(error))
        yield _encoded(StreamError("error", failed))
        return
    events = stream_completion(model, context, options, stream_fn=stream_fn, cancel=cancel)
    async with aclosing(events):
        async for event in events:
            yield _encoded(event)


def _encoded(event: AssistantMessageEvent) -> bytes:
    return f"data: {json.dumps(event.to_dict())}\n\n".encode()


def _context(fields: JsonObject) -> LlmContext:
    return LlmContext(
        optional(fields, "system_prompt", str, ""),
        items(fields, "messages", _llm_message),
        items(fields, "tools", _tool) if fields.get("tools") else [],
    )


def _llm_message(data: object) -> LlmMessage:
    message = message_from_dict(data)
    if isinstance(message, CustomMessage):
        raise MalformedDataError(f"a model cannot be given a message of role {message.role!r}")
    return message


def _tool(data: object) -> AgentTool:
    fields = json_object(data, "a tool")
    name = require(fields, "name", str)
    return AgentTool(
        name,
        name,
        require(fields, "description", str),
        require(fields, "parameters", dict),
        _runs_at_the_client,
    )


async def _runs_at_the_client(
    _: str, __: Any, ___: ToolContext, ____: ToolUpdate
) -> AgentToolResult:
    return AgentToolResult.error("This tool runs at the client")


def _options(fields: JsonObject, api_key: str | None) -> StreamOptions:
    temperature = fields.get("temperature")
    budgets: JsonObject = optional(fields, "thinking_budgets", dict, {})
    return StreamOptions(
        api_key=api_key,
        session_id=maybe(fields, "session_id", str),
        reasoning=one_of(fields, "reasoning", THINKING_LEVELS) if fields.get("reasoning") else None,
        thinking_budgets={level: require(budgets, level, int) for level in budgets} or None,
        temperature=None if temperature is None else number(fields, "temperature"),
        max_tokens=maybe(fields, "max_tokens", int),
    )
