"""Calling models through a server that holds the keys."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from agent_core import (
    AgentEvent,
    AssistantMessage,
    AssistantMessageEvent,
    LlmContext,
    MessageUpdate,
    Model,
    StreamError,
    StreamFn,
    StreamOptions,
    TextContent,
    ThinkingContent,
    ToolCall,
    UnknownModelError,
    UserMessage,
    serve_proxy,
    stream_completion,
    stream_proxy,
)
from agent_core.assembly import ChatChunk, StreamAssembler, ToolCallPiece
from agent_core.proxy_stream import _GrowingMessage
from agent_core.streaming import PARTIAL_EVENTS
from agent_core.testing import SCRIPTED_MODEL, ScriptedModel, failure, streamed
from tests.agent_core.agents import Scripted, ok
from tests.agent_core.chat_server import ChatServer, Hang, Piece, serving
from tests.agent_core.clock import Leap
from tests.waiting import within
from tests.web import served

CONTEXT = LlmContext("SP", [UserMessage("hi", 1)], [ok])


def find_model(provider: str, model_id: str) -> Model:
    if (provider, model_id) != ("test", "scripted"):
        raise UnknownModelError(f"there is no model {provider}/{model_id}")
    return SCRIPTED_MODEL


class Proxy:
    """A server with the server's half of the proxy."""

    def __init__(self, stream_fn: StreamFn) -> None:
        self.stream_fn = stream_fn
        self.url = ""
        self.gone = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != "Bearer client-token":
            return web.Response(status=401)
        response = web.StreamResponse()
        await response.prepare(request)
        events = serve_proxy(await request.read(), find_model, self.stream_fn, api_key="hidden")
        try:
            async for piece in events:
                await response.write(piece)
        except asyncio.CancelledError:
            self.gone.set()
            raise
        finally:
            await events.aclose()
        return response


@asynccontextmanager
async def proxying(stream_fn: StreamFn) -> AsyncIterator[Proxy]:
    proxy = Proxy(stream_fn)
    app = web.Application()
    app.router.add_post("/stream", proxy.answer)
    async with served(app, handler_cancellation=True) as url:
        proxy.url = f"{url}/stream"
        yield proxy


async def call_through(
    proxy: Proxy, model: Model = SCRIPTED_MODEL, token: str | None = "client-token", **options: Any
) -> list[AssistantMessageEvent]:
    stream_fn = stream_proxy(proxy.url, token)
    settings = StreamOptions(**options)
    events = stream_completion(model, CONTEXT, settings, stream_fn=stream_fn)
    return [event async for event in events]


def error_of(events: list[AssistantMessageEvent]) -> str | None:
    final = events[-1]
    return final.error.error_message if final.type == "error" else None


async def test_an_answer_comes_through_as_it_is() -> None:
    message = AssistantMessage(
        [
            ThinkingContent("let me see", "sig"),
            TextContent("two words"),
            ToolCall("c1", "ok", {"a": [1, 2]}),
        ],
        "scripted",
        "test",
        stop_reason="tool_use",
        timestamp=1,
    )
    model = ScriptedModel([message, streamed(message)])
    async with proxying(model) as proxy:
        whole = await call_through(proxy)
        events = await call_through(
            proxy, reasoning="low", thinking_budgets={"low": 5}, temperature=0.5, session_id="s1"
        )

    assert [event.type for event in whole] == ["done"]
    assert [event.type for event in events] == [event.type for event in streamed(message)]
    final = events[-1]
    assert final.type == "done"
    assert final.message == message
    start = events[0]
    assert start.type == "start"
    assert start.partial.content == message.content
    request = model.requests[1]
    assert (request.system_prompt, request.tools) == ("SP", ("ok",))
    assert request.options.api_key == "hidden"
    assert (request.options.reasoning, request.options.temperature) == ("low", 0.5)
    assert request.options.thinking_budgets == {"low": 5}


def test_arguments_grow_as_they_do_without_a_proxy() -> None:
    """They are not read anew with each piece, which for long ones takes up the loop."""
    assembler, growing = StreamAssembler(SCRIPTED_MODEL), _GrowingMessage(SCRIPTED_MODEL)
    text = '{"text": "' + "once upon a time " * 40
    piece = ToolCallPiece(0, "c1", "write")
    seen = []
    for delta in ("", *(text[at : at + 8] for at in range(0, len(text), 8))):
        piece.arguments = delta
        for event in assembler.take(ChatChunk(tool_calls=[piece])):
            told = growing.take(json.dumps(event.to_dict()))
        assert isinstance(told, PARTIAL_EVENTS)
        own, through = assembler.message.tool_calls, told.partial.tool_calls
        seen.append((own[0].arguments, through[0].arguments))

    assert [through for _, through in seen] == [own for own, _ in seen]
    assert seen[-1][1]["text"].startswith("once upon")


async def test_an_agent_talks_through_a_proxy() -> None:
    async with proxying(ScriptedModel(["hello there"])) as proxy:
        scripted = Scripted([], stream_fn=stream_proxy(proxy.url, "client-token"))
        await scripted.agent.prompt("hi")

    assert scripted.texts() == ["hi", "hello there"]


