"""The lean way to a model: OpenAI's chat completions straight over pooled connections.

For OpenAI and every server that speaks its protocol, at a small part of litellm's cost.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

from agent_core.assembly import ChatChunk, ToolCallPiece
from agent_core.attempts import is_retryable, retry_after_seconds, streamed_answer
from agent_core.chat_format import chat_messages, said_in, sampling, tool_definitions, usage_of
from agent_core.errors import ProviderError
from agent_core.http_connections import http_session, network_errors
from agent_core.models import Model
from agent_core.partial_json import as_text
from agent_core.reading_pace import PacedReading
from agent_core.sse import SseReader
from agent_core.streaming import AssistantMessageEvent, LlmContext, StreamOptions
from agent_core.thinking import thinking_level

if TYPE_CHECKING:
    from aiohttp import ClientResponse

_BASE_URLS = {
    "deepseek": "https://api.deepseek.com/v1",
    "groq": "https://api.groq.com/openai/v1",
    "mistral": "https://api.mistral.ai/v1",
    "openai": "https://api.openai.com/v1",
    "openrouter": "https://openrouter.ai/api/v1",
    "together_ai": "https://api.together.xyz/v1",
    "xai": "https://api.x.ai/v1",
}

_MAX_ERROR_BYTES = 64 * 1024


async def stream_openai(
    model: Model, context: LlmContext, options: StreamOptions
) -> AsyncGenerator[AssistantMessageEvent, None]:
    """Call a model over OpenAI's protocol; a StreamFn."""
    url = f"{base_url(model)}/chat/completions"
    request = json.dumps(_request(model, context, options), separators=(",", ":")).encode()
    headers = {"Accept": "text/event-stream", **request_headers(model, options.api_key)}
    events = streamed_answer(model, options, lambda: _chunks(url, request, headers))
    async with aclosing(events):
        async for event in events:
            yield event


def base_url(model: Model) -> str:
    """Where the model is asked, without a slash at the end; raises ProviderError."""
    url = model.base_url or _BASE_URLS.get(model.provider)
    if url is None:
        raise ProviderError(f"{model.name} has no base_url")
    return url.rstrip("/")


def _request(model: Model, context: LlmContext, options: StreamOptions) -> dict[str, Any]:
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    return streamed | chat_request(model, context, options)


def chat_request(model: Model, context: LlmContext, options: StreamOptions) -> dict[str, Any]:
    """Return the body of a request, as it is for an answer in one piece."""
    request: dict[str, Any] = {
        "model": model.id,
        "messages": chat_messages(model, context, signed_thinking=False),
        **sampling(model, options),
    }
    if model.provider == "openai" and model.base_url is None:
        # The newer models of OpenAI itself know only this name, others only the old one.
        request["max_completion_tokens"] = request.pop("max_tokens")
    if context.tools:
        request["tools"] = tool_definitions(context.tools)
    level = thinking_level(model, options.reasoning)
    if level is not None:
        request["reasoning_effort"] = level
        request.pop("temperature", None)
    return request | dict(model.extra)


def request_headers(model: Model, api_key: str | None) -> dict[str, str]:
    """Return the headers of a request with JSON in it."""
    headers = {"Content-Type": "application/json"}
    key = api_key or os.environ.get(f"{model.provider.upper()}_API_KEY")
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return headers | dict(model.headers)


async def _chunks(
    url: str, request: bytes, headers: Mapping[str, str]
) -> AsyncGenerator[ChatChunk, None]:
    session = await http_session()
    reader = SseReader()
    began = False
    try:
        with PacedReading() as reading:
            async with session.post(url, data=request, headers=headers) as response:
                if response.status >= 400:
                    raise await refused(response)
                async for piece in response.content.iter_any():
                    events = reader.feed(piece)
                    for chunk in _joined(events):
                        began = began or chunk.has_content()
                        yield chunk
                    if events and events[-1].strip() == "[DONE]":
                        return
                    if began and response.connection is not None:
                        reading.rest(response.connection.transport)
                for chunk in _joined(reader.end()):
                    yield chunk
    except network_errors() as error:
        text = str(error) or type(error).__name__
        raise ProviderError(f"Connection failed: {text}", retryable=True) from error


