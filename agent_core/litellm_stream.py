"""The way to a model through litellm: all providers, at about 0.4 ms of CPU per chunk.

The package is imported at the first call (about four seconds of CPU) or when `preload` is called.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from agent_core.assembly import ChatChunk, ToolCallPiece
from agent_core.attempts import is_retryable, retry_after_seconds, streamed_answer
from agent_core.chat_format import chat_messages, sampling, tool_definitions, usage_of
from agent_core.errors import ProviderError
from agent_core.litellm_package import litellm, rehearse
from agent_core.loop_turns import next_turn
from agent_core.models import Model
from agent_core.prompt_cache import prompt_cache_of
from agent_core.streaming import AssistantMessageEvent, LlmContext, StreamOptions
from agent_core.thinking import thinking_budget, thinking_level

_NO_KEY = re.compile(r"\bmissing (?:credentials|\w+ api key)", re.IGNORECASE)
"""What is said where nobody gave a key: nothing was asked, and no further try would help."""


def preload() -> None:
    """Make litellm ready now, so that no user waits for it; from a thread where a loop runs."""
    rehearse()


async def stream_litellm(
    model: Model, context: LlmContext, options: StreamOptions
) -> AsyncGenerator[AssistantMessageEvent, None]:
    """Call a model through litellm; a StreamFn."""
    # On the loop's own thread the import would stop everything else for seconds.
    if not rehearse.cache_info().currsize:
        await asyncio.to_thread(rehearse)
    package = litellm()
    request = _request(package, model, context, options)
    events = streamed_answer(model, options, lambda: _chunks(package, request))
    async with aclosing(events):
        async for event in events:
            yield event


async def embed_litellm(
    model: str, texts: Sequence[str], *, base_url: str | None = None, api_key: str | None = None
) -> list[list[float]]:
    """The vectors of texts, in their order; raises what litellm raises."""
    package = await asyncio.to_thread(litellm)
    provider, _, model_id = model.partition("/")
    known = provider in package.provider_list
    answer = await package.aembedding(
        model=model_id,
        custom_llm_provider=provider if known else "openai",
        input=list(texts),
        api_base=base_url,
        api_key=api_key or (None if known else "none"),
        encoding_format="float",
        timeout=30,
        max_retries=0,
        num_retries=0,
    )
    entries = sorted(answer.data, key=lambda entry: entry["index"])
    return [list(entry["embedding"]) for entry in entries]


def _request(
    package: Any, model: Model, context: LlmContext, options: StreamOptions
) -> dict[str, Any]:
    known = model.provider in package.provider_list
    request: dict[str, Any] = {
        "model": model.id,
        "custom_llm_provider": model.provider if known else "openai",
        "messages": chat_messages(model, context, signed_thinking=True),
        "stream": True,
        "stream_options": {"include_usage": True},
        # The attempt has a patience of its own; litellm's strikes only where that is lost.
        "timeout": max(model.first_token_timeout, model.stall_timeout) + 5.0,
        "max_retries": 0,
        "num_retries": 0,
        # With tools litellm would first look for an MCP gateway of its own, and import `mcp` for
        # it; tools of MCP servers are ordinary tools here.
        "_skip_mcp_handler": True,
        **sampling(model, options),
    }
    _think(request, model, options)
    if prompt_cache_of(model).marked:
        _mark_for_cache(request["messages"])
    if context.tools:
        request["tools"] = tool_definitions(context.tools)
    if model.base_url is not None:
        request["api_base"] = model.base_url
    if options.api_key is not None:
        request["api_key"] = options.api_key
    elif not known:
        # A server of one's own may ask for no key; without one litellm would not even call it.
        request["api_key"] = "none"
    if model.headers:
        request["extra_headers"] = dict(model.headers)
    return request | dict(model.extra)


def _think(request: dict[str, Any], model: Model, options: StreamOptions) -> None:
    level = thinking_level(model, options.reasoning)
    if level is None:
        return
    if "claude" not in model.id:
        request["reasoning_effort"] = level
    else:
        budget = thinking_budget(level, options, model.max_tokens)
        if budget is None:
            return
        # Claude's thinking counts against the cap of the answer, so the cap grows with it.
        request["max_tokens"] = min(request["max_tokens"] + budget, model.max_tokens)
        request["thinking"] = {"type": "enabled", "budget_tokens": budget}
    # Models that think take no temperature.
    request.pop("temperature", None)


def _mark_for_cache(messages: list[dict[str, Any]]) -> None:
    """Mark where Claude's cache is to be cut: other providers find the prefix themselves.

    Marked are the system prompt, which outlives a cut of the window; the history before the newest
    message of the user, which is what the call before left behind; and the end, for the next
    message and for the tool calls that may follow.
    """
    users = [at for at, message in enumerate(messages) if message["role"] == "user"]
    marks = {0, len(messages) - 1} | ({users[-1] - 1} if users and users[-1] > 0 else set())
    for at in marks:
        content = messages[at]["content"]
        if isinstance(content, str) and content:
            content = [{"type": "text", "text": content}]
        if isinstance(content, list) and content:
            content[-1]["cache_control"] = {"type": "ephemeral"}
            messages[at]["content"] = content


async def _chunks(package: Any, request: Mapping[str, Any]) -> AsyncGenerator[ChatChunk, None]:
    try:
        await next_turn()
        response = await package.acompletion(**request)
        if response is None:
            # What litellm makes of a 422 that comes again without the parameters it drops.
            raise ProviderError("422: the provider cannot process the request", status=422)  # noqa: TRY301 - told like every other failure
        async with aclosing(response):
            async for chunk in response:
                _refuse_invented_end(response, chunk)
                yield _chunk(chunk)
                await next_turn()
    except ProviderError:
        raise
    except Exception as error:
        raise _provider_error(error) from error


def _refuse_invented_end(response: Any, chunk: Any) -> None:
    """Raise ProviderError where litellm ends an answer that its provider broke off.

    To a stream that just stops litellm adds a finish reason and a usage of its own reckoning.
    """
    if not chunk.choices or chunk.choices[0].finish_reason is None:
        return
    heard = [
        getattr(response, name, "unknown")
        for name in ("received_finish_reason", "intermittent_finish_reason")
    ]
    if heard == [None, None]:
        raise ProviderError("The model's answer broke off", retryable=True)


def _chunk(chunk: Any) -> ChatChunk:
    usage = getattr(chunk, "usage", None)
    read = ChatChunk(usage=None if usage is None else usage_of(usage.model_dump()))
    if not chunk.choices:
        return read
    choice = chunk.choices[0]
    read.finish_reason = choice.finish_reason
    delta = choice.delta
    read.text = delta.content or ""
    read.thinking = getattr(delta, "reasoning_content", None) or ""
    for block in getattr(delta, "thinking_blocks", None) or ():
        read.signature = block.get("signature") or read.signature
    for call in delta.tool_calls or ():
        read.tool_calls.append(
            ToolCallPiece(
                call.index,
                call.id or "",
                call.function.name or "",
                call.function.arguments or "",
            )
        )
    return read


def _provider_error(error: Exception) -> ProviderError:
    """Return a failure in our terms; litellm's are OpenAI's, with a status for each."""
    error = getattr(error, "original_exception", None) or error
    links = [*_links(error)]
    text = _with_code(str(error), links)
    status = getattr(error, "status_code", None)
    if status in {None, 500} and _NO_KEY.search(text):
        return ProviderError(text, status=401)
    if not isinstance(status, int):
        # No status: the network, or a bug that would come again.
        return ProviderError(text, retryable=isinstance(error, OSError))
    if any(_is_of_the_connection(link) for link in links):
        return ProviderError(text, retryable=True)
    return ProviderError(
        text,
        status=status,
        retry_after=retry_after_seconds(_headers(error).get("retry-after")),
        retryable=is_retryable(status, text),
    )


def _links(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came of, one after the other."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _is_of_the_connection(error: BaseException) -> bool:
    """Whether no status was heard; litellm then says 500 of its own accord."""
    from openai import APIConnectionError, APITimeoutError  # noqa: PLC0415 - litellm brings it

    return isinstance(error, APIConnectionError) and not isinstance(error, APITimeoutError)


def _with_code(text: str, links: Sequence[BaseException]) -> str:
    """Add the provider's own code, which tells an empty account from a busy server."""
    for link in links:
        body = getattr(link, "body", None)
        if isinstance(body, Mapping):
            return f"{text} ({body['code']})" if body.get("code") else text
    return text


def _headers(error: Exception) -> Mapping[str, str]:
    for holder in (getattr(error, "response", None), error):
        for name in ("headers", "litellm_response_headers"):
            headers = getattr(holder, name, None)
            if headers and "retry-after" in headers:
                return dict(headers)
    return {}
