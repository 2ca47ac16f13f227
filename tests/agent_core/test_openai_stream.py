"""The lean way: what only it has to do for itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent_core import (
    AssistantMessageEvent,
    LlmContext,
    Model,
    ProviderError,
    StreamDone,
    StreamError,
    StreamOptions,
    TextContent,
    ThinkingContent,
    ToolCall,
    Usage,
    UserMessage,
    complete,
    stream_model,
)
from agent_core.chat_format import usage_of
from agent_core.http_connections import close_connections, http_session
from agent_core.openai_stream import _request, refusal, request_headers
from tests.agent_core.chat_server import DONE, Cut, Hang, Piece, Refusal, chunk, serving

CONTEXT = LlmContext("", [UserMessage("hi")])


async def test_connections_can_be_closed_and_come_again() -> None:
    await close_connections()
    first = await http_session()
    assert await http_session() is first

    await close_connections()

    assert first.closed
    assert await http_session() is not first


def test_openai_itself_wants_another_name_for_the_cap() -> None:
    own = _request(Model("gpt", "openai"), CONTEXT, StreamOptions())
    other = _request(Model("gpt", "openai", base_url="http://h"), CONTEXT, StreamOptions())

    assert "max_completion_tokens" in own
    assert "max_tokens" in other


def test_thinking_takes_no_temperature() -> None:
    model = Model("o9", "openai", reasoning=True, temperature=0.5)
    request = _request(model, CONTEXT, StreamOptions(reasoning="low"))

    assert request["reasoning_effort"] == "low"
    assert "temperature" not in request


def test_keys_come_from_the_call_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model("m", "mine", headers={"X": "1"})
    monkeypatch.delenv("MINE_API_KEY", raising=False)

    assert "Authorization" not in request_headers(model, None)
    assert request_headers(model, None)["X"] == "1"
    monkeypatch.setenv("MINE_API_KEY", "from-environment")
    assert request_headers(model, None)["Authorization"] == "Bearer from-environment"
    assert request_headers(model, "k")["Authorization"] == "Bearer k"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error": {"message": "no such model", "code": "missing"}}', "no such model (missing)"),
        (b'{"error": "gone"}', "gone"),
        (b"<html>Bad Gateway</html>", "<html>Bad Gateway</html>"),
        (b"", "no reason given"),
    ],
)
def test_refusals_are_told_whatever_their_form(body: bytes, text: str) -> None:
    assert str(refusal(502, {}, body)) == f"502: {text}"


async def test_a_failure_tells_status_and_wait() -> None:
    async with serving(Refusal(429, {"Retry-After": "3600"})) as server:
        model = Model("m", "local", base_url=server.url, api="openai")
        events = [event async for event in stream_model(model, CONTEXT, StreamOptions())]

    (failed,) = events
    assert isinstance(failed, StreamError)
    assert (failed.status, failed.retry_after) == (429, 3600.0)


async def test_a_single_call_that_fails_tells_status_and_wait() -> None:
    async with serving(Refusal(429, {"Retry-After": "3600"})) as server:
        model = Model("m", "local", base_url=server.url, api="openai")
        with pytest.raises(ProviderError, match="refused") as caught:
            await complete(model, CONTEXT)

    error = caught.value
    assert (error.status, error.retry_after, error.retryable) == (429, 3600.0, True)


async def test_a_refusal_is_read_to_its_end() -> None:
    empty = Refusal(429, text="no money", code="insufficient_quota", within=Hang())
    async with serving(empty) as server:
        model = Model("m", "local", base_url=server.url, api="openai", retry_delay=0.001)
        asking = asyncio.create_task(_last(stream_model(model, CONTEXT, StreamOptions())))
        await server.arrivals.get()
        done, _ = await asyncio.wait({asking}, timeout=0.2)
        server.release.set()
        failed = await asking

    assert not done
    assert isinstance(failed, StreamError)
    assert failed.error.error_message == "429: no money (insufficient_quota)"
    assert (failed.status, failed.retryable, len(server.requests)) == (429, False, 1)


async def test_a_refusal_that_breaks_off_is_told_as_far_as_it_came() -> None:
    async with serving(Refusal(401, within=Cut())) as server:
        model = Model("m", "local", base_url=server.url, api="openai")
        failed = await _last(stream_model(model, CONTEXT, StreamOptions()))

    assert isinstance(failed, StreamError)
    assert failed.error.error_message == '401: {"error": {"message"'
    assert (failed.status, failed.retryable) == (401, False)


async def _last(events: AsyncIterator[AssistantMessageEvent]) -> AssistantMessageEvent:
    return [event async for event in events][-1]


async def test_what_is_no_stream_is_a_failure() -> None:
    async with serving(["data: {broken\n\n"], [chunk({"content": "half"})]) as server:
        model = Model("m", "local", base_url=server.url, api="openai", max_attempts=1)
        first = [event async for event in stream_model(model, CONTEXT, StreamOptions())][-1]
        second = [event async for event in stream_model(model, CONTEXT, StreamOptions())][-1]

    assert isinstance(first, StreamError)
    assert isinstance(second, StreamError)
    assert "no chunk of an answer" in str(first.error.error_message)
    assert "broke off" in str(second.error.error_message)


WHOLE = {
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "It is open.",
                "tool_calls": [{"id": "c1", "function": {"name": "look", "arguments": "{}"}}],
            },
            "finish_reason": "tool_calls",
        }
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 4},
}


async def ended(*script: Piece) -> AssistantMessageEvent:
    """How an answer ends whose body is this and no more; the server is asked once."""
    async with serving(script) as server:
        model = Model("m", "local", base_url=server.url, api="openai")
        return await _last(stream_model(model, CONTEXT, StreamOptions()))


async def test_an_answer_may_come_whole() -> None:
    done = await ended(json.dumps(WHOLE, indent=1))

    assert isinstance(done, StreamDone)
    assert done.message.content == [TextContent("It is open."), ToolCall("c1", "look", {})]
    assert done.message.usage == Usage(3, 4, 0, 0, 7)


async def test_what_was_said_so_far_is_not_said_again() -> None:
    # As Perplexity sends it beside each delta.
    last = chunk(finish="stop")
    last["choices"][0]["message"] = {"content": "Hi"}
    done = await ended(chunk({"content": "Hi"}), last, DONE)

    assert isinstance(done, StreamDone)
    assert done.message.text == "Hi"


@pytest.mark.parametrize("rest", ["", "\n"])
async def test_the_last_event_of_an_answer_needs_no_blank_line(rest: str) -> None:
    done = await ended(chunk({"content": "Hi"}), f"data: {json.dumps(chunk(finish='stop'))}{rest}")

    assert isinstance(done, StreamDone)
    assert done.message.text == "Hi"


@pytest.mark.parametrize(
    "body",
    [
        'data: {"object": "error", "message": "context too long", "code": 400}\n\n',
        'event: error\ndata: {"message": "context too long", "code": 400}\n\n',
        '{"error": {"message": "context too long", "code": 400}}',
        '{"object": "error", "message": "context too long", "code": 400}',
    ],
)
async def test_an_error_is_told_whatever_its_form(body: str) -> None:
    failed = await ended(body)

    assert isinstance(failed, StreamError)
    assert failed.error.error_message == "context too long (400)"
    assert not failed.retryable


def text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


async def test_content_may_come_in_parts() -> None:
    # As Mistral's models that think send it; of a reference they name the ids.
    contents: list[object] = [
        "",
        [{"type": "thinking", "thinking": [text_part("Hm"), text_part(", a")]}],
        [{"type": "thinking", "thinking": [text_part(" door.")], "closed": True}],
        [{"type": "reference", "reference_ids": [1]}, {"type": "text", "text": None}],
        [text_part("It is"), text_part(" op")],
        "en",
        [{"type": "thinking", "thinking": "Is it?"}, text_part(".")],
    ]
    script: list[Piece] = [*(chunk({"content": one}) for one in contents), chunk(finish="stop")]
    async with serving([*script, DONE]) as server:
        model = Model("m", "local", base_url=server.url, api="openai")
        final = [event async for event in stream_model(model, CONTEXT, StreamOptions())][-1]

    assert isinstance(final, StreamDone)
    assert final.message.content == [
        ThinkingContent("Hm, a door."),
        TextContent("It is open"),
        ThinkingContent("Is it?"),
        TextContent("."),
    ]


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (5, "5"),
        ({"text": "x"}, '{"text": "x"}'),
        (["x"], '["x"]'),
        ([{"type": "thinking", "thinking": 5}], "5"),
    ],
)
async def test_content_that_is_none_is_told_once(content: object, shown: str) -> None:
    async with serving([chunk({"content": content}), DONE]) as server:
        model = Model("m", "local", base_url=server.url, api="openai")
        (failed,) = [event async for event in stream_model(model, CONTEXT, StreamOptions())]

    assert isinstance(failed, StreamError)
    reason = f"The server sent as content what is neither a text nor parts of one: {shown}"
    assert failed.error.error_message == reason


def call_of(**fields: Any) -> dict[str, Any]:
    """A chunk with a whole call; the fields are its own or its function's."""
    function = {"name": "look", "arguments": "{}"}
    inner = {name: fields.pop(name) for name in function if name in fields}
    return chunk({"tool_calls": [{"index": 0, "id": "c1", "function": function | inner} | fields]})