async def refused(response: ClientResponse) -> ProviderError:
    """Return the error that a response of 400 and above stands for, by what comes of its body."""
    body = bytearray()
    with suppress(*network_errors()):
        async for piece in response.content.iter_any():
            body += piece
            if len(body) >= _MAX_ERROR_BYTES:
                break
    return refusal(response.status, response.headers, bytes(body))


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
    """Return the error that an HTTP status of 400 and above stands for."""
    text = body.decode("utf-8", "replace")
    try:
        text = _error_text(json.loads(text)["error"])
    except (ValueError, LookupError, TypeError):
        text = text[:500]
    return ProviderError(
        f"{status}: {text or 'no reason given'}",
        status=status,
        retry_after=retry_after_seconds(headers.get("Retry-After")),
        retryable=is_retryable(status, text),
    )


def _joined(events: Sequence[str]) -> Iterator[ChatChunk]:
    """The chunks of what came at once; text that follows text is of one chunk.

    Raises:
        ProviderError: one of them is an error, or none of ours; those before it are given.
    """
    text = ""
    try:
        for data in events:
            if data.strip() == "[DONE]":
                break
            chunk = _chunk(data)
            if chunk.is_text():
                text += chunk.text
                continue
            if text:
                yield ChatChunk(text)
                text = ""
            yield chunk
    except ProviderError:
        if text:
            yield ChatChunk(text)
        raise
    if text:
        yield ChatChunk(text)


def _error_text(error: Any) -> str:
    if not isinstance(error, Mapping):
        return str(error)
    text = str(error.get("message") or error)
    code = error.get("code")
    return f"{text} ({code})" if code else text


def _chunk(data: str) -> ChatChunk:
    try:
        chunk = json.loads(data)
        if chunk.get("error"):
            raise _error_in_stream(chunk["error"])
        if not chunk.get("choices") and isinstance(chunk.get("message"), str):
            raise _error_in_stream(chunk)  # as vLLM and some gateways send errors
        return _read_chunk(chunk)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ProviderError(
            f"The server sent what is no chunk of an answer: {data[:200]}", retryable=True
        ) from error


def _error_in_stream(error: Any) -> ProviderError:
    code = error.get("code") if isinstance(error, Mapping) else None
    status = code if isinstance(code, int) else None
    text = _error_text(error)
    return ProviderError(
        text, status=status, retryable=status is None or is_retryable(status, text)
    )


def _read_chunk(chunk: Mapping[str, Any]) -> ChatChunk:
    usage = chunk.get("usage")
    read = ChatChunk(usage=usage_of(usage) if usage else None)
    choices = chunk.get("choices")
    if not choices:
        return read
    choice = choices[0]
    read.finish_reason = _text(choice.get("finish_reason")) or None
    # Who does not stream sends a message; with a delta beside it it is what was said so far.
    delta = choice.get("delta", choice.get("message")) or {}
    read.text, thinking = said_in(delta.get("content"))
    read.thinking = _text(delta.get("reasoning_content") or delta.get("reasoning")) or thinking
    for call in delta.get("tool_calls") or ():
        function = call.get("function") or {}
        index, arguments = call.get("index"), function.get("arguments")
        read.tool_calls.append(
            ToolCallPiece(
                None if index is None else int(index),
                _text(call.get("id")),
                _text(function.get("name")),
                # Some servers send them whole and do not write them as a text.
                as_text(arguments) if isinstance(arguments, dict) else _text(arguments),
            )
        )
    return read


def _text(value: object) -> str:
    """A field that is a text or null; raises TypeError for another, which no message may hold."""
    if value is None or isinstance(value, str):
        return value or ""
    raise TypeError(f"{type(value).__name__} is no text")
