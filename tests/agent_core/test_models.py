"""Models: what is publicly known of them, their formats, chunks and levels of thinking."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from agent_core import (
    AgentTool,
    AssistantMessage,
    ImageContent,
    LlmContext,
    LlmMessage,
    Model,
    ModelCost,
    ProviderError,
    StreamOptions,
    TextContent,
    ThinkingContent,
    ToolCall,
    ToolResultMessage,
    Usage,
    UserMessage,
    get_model,
)
from agent_core.assembly import ChatChunk, StreamAssembler, ToolCallPiece
from agent_core.attempts import retry_after_seconds, retry_delay
from agent_core.chat_format import chat_messages, tool_definitions, usage_of
from agent_core.litellm_package import litellm
from agent_core.litellm_stream import _provider_error, _request, preload
from agent_core.openai_stream import _chunk, stream_openai
from agent_core.partial_json import partial_arguments, whole_arguments
from agent_core.redaction import redact
from agent_core.sse import SseReader
from agent_core.testing import answer, call, calls
from agent_core.thinking import thinking_budget, thinking_level
from tests.agent_core.agents import ok

ROOT = Path(__file__).parents[2]


def test_public_models_are_known() -> None:
    model = get_model("openai", "gpt-4o-mini", temperature=0.3)

    assert (model.context_window, model.max_tokens) == (128_000, 16_384)
    assert model.cost == ModelCost(0.15, 0.6, 0.075, 0.15)
    assert (model.images, model.tools, model.temperature) == (True, True, 0.3)
    assert get_model("anthropic", "claude-sonnet-4-5").reasoning
    assert get_model("nobody", "gpt-4o-mini").cost == ModelCost()
    assert get_model("nobody", "nothing") == Model("nothing", "nobody")


def test_an_answer_leaves_room_for_its_request() -> None:
    model = get_model("ollama", "llama3.1")  # may fill its whole window with an answer

    assert (model.context_window, model.max_tokens) == (8_192, 2_048)
    assert get_model("ollama", "llama3.1", max_tokens=8_000).max_tokens == 8_000
    assert get_model("nobody", "nothing", context_window=2_000).max_tokens == 500


def test_a_cache_without_a_price_of_its_own_is_not_free() -> None:
    model = get_model("fireworks_ai", "accounts/fireworks/models/deepseek-v3")

    assert model.cost == ModelCost(0.9, 0.9, 0.9, 0.9)


def test_a_usage_is_priced() -> None:
    model = Model("m", "p", cost=ModelCost(1, 2, 0.1, 1.25))

    assert model.price(Usage(100, 10, 1_000, 4)).cost == pytest.approx(0.000225)


def import_in_a_process(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("COVERAGE_PROCESS_START", None)
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    return ran.stdout


def test_importing_the_library_is_light() -> None:
    heavy = import_in_a_process(
        "import sys, agent_core\n"
        "print([m for m in ('litellm', 'pydantic', 'aiohttp', 'httpx', 'mcp') if m in sys.modules])"
    )

    assert heavy == "[]\n"


def test_litellm_is_imported_without_calling_home() -> None:
    said = import_in_a_process(
        "import socket\n"
        "def refuse(*a, **k): raise SystemExit('the network was used')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from agent_core.litellm_package import litellm\n"
        "from agent_core.litellm_stream import preload\n"
        "preload()\n"
        "package = litellm()\n"
        "print(package.telemetry, package.suppress_debug_info, package.drop_params)\n"
        "print(package.litellm_mode)"
    )

    assert said == "False True True\nPRODUCTION\n"


def test_two_threads_may_ask_for_litellm_at_once() -> None:
    said = import_in_a_process(
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from threading import Barrier\n"
        "from agent_core.litellm_package import litellm, rehearse\n"
        "both = Barrier(2)\n"
        "def load(_):\n"
        "    both.wait()\n"
        "    rehearse()\n"
        "    return litellm()\n"
        "one, other = ThreadPoolExecutor(2).map(load, range(2))\n"
        "print(one is other)"
    )

    assert said == "True\n"


def test_the_first_call_finds_all_of_litellm_in_place() -> None:
    said = import_in_a_process(
        "import asyncio, sys\n"
        "from agent_core.litellm_package import litellm, rehearse\n"
        "from agent_core.streaming import LlmContext, StreamOptions\n"
        "from agent_core.litellm_stream import stream_litellm\n"
        "from tests.agent_core.chat_server import said, serving\n"
        "from tests.agent_core.test_model_calls import model_at\n"
        "async def call():\n"
        "    async with serving(said('Hel', 'lo')) as server:\n"
        "        before, model = set(sys.modules), model_at(server, 'litellm')\n"
        "        answer = stream_litellm(model, LlmContext('', []), StreamOptions())\n"
        "        return [event.type async for event in answer][-1], set(sys.modules) - before\n"
        "rehearse()\n"
        "print(*asyncio.run(call()))\n"
        "tokenizer = 'litellm.litellm_core_utils.default_encoding'\n"
        "print(tokenizer in sys.modules)\n"
        "print(len(litellm().main.encoding.encode('Hello')), tokenizer in sys.modules)\n"
        "claude = litellm().rust_bridge.tokenizer.anthropic()\n"
        "print(claude.encode('Hello, world').tokens)"
    )

    assert said == "done set()\nFalse\n1 True\n['Hello', ',', 'Ġworld']\n"


# Requests


SIGHTED = Model("m", "p", images=True)


def test_messages_in_the_chat_format() -> None:
    mixed = AssistantMessage([ThinkingContent("hm", "sig"), TextContent("a")], "m", "p")
    image = ImageContent("AA==")
    context = LlmContext(
        "SP",
        [
            UserMessage([TextContent("x"), TextContent("y")]),
            mixed,
            UserMessage([TextContent("look"), image]),
            calls(call("c1", "t", n=1), call("c2", "t")),
            ToolResultMessage("c1", "t", [image]),
            ToolResultMessage("c2", "t", []),
        ],
    )

    chat = chat_messages(SIGHTED, context, signed_thinking=True)

    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    assert chat == [
        {"role": "system", "content": "SP"},
        {"role": "user", "content": "xy"},
        {
            "role": "assistant",
            "content": "a",
            "thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "sig"}],
        },
        {"role": "user", "content": [{"type": "text", "text": "look"}, picture]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "t", "arguments": '{"n": 1}'},
                },
                {"id": "c2", "type": "function", "function": {"name": "t", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "(see the image)"},
        {"role": "tool", "tool_call_id": "c2", "content": "(no output)"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Images from the tool results:"}, picture],
        },
    ]


def test_what_a_model_cannot_use_is_left_out() -> None:
    blind = Model("other", "p")
    context = LlmContext(
        "",
        [
            UserMessage([ImageContent(url="https://example.org/i.png")]),
            AssistantMessage([ThinkingContent("hm", "sig")], "m", "p"),
            ToolResultMessage("c1", "t", [ImageContent("AA==")]),
            UserMessage("next"),
        ],
    )

    chat = chat_messages(blind, context, signed_thinking=True)

    assert chat[0]["content"][0]["text"] == "(an image, which this model cannot see)"
    # An answer that was all thinking says nothing to another model, nor to any without signatures.
    assert [message["role"] for message in chat] == ["user", "tool", "user", "user"]
    own = chat_messages(Model("m", "p"), context, signed_thinking=True)
    assert [message["role"] for message in own] == ["user", "assistant", "tool", "user", "user"]
    assert own[1]["thinking_blocks"][0]["thinking"] == "hm"


GEMINIS_ID = f"call_0123456789__thought__{'Q' * 200}=="


@pytest.mark.parametrize(
    ("model", "call_id", "kept"),
    [
        (Model("large", "mistral"), "Ab3dE6gH9", True),
        (Model("large", "mistral"), "call_PTLP8xhu3uwZk4l3nlnrrJha", False),
        (Model("large", "mistral"), GEMINIS_ID, False),
        (Model("mistral/large", "gateway"), "c1", False),
        (Model("gpt", "openai"), "call_PTLP8xhu3uwZk4l3nlnrrJha", True),
        (Model("gpt", "openai"), "x" * 40, True),
        (Model("gpt", "openai"), "x" * 41, False),
        (Model("gpt", "openai"), GEMINIS_ID, False),
        (Model("claude", "anthropic"), GEMINIS_ID, False),
        (Model("flash", "gemini"), GEMINIS_ID, True),
        (Model("gemini-3", "vertex_ai"), GEMINIS_ID, True),
        (Model("gemini-3", "vertex_ai"), "x" * 41, False),
    ],
)
def test_an_id_of_a_call_is_one_that_the_model_takes(
    model: Model, call_id: str, kept: bool
) -> None:
    asked, result = calls(call(call_id, "t"), call("c2", "t")), ToolResultMessage(call_id, "t", [])
    chat = chat_messages(model, LlmContext("", [asked, result]), signed_thinking=True)

    (sent, other), answered = (each["id"] for each in chat[0]["tool_calls"]), chat[1]
    assert answered["tool_call_id"] == sent != other
    assert (sent == call_id) == kept
    if model.name == "mistral/large" or model.id == "mistral/large":
        assert re.fullmatch(r"[A-Za-z0-9]{9}", sent)
    elif not kept:
        assert re.fullmatch(r"[A-Za-z0-9_]{1,40}", sent)
    assert (asked.tool_calls[0].id, result.tool_call_id) == (call_id, call_id)


@pytest.mark.parametrize(
    ("schema", "sent"),
    [
        ({"type": "object"}, {"type": "object", "properties": {}}),
        ({"anyOf": []}, {"anyOf": []}),
    ],
)
def test_a_tool_without_parameters_says_so(schema: dict[str, Any], sent: dict[str, Any]) -> None:
    (definition,) = tool_definitions([replace(ok, parameters=schema)])

    assert definition["function"]["parameters"] == sent


@pytest.mark.parametrize("signed_thinking", [True, False])
def test_deepseek_gets_its_thinking_back_where_there_are_tools(signed_thinking: bool) -> None:
    asked = AssistantMessage(
        [ThinkingContent("A die, "), ThinkingContent("then."), ToolCall("c1", "ok")],
        "m",
        "deepseek",
    )
    messages: list[LlmMessage] = [
        answer("Hello."),
        UserMessage("Roll"),
        asked,
        ToolResultMessage("c1", "ok", [TextContent("6")]),
        AssistantMessage([ThinkingContent("Secret."), TextContent("Six.")], "m", "another"),
        AssistantMessage([ThinkingContent("Cut off")], "m", "deepseek"),
    ]

    def thinking(provider: str, tools: list[AgentTool]) -> list[str | None]:
        context = LlmContext("SP", messages, tools)
        chat = chat_messages(Model("m", provider), context, signed_thinking=signed_thinking)
        return [message.get("reasoning_content") for message in chat]

    assert thinking("deepseek", [ok]) == [None, " ", None, "A die, then.", None, " "]
    assert set(thinking("deepseek", [])) == set(thinking("another", [ok])) == {None}


def test_a_usage_is_read_whatever_it_is_called() -> None:
    deepseek = {"prompt_tokens": 10, "completion_tokens": 2, "prompt_cache_hit_tokens": 4}
    anthropic = {
        "prompt_tokens": 10,
        "completion_tokens": 2,
        "cache_creation_input_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 4},
        "total_tokens": None,
    }

    assert usage_of(deepseek) == Usage(6, 2, 4, 0, 12)
    assert usage_of(anthropic) == Usage(3, 2, 4, 3, 12)
    assert usage_of({"prompt_tokens": "many"}) == Usage()


@pytest.mark.parametrize("nonsense", [-7, 2**63, 10**30, True])
def test_a_count_that_is_none_counts_nothing(nonsense: int) -> None:
    reported = {
        "prompt_tokens": 10,
        "completion_tokens": nonsense,
        "total_tokens": nonsense,
        "prompt_tokens_details": {"cached_tokens": nonsense},
    }

    assert usage_of(reported) == Usage(input=10, total_tokens=10)


def litellm_request(model: Model, options: StreamOptions | None = None) -> dict[str, Any]:
    context = LlmContext("SP", [UserMessage("a"), calls(call("c1", "t")), UserMessage("b")])
    return _request(litellm(), model, context, options or StreamOptions())


def test_thinking_is_asked_for_as_the_model_wants_it() -> None:
    effort = litellm_request(
        Model("o9", "openai", reasoning=True, temperature=0.5), StreamOptions(reasoning="xhigh")
    )
    budget = litellm_request(
        Model("claude-x", "anthropic", reasoning=True, max_tokens=20_000),
        StreamOptions(reasoning="low", max_tokens=1_000),
    )
    none = litellm_request(Model("m", "openai"), StreamOptions(reasoning="high", temperature=0.5))

    assert effort["reasoning_effort"] == "high"
    assert "temperature" not in effort
    assert budget["thinking"] == {"type": "enabled", "budget_tokens": 2_048}
    assert budget["max_tokens"] == 3_048
    assert "reasoning_effort" not in none
    assert none["temperature"] == 0.5


def test_claude_does_not_think_where_the_cap_has_no_room_for_an_answer() -> None:
    model = Model("claude-x", "anthropic", reasoning=True, max_tokens=1_024, temperature=0.5)
    request = litellm_request(model, StreamOptions(reasoning="high"))

    # Anthropic takes no budget below 1,024, and wants it to be less than max_tokens.
    assert "thinking" not in request
    assert (request["max_tokens"], request["temperature"]) == (1_024, 0.5)
    assert thinking_budget("high", StreamOptions(), 2_047) is None
    assert thinking_budget("high", StreamOptions(), 2_048) == 1_024


def test_claudes_cache_is_marked_before_what_changes() -> None:
    messages = litellm_request(Model("claude-x", "anthropic"))["messages"]

    marked = [
        at
        for at, message in enumerate(messages)
        if isinstance(message["content"], list) and "cache_control" in message["content"][-1]
    ]
    assert marked == [0, 3]
    plain = litellm_request(Model("gpt", "openai"))["messages"]
    assert all(not isinstance(message["content"], list) for message in plain)


def test_headers_extras_and_keys_of_ones_own_server() -> None:
    model = Model("m", "mine", base_url="http://h/v1", headers={"X": "1"}, extra={"top_p": 0.5})
    request = litellm_request(model)

    assert (request["api_base"], request["custom_llm_provider"]) == ("http://h/v1", "openai")
    assert (request["api_key"], request["extra_headers"], request["top_p"]) == (
        "none",
        {"X": "1"},
        0.5,
    )
    assert "api_key" not in litellm_request(Model("m", "openai"))
    preload()


def test_thinking_levels() -> None:
    model = Model("m", "p", reasoning=True, thinking_levels=("low", "high"))

    assert thinking_level(model, "minimal") == "low"
    assert thinking_level(model, "medium") == "low"
    assert thinking_level(model, "xhigh") == "high"
    assert thinking_level(model, "off") is None
    assert thinking_level(model, None) is None
    assert thinking_level(Model("m", "p"), "high") is None
    assert thinking_level(Model("m", "p", reasoning=True, thinking_levels=()), "high") is None
    assert thinking_budget("high", StreamOptions(), 4_096) == 3_072
    assert thinking_budget("high", StreamOptions(thinking_budgets={"high": 2_000}), 9_000) == 2_000


# Answers


def assemble(*chunks: ChatChunk) -> AssistantMessage:
    assembler = StreamAssembler(Model("m", "p"))
    for chunk in chunks:
        list(assembler.take(chunk))
    list(assembler.finish())
    return assembler.message


def piece(text: str, call_id: str = "", index: int | None = None, name: str = "t") -> ChatChunk:
    return ChatChunk(tool_calls=[ToolCallPiece(index, call_id, name, text)])


END = ChatChunk(finish_reason="stop")


def test_calls_without_an_index_are_told_apart_by_their_ids() -> None:
    message = assemble(
        piece('{"a"', "c1"), piece(": 1}"), piece("{}", "c2"), piece("", "c1"), piece(" "), END
    )

    assert [(each.id, each.arguments, each.raw) for each in message.tool_calls] == [
        ("c1", {"a": 1}, None),
        ("c2", {}, None),
    ]
    assert message.stop_reason == "tool_use"
    assert assemble(piece("{}"), END).tool_calls == [ToolCall("", "t")]


def test_a_name_may_come_after_the_first_piece_of_a_call() -> None:
    for index in (0, None):
        message = assemble(piece("", "c1", index, name=""), piece("{}", "", index, name="go"), END)
        assert message.tool_calls == [ToolCall("c1", "go")]
    late = assemble(piece("", "", 0, name=""), piece("{}", "c1", 0), END)
    assert late.tool_calls == [ToolCall("c1", "t")]


def test_text_thinking_and_signatures_make_blocks() -> None:
    message = assemble(
        ChatChunk(thinking="a"),
        ChatChunk(thinking="b", signature="sig"),
        ChatChunk(text="c"),
        ChatChunk(signature="late"),
        ChatChunk(text="d"),
        END,
    )

    assert message.content == [
        ThinkingContent("ab", "sig"),
        TextContent("c"),
        ThinkingContent("", "late"),
        TextContent("d"),
    ]


def test_arguments_grow_while_they_are_streamed() -> None:
    assembler = StreamAssembler(Model("m", "p"))
    seen = []
    for text in ('{"text": "o', "nce", '", "n": [1, 2', "]}"):
        list(assembler.take(piece(text, "c1", 0)))
        seen.append(dict(assembler.message.tool_calls[0].arguments))

    assert seen == [{"text": "o"}, {"text": "once"}, {"text": "once", "n": [1, 2]}, seen[3]]


def test_an_empty_answer_is_one() -> None:
    assert assemble(END).content == []


@pytest.mark.parametrize(
    ("chunks", "problem"),
    [
        ([ChatChunk(text="x")], "broke off"),
        ([ChatChunk(finish_reason="content_filter")], "content filter"),
        ([ChatChunk("x", finish_reason="content_filter: SAFETY")], "content filter"),
        ([ChatChunk("x", finish_reason="SAFETY")], "content filter"),
        ([ChatChunk("x", finish_reason="error")], r"broke its answer off \(error\)"),
        ([ChatChunk("x", finish_reason="insufficient_system_resource")], "broke its answer off"),
    ],
)
def test_an_answer_that_is_none_is_a_failure(chunks: list[ChatChunk], problem: str) -> None:
    with pytest.raises(ProviderError, match=problem) as failed:
        assemble(*chunks)

    assert failed.value.retryable == ("filter" not in problem)


@pytest.mark.parametrize("reason", ["length", "max_tokens", "model_length"])
def test_an_answer_without_room_is_cut_by_its_length(reason: str) -> None:
    assert assemble(ChatChunk("x", finish_reason=reason)).stop_reason == "length"


@pytest.mark.parametrize(
    ("text", "arguments", "raw"),
    [
        ("", {}, None),
        ('{"a": 1}', {"a": 1}, None),
        ('"{\\"a\\": 1}"', {"a": 1}, None),
        ("[1]", {}, "[1]"),
        ('{"a": NaN}', {}, '{"a": NaN}'),
        ('{"a": "\\ud800"}', {}, '{"a": "\\ud800"}'),
        ('{"a": ', {}, '{"a": '),
        ("[" * 10_000, {}, "[" * 10_000),
    ],
)
def test_arguments_are_json_objects_or_kept_raw(
    text: str, arguments: dict[str, Any], raw: str | None
) -> None:
    assert whole_arguments(text) == (arguments, raw)


def test_arguments_that_are_cut_anywhere_can_be_read() -> None:
    text = '{"a": "x\\ny", "b": [1, {"c": true}], "d": null}'
    for end in range(len(text)):
        assert isinstance(partial_arguments(text[:end]), dict)
    assert partial_arguments("[1") == {}
    assert partial_arguments("nonsense") == {}


def test_events_are_read_across_pieces() -> None:
    reader = SseReader()
    data = b": comment\r\nevent: x\r\ndata: on\xc3\xa9\r\ndata:two\r\n\r\n\r\ndata: three\n\n"
    got = [event for byte in data for event in reader.feed(bytes([byte]))]

    assert got == ["oné\ntwo", "three"]
    with pytest.raises(ProviderError, match="8 MiB"):
        reader.feed(b"x" * (8 * 1024 * 1024 + 1))


@pytest.mark.parametrize("rest", ["", "\n", "\r\n"])
def test_the_last_event_needs_no_blank_line(rest: str) -> None:
    reader = SseReader()

    assert reader.feed(f"data: one\n\ndata: two{rest}".encode()) == ["one"]
    assert reader.end() == ["two"]
    assert reader.end() == []


def test_a_body_of_json_is_one_event() -> None:
    reader = SseReader()

    assert [reader.feed(piece) for piece in (b" \n", b'{"a":\n\n', b" 1}\n")] == [[], [], []]
    assert json.loads(*reader.end()) == {"a": 1}
    with pytest.raises(ProviderError, match="8 MiB"):
        SseReader().feed(b"{" * (8 * 1024 * 1024 + 1))


def test_an_event_of_many_lines_has_an_end_too() -> None:
    reader = SseReader()
    line = b"data: " + b"x" * 1024 * 1024 + b"\n"
    assert not any(reader.feed(line) for _ in range(7))
    assert len(reader.feed(b"\n")) == 1
    assert not any(reader.feed(line) for _ in range(7))

    with pytest.raises(ProviderError, match="8 MiB"):
        reader.feed(line)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ("{", "no chunk"),
        ("[]", "no chunk"),
        ('{"choices": [5]}', "no chunk"),
        ('{"choices": [{"delta": {"tool_calls": [1]}}]}', "no chunk"),
        ('{"error": {"message": "busy", "code": 503}}', "busy"),
        ('{"error": "down"}', "down"),
        ('{"object": "error", "message": "too long", "code": 400}', r"too long \(400\)"),
        ('{"message": "overloaded", "type": "server_error"}', "overloaded"),
    ],
)
def test_what_is_no_chunk_is_a_failure(data: str, problem: str) -> None:
    with pytest.raises(ProviderError, match=problem):
        _chunk(data)


def test_half_an_event_may_be_whole_the_next_time() -> None:
    with pytest.raises(ProviderError) as broken:
        _chunk("{")

    assert broken.value.retryable


def test_an_error_in_the_stream_may_pass() -> None:
    with pytest.raises(ProviderError) as busy:
        _chunk('{"error": {"message": "busy", "code": 503}}')
    with pytest.raises(ProviderError) as wrong:
        _chunk('{"error": {"message": "bad", "code": 400}}')

    assert (busy.value.retryable, wrong.value.retryable) == (True, False)
    assert _chunk('{"error": null, "choices": []}') == ChatChunk()


async def test_the_lean_way_needs_to_know_where() -> None:
    with pytest.raises(ProviderError, match="nowhere/m has no base_url"):
        await anext(stream_openai(Model("m", "nowhere"), LlmContext(), StreamOptions()))


# Failures


def test_waits_that_providers_ask_for() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60))
    zoneless = later.replace("+0000", "-0000")

    assert retry_after_seconds("1.5") == 1.5
    assert retry_after_seconds("-3") == 0.0
    assert retry_after_seconds(None) is None
    assert retry_after_seconds("soon") is None
    assert 50 < (retry_after_seconds(later) or 0) <= 60
    assert 50 < (retry_after_seconds(zoneless) or 0) <= 60


def test_the_wait_before_an_attempt_doubles() -> None:
    model = Model("m", "p", max_attempts=9, retry_delay=1.0)
    error = ProviderError("x", retryable=True)
    delays = [retry_delay(error, attempt, model, StreamOptions()) or 0 for attempt in (1, 2, 3, 8)]

    assert 0.75 <= delays[0] <= 1.25
    assert 1.5 <= delays[1] <= 2.5
    assert 3 <= delays[2] <= 5
    assert delays[3] == 60.0
    assert retry_delay(ProviderError("x"), 1, model, StreamOptions()) is None


def test_litellms_failures_are_told_in_our_terms() -> None:
    class Response:
        def __init__(self) -> None:
            self.headers = {"retry-after": "7"}

    class BusyError(Exception):
        status_code = 429
        response = Response()

    class QuotaError(Exception):
        status_code = 429

    busy = _provider_error(BusyError("slow down"))
    quota = _provider_error(QuotaError("insufficient_quota"))
    network = _provider_error(ConnectionResetError("reset"))
    bug = _provider_error(KeyError("x"))

    assert (busy.status, busy.retry_after, busy.retryable) == (429, 7.0, True)
    assert (quota.retryable, network.retryable, bug.retryable) == (False, True, False)


def test_a_missing_key_is_not_tried_again() -> None:
    class InternalServerError(Exception):
        status_code = 500

    openai = _provider_error(InternalServerError("OpenAIException - Missing credentials. Please"))
    gemini = _provider_error(OSError("Missing Gemini API key. Set GEMINI_API_KEY"))
    other = _provider_error(InternalServerError("Missing parts"))

    assert (openai.status, openai.retryable) == (401, False)
    assert (gemini.status, gemini.retryable) == (401, False)
    assert (other.status, other.retryable) == (500, True)


@pytest.mark.parametrize(
    "text",
    [
        "Incorrect API key provided: sk-proj-abcdefghijklmnop",
        "Bearer abcdefghijklmnop was refused",
        "sk-abcdefgh0123456789abcdefgh",
        "sk-ant-api03-abcdefgh-0123_456789",
        "sk_live_abcdefgh01234567",
        "pk_test_abcdefgh01234567",
        "rk_live_abcdefgh01234567",
        "gsk_abcdefgh0123456789abcdef",
        "xai-abcdefgh0123456789abcdef",
        "hf_abcdefghijklmnopqrstuvwxyzabcdefgh",
        "hf_abcdefgh0123456789",
        "ghp_abcdefgh0123456789abcdef",
        "gho_abcdefgh0123456789abcdef",
        "github_pat_11abcdefgh_0123456789abcdef",
        "AKIAabcdefgh01234567",
        "AIzaSyabcdefgh-0123456789_abcdef",
        "connect to postgres://user:pass-word@host failed",
        "my-own-secret",
    ],
)
def test_keys_are_hidden(text: str) -> None:
    hidden = redact(text, "my-own-secret", "", None)

    assert "[hidden]" in hidden
    for secret in ("abcdefgh", "pass-word", "my-own"):
        assert secret not in hidden


def test_plain_words_are_not_hidden() -> None:
    for text in (
        "task-force is risky",
        "no file https://example.org/a:b@c",
        "sk-1",
        "no skill skill-writing-guide-2",
        "skeleton-template.md",
        "pkg-config-missing",
        "no column sku_description_en or pk_column_constraint",
        "hf_hub_download_1 and hfdownloads12345",
        "xai-grok-4-fast-reasoning",
        "skip_validation_flag_12",
    ):
        assert redact(text, "no") == text