async def answered(*script: Piece) -> AssistantMessageEvent:
    """How an answer ends that is asked for once."""
    async with serving([*script, chunk(finish="stop"), DONE]) as server:
        model = Model("m", "local", base_url=server.url, api="openai", max_attempts=1)
        return await _last(stream_model(model, CONTEXT, StreamOptions()))


@pytest.mark.parametrize(
    "odd",
    [
        call_of(id=7),
        call_of(name=["look"]),
        call_of(arguments=[1]),
        call_of(index=[0]),
        chunk({"reasoning_content": {"summary": "Hm."}}),
        chunk({"content": "x"}) | {"choices": [{"delta": {}, "finish_reason": {"type": "stop"}}]},
        f"data: {'[' * 100_000}\n\n",
    ],
    ids=["id", "name", "arguments", "index", "thinking", "finish reason", "depth"],
)
async def test_a_field_of_another_kind_is_no_chunk(odd: Piece) -> None:
    failed = await answered(odd)

    assert isinstance(failed, StreamError)
    assert failed.retryable
    assert str(failed.error.error_message).startswith("The server sent what is no chunk")
    assert failed.error.content == []


async def test_arguments_may_come_as_an_object() -> None:
    done = await answered(call_of(arguments={"at": "door"}, index="0"))

    assert isinstance(done, StreamDone)
    assert done.message.content == [ToolCall("c1", "look", {"at": "door"})]


@pytest.mark.parametrize(
    ("count", "read"), [(7, 7), (7.0, 7), (-7, 0), (True, 0), ("7", 0), (10**30, 0), (1e999, 0)]
)
def test_only_a_count_is_counted(count: object, read: int) -> None:
    assert usage_of({"completion_tokens": count}) == Usage(output=read, total_tokens=read)


@pytest.mark.parametrize(("total", "output"), [(110, 10), (107, 7), (120, 7), (None, 7)])
def test_thinking_is_part_of_the_output(total: int | None, output: int) -> None:
    # 107 where the provider counts thinking to the answer, 110 where it counts it beside
    usage = usage_of(
        {
            "prompt_tokens": 100,
            "completion_tokens": 7,
            "completion_tokens_details": {"reasoning_tokens": 3},
            "total_tokens": total,
        }
    )

    assert (usage.input, usage.output, usage.total_tokens) == (100, output, total or 107)