async def test_failures_come_through() -> None:
    async with proxying(ScriptedModel([failure("E1")])) as proxy:
        failed = await call_through(proxy)
        unknown = await call_through(proxy, Model("other", "test", base_url="http://inside/"))
        refused = await call_through(proxy, token=None)

    assert [error_of(events) for events in (failed, unknown, refused)] == [
        "E1",
        "there is no model test/other",
        "The proxy refused the call: 401",
    ]


async def test_a_proxy_that_is_not_there_is_told() -> None:
    async with proxying(ScriptedModel([])) as proxy:
        pass
    (event,) = await call_through(proxy)

    assert event.type == "error"
    assert "Connection failed" in str(event.error.error_message)


async def call_at(server: ChatServer, **changes: float) -> list[AssistantMessageEvent]:
    model = replace(SCRIPTED_MODEL, **changes)  # type: ignore[arg-type]
    stream_fn = stream_proxy(f"{server.url}/chat/completions")
    return [event async for event in stream_completion(model, CONTEXT, stream_fn=stream_fn)]


async def test_a_proxy_that_is_silent_is_waited_for_as_a_model_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leap = Leap(monkeypatch)
    async with serving([Hang()]) as server:
        calling = asyncio.create_task(call_at(server, first_token_timeout=20.0))
        await within(server.arrivals.get())
        leap.seconds += 21.0
        (failed,) = await within(calling)
        await within(server.gone.wait())

    assert isinstance(failed, StreamError)
    assert failed.error.error_message == "The model did not answer within 20 seconds"
    assert failed.retryable


async def test_a_proxy_that_stalls_ends_the_answer_and_keeps_its_text() -> None:
    begun = streamed(AssistantMessage([TextContent("Once")]))[:3]
    script: list[Piece] = [f"data: {json.dumps(event.to_dict())}\n\n" for event in begun]
    async with serving([*script, Hang()]) as server:
        events = await within(call_at(server, stall_timeout=0.2))

    final = events[-1]
    assert [event.type for event in events] == [*(event.type for event in begun), "error"]
    assert isinstance(final, StreamError)
    assert final.error.text == "Once"
    assert "stalled" in str(final.error.error_message)


async def test_abort_goes_through_to_the_model() -> None:
    async def play(stream: Any, _: object) -> None:
        for event in streamed(AssistantMessage([TextContent("Once")]))[:3]:
            stream.push(event)
        await asyncio.Event().wait()

    async with proxying(ScriptedModel([play])) as proxy:
        scripted = Scripted([], stream_fn=stream_proxy(proxy.url, "client-token"))

        def stop(event: AgentEvent) -> None:
            if isinstance(event, MessageUpdate) and event.message.text:
                scripted.agent.abort()

        scripted.agent.subscribe(stop)
        await scripted.agent.prompt("hi")
        await within(proxy.gone.wait())

    assert scripted.texts() == ["hi", "Once"]
    assert scripted.agent.state.error == "Request was aborted"


@pytest.mark.parametrize(
    "data",
    [
        "no json",
        "[]",
        '{"type": "odd", "content_index": 0}',
        '{"type": "text_delta", "content_index": 3, "delta": "x"}',
        '{"type": "done", "reason": "stop"}',
    ],
)
async def test_a_proxy_that_sends_nonsense_is_told(data: str) -> None:
    async def nonsense(_: web.Request) -> web.Response:
        return web.Response(text=f"data: {data}\n\n")

    app = web.Application()
    app.router.add_post("/stream", nonsense)
    proxy = Proxy(ScriptedModel([]))
    async with served(app) as url:
        proxy.url = f"{url}/stream"
        (event,) = await call_through(proxy)

    assert event.type == "error"
    assert event.error.error_message == "The proxy sent what is no event"


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"{", "Expecting"),
        (b"[]", "must be an object"),
        (b"{}", "'provider' is missing"),
        (json.dumps({"provider": "test", "model": "scripted"}).encode(), "'messages'"),
        (
            json.dumps(
                {"provider": "test", "model": "scripted", "messages": [{"role": "note"}]}
            ).encode(),
            "cannot be given a message of role 'note'",
        ),
        (
            json.dumps(
                {
                    "provider": "test",
                    "model": "scripted",
                    "messages": [],
                    "thinking_budgets": {"low": "much"},
                }
            ).encode(),
            "'low' must be int",
        ),
    ],
)
async def test_a_request_that_is_malformed_is_refused(body: bytes, problem: str) -> None:
    (piece,) = [piece async for piece in serve_proxy(body, find_model, ScriptedModel([]))]

    event = json.loads(piece.removeprefix(b"data: "))
    assert event["type"] == "error"
    assert problem in event["error"]["error_message"]


async def test_a_tool_of_a_client_does_not_run_at_the_server() -> None:
    model = ScriptedModel(["x"])
    seen: list[Any] = []

    async def look(chosen: Model, context: LlmContext, options: StreamOptions) -> Any:
        seen.extend(context.tools)
        return await model(chosen, context, options)

    async with proxying(look) as proxy:
        await call_through(proxy)

    result = await seen[0].execute("c1", {}, None, None)
    assert result.is_error
