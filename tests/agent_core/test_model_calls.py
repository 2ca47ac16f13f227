"""Real calls over HTTP, both ways: through litellm and directly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent_core.completion import stream_completion
from agent_core.content import ImageContent, TextContent, ThinkingContent, ToolCall
from agent_core.messages import AssistantMessage, ToolResultMessage, Usage, UserMessage
from agent_core.models import Api, Model, ModelCost
from agent_core.streaming import AssistantMessageEvent, LlmContext, StreamOptions, TextDelta
from tests.agent_core.agents import ok
from tests.agent_core.chat_server import (
    DONE,
    ChatServer,
    Cut,
    Hang,
    Piece,
    Refusal,
    call_piece,
    chunk,
    said,
    serving,
    usage_chunk,
)
from tests.agent_core.clock import Leap
from tests.waiting import within

WAYS: list[Api] = ["litellm", "openai"]

pytestmark = [
    pytest.mark.parametrize("api", WAYS),
    # litellm reads fields of pydantic models from instances: the warning would end its stream.
    pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning"),
]


def model_at(server: ChatServer, api: Api, **changes: Any) -> Model:
    settings: dict[str, Any] = {
        "cost": ModelCost(input=1.0, output=2.0, cache_read=0.5),
        "retry_delay": 0.001,
        "first_token_timeout": 20.0,
    }
    provider = changes.pop("provider", "local")
    return Model("m", provider, base_url=server.url, api=api, **(settings | changes))


async def events_of(
    server: ChatServer,
    api: Api,
    context: LlmContext | None = None,
    options: StreamOptions | None = None,
    **changes: Any,
) -> list[AssistantMessageEvent]:
    context = context or LlmContext("be brief", [UserMessage("hi")])
    options = options or StreamOptions(api_key="secret-key-1234")
    model = model_at(server, api, **changes)
    return [event async for event in stream_completion(model, context, options)]


def types(events: list[AssistantMessageEvent]) -> list[str]:
    return [event.type for event in events]


async def test_text_is_streamed_with_usage_and_cost(api: Api) -> None:
    async with serving(said("Hel", "lo")) as server:
        events = await events_of(server, api)

    # What comes at once may be one delta or several.
    kinds = ["start", "text_start", "text_delta", "text_end", "done"]
    assert list(dict.fromkeys(types(events))) == kinds
    assert "".join(event.delta for event in events if isinstance(event, TextDelta)) == "Hello"
    final = events[-1]
    assert final.type == "done"
    assert final.message.text == "Hello"
    assert final.message.stop_reason == "stop"
    assert final.message.usage == Usage(60, 20, 40, 0, 120, (60 + 40 + 20) / 1_000_000)
    sent = server.requests[0]
    assert sent["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
    ]
    assert sent["max_tokens"] == 4096
    assert sent["stream_options"] == {"include_usage": True}
    assert server.headers[0]["authorization"] == "Bearer secret-key-1234"


async def test_tool_calls_are_streamed(api: Api) -> None:
    script: list[Piece] = [
        chunk({"role": "assistant", "content": None}),
        call_piece(0, "c1", "add", '{"a": 1'),
        call_piece(0, None, None, ', "b": 2}'),
        call_piece(1, "c2", "say", '{"text": "no'),
        chunk(finish="tool_calls"),
        usage_chunk(10, 5),
        DONE,
    ]
    async with serving(script) as server:
        events = await events_of(server, api)

    final = events[-1]
    assert final.type == "done", final
    assert final.message.stop_reason == "tool_use"
    first, second = final.message.tool_calls
    assert (first.id, first.name, first.arguments, first.raw) == (
        "c1",
        "add",
        {"a": 1, "b": 2},
        None,
    )
    assert (second.id, second.arguments, second.raw) == ("c2", {}, '{"text": "no')
    assert types(events).count("toolcall_delta") == 3


async def test_calls_that_share_an_index_are_told_apart(api: Api) -> None:
    # As gateways before Gemini send them; a call whose id comes again is no other.
    script: list[Piece] = [
        call_piece(0, "c1", "look", '{"at": '),
        call_piece(0, "c1", "look", '"do'),
        call_piece(0, "c9", None, "or"),
        call_piece(0, None, None, '"}'),
        call_piece(0, "c2", "take", '{"what": '),
        call_piece(1, "c3", "go", '{"far'),
        call_piece(0, None, None, '"lamp"}'),
        call_piece(1, None, None, '": 1}'),
        chunk(finish="tool_calls"),
        DONE,
    ]
    async with serving(script) as server:
        events = await events_of(server, api)

    final = events[-1]
    assert final.type == "done", final
    assert final.message.tool_calls == [
        ToolCall("c1", "look", {"at": "door"}),
        ToolCall("c2", "take", {"what": "lamp"}),
        ToolCall("c3", "go", {"far": 1}),
    ]
    ends = [event for event in events if event.type == "toolcall_end"]
    assert [(end.content_index, end.tool_call.id) for end in ends] == [
        (0, "c1"),
        (1, "c2"),
        (2, "c3"),
    ]


async def test_a_name_may_come_after_the_first_piece_of_a_call(api: Api) -> None:
    script: list[Piece] = [
        call_piece(0, "c1", None, ""),
        call_piece(0, None, "look", '{"at": "door"}'),
        chunk(finish="tool_calls"),
        DONE,
    ]
    async with serving(script) as server:
        final = (await events_of(server, api))[-1]

    assert final.type == "done", final
    assert final.message.tool_calls == [ToolCall("c1", "look", {"at": "door"})]


@pytest.mark.parametrize("provider", ["local", "deepseek", "mistral"])
@pytest.mark.parametrize("reason", ["error", "insufficient_system_resource"])
async def test_half_an_answer_is_not_taken_for_a_whole_one(
    api: Api, provider: str, reason: str
) -> None:
    async with serving(
        [chunk({"content": "The answer is forty-"}), chunk(finish=reason)]
    ) as server:
        final = (await events_of(server, api, provider=provider))[-1]

    assert final.type == "error"
    assert final.error.text == "The answer is forty-"
    assert final.retryable


async def test_thinking_comes_before_the_text(api: Api) -> None:
    script: list[Piece] = [
        chunk({"role": "assistant", "reasoning_content": "hmm"}),
        chunk({"content": "yes"}),
        chunk(finish="stop"),
        DONE,
    ]
    async with serving(script) as server:
        events = await events_of(server, api)

    assert types(events) == [
        "start",
        "thinking_start",
        "thinking_delta",
        "thinking_end",
        "text_start",
        "text_delta",
        "text_end",
        "done",
    ]


async def test_deepseeks_thinking_goes_back_to_it(api: Api) -> None:
    asked = AssistantMessage([ThinkingContent("A die."), ToolCall("c1", "ok")], "m", "deepseek")
    result = ToolResultMessage("c1", "ok", [TextContent("6")])
    context = LlmContext("", [UserMessage("Roll"), asked, result], [ok])
    async with serving(said("Six.")) as server:
        model = Model("m", "deepseek", base_url=server.url, api=api)
        final = (await all_of(stream_completion(model, context, StreamOptions(api_key="k"))))[-1]

    assert final.type == "done"
    assert server.requests[0]["messages"][1]["reasoning_content"] == "A die."


async def all_of(events: AsyncIterator[AssistantMessageEvent]) -> list[AssistantMessageEvent]:
    return [event async for event in events]


async def test_a_length_cut_is_told(api: Api) -> None:
    script: list[Piece] = [chunk({"content": "one two"}), chunk(finish="length"), DONE]
    async with serving(script) as server:
        events = await events_of(server, api)

    final = events[-1]
    assert final.type == "done"
    assert final.reason == "length"


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_passing_failure_is_tried_again(api: Api, status: int) -> None:
    async with serving(Refusal(status), Refusal(status), said("ok")) as server:
        events = await events_of(server, api)

    assert events[-1].type == "done", events[-1]
    assert types(events)[0] == "start"
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404])
async def test_a_lasting_failure_is_told_at_once(api: Api, status: int) -> None:
    refusal = Refusal(status, text="wrong: key secret-key-1234 or Bearer abcdefghijklmnop")
    async with serving(refusal) as server:
        events = await events_of(server, api)

    final = events[-1]
    assert final.type == "error"
    assert final.reason == "error"
    assert "secret-key" not in str(final.error.error_message)
    assert "abcdefgh" not in str(final.error.error_message)
    assert len(server.requests) == 1


async def test_attempts_are_counted(api: Api) -> None:
    async with serving(*[Refusal(503)] * 2) as server:
        events = await events_of(server, api, max_attempts=2)

    assert types(events) == ["error"]
    assert len(server.requests) == 2


async def test_retry_after_is_waited_for(api: Api) -> None:
    async with serving(Refusal(429, {"Retry-After": "0.2"}), said("ok")) as server:
        loop = asyncio.get_running_loop()
        began = loop.time()
        events = await events_of(server, api)
        took = loop.time() - began

    assert events[-1].type == "done", events[-1]
    assert took >= 0.2


async def test_a_long_retry_after_is_not_waited_for(api: Api) -> None:
    options = StreamOptions(api_key="k", max_retry_delay=5)
    async with serving(Refusal(429, {"Retry-After": "3600"})) as server:
        events = await events_of(server, api, options=options)

    assert types(events) == ["error"]


async def test_no_answer_in_time_is_tried_again(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    leap = Leap(monkeypatch)
    async with serving([chunk({"role": "assistant"}), Hang()], said("ok")) as server:
        asking = asyncio.create_task(events_of(server, api))
        await within(server.arrivals.get())
        leap.seconds += 21.0
        events = await asking

    assert events[-1].type == "done", events[-1]
    assert len(server.requests) == 2


async def test_a_stall_ends_the_answer_and_keeps_its_text(api: Api) -> None:
    async with serving([chunk({"content": "Once"}), Hang()]) as server:
        events = await events_of(server, api, stall_timeout=0.2)

    final = events[-1]
    assert final.type == "error"
    assert final.error.text == "Once"
    assert "stalled" in str(final.error.error_message)
    assert len(server.requests) == 1


async def test_a_broken_connection_before_content_is_tried_again(api: Api) -> None:
    async with serving([Cut()], said("ok")) as server:
        events = await events_of(server, api)

    assert events[-1].type == "done", events[-1]
    assert len(server.requests) == 2


async def test_a_server_that_is_not_there_is_told(api: Api) -> None:
    async with serving() as server:
        pass
    events = await events_of(server, api, max_attempts=2)

    assert types(events) == ["error"]


async def test_abort_closes_the_connection(api: Api) -> None:
    cancel = asyncio.Event()
    context = LlmContext("", [UserMessage("hi")])
    async with serving([chunk({"content": "Once"}), Hang()]) as server:
        model = model_at(server, api)
        events = []
        async for event in stream_completion(model, context, cancel=cancel):
            events.append(event)
            cancel.set()
        await within(server.gone.wait())

    final = events[-1]
    assert final.type == "error"
    assert final.reason == "aborted"
    assert final.error.text == "Once"


async def test_calls_share_a_connection(api: Api) -> None:
    async with serving(said("one"), said("two")) as server:
        await events_of(server, api)
        await events_of(server, api)

    first, second = server.peers
    assert first == second


async def test_no_cookie_comes_with_anothers_key(api: Api) -> None:
    async with serving(said("one"), said("two"), cookie="session=of-the-first") as server:
        server.url = server.url.replace("127.0.0.1", "localhost")  # no IP address has cookies
        for key in ("key-of-the-first", "key-of-the-second"):
            await events_of(server, api, options=StreamOptions(api_key=key))

    first, second = server.headers
    assert first["authorization"] != second["authorization"]
    assert "cookie" not in second


async def test_many_calls_run_at_once(api: Api) -> None:
    script: list[Piece] = [chunk({"content": "Once"}), Hang(), chunk(finish="stop"), DONE]
    async with serving(*[script] * 5) as server:
        running = [asyncio.create_task(events_of(server, api)) for _ in range(5)]
        for _ in running:
            await within(server.arrivals.get())
        server.release.set()
        answers = await asyncio.gather(*running)

    assert [events[-1].type for events in answers] == ["done"] * 5


async def test_images_and_tools_are_sent(api: Api) -> None:
    picture = ImageContent("AA==")
    context = LlmContext("", [UserMessage([TextContent("look"), picture])], [ok])
    async with serving(said("a cat")) as server:
        await events_of(server, api, context, images=True)

    sent = server.requests[0]
    assert sent["messages"][0]["content"][1]["image_url"]["url"] == "data:image/png;base64,AA=="
    assert sent["tools"][0]["function"]["name"] == "ok"


async def test_temperature_and_cap_of_the_call_go_before_the_models(api: Api) -> None:
    options = StreamOptions(api_key="k", temperature=0.0, max_tokens=50)
    async with serving(said("ok")) as server:
        await events_of(server, api, options=options, temperature=0.9)

    assert server.requests[0]["temperature"] == 0.0
    assert server.requests[0]["max_tokens"] == 50
