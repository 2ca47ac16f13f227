"""Messages, events and results as JSON and back; data that is malformed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from agent_core import (
    Agent,
    AgentEnd,
    AgentEvent,
    AgentStart,
    AgentToolResult,
    AssistantMessage,
    AssistantMessageEvent,
    CustomMessage,
    ImageContent,
    MalformedDataError,
    Message,
    MessageEnd,
    MessageStart,
    MessageUpdate,
    Model,
    StreamDone,
    StreamError,
    StreamStart,
    TextContent,
    TextDelta,
    TextEnd,
    TextStart,
    ThinkingContent,
    ThinkingDelta,
    ThinkingEnd,
    ThinkingStart,
    ToolCall,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    ToolExecutionEnd,
    ToolExecutionStart,
    ToolExecutionUpdate,
    ToolResultMessage,
    TurnEnd,
    TurnStart,
    Usage,
    UserMessage,
    content_from_dict,
    convert_to_llm,
    event_from_dict,
    message_from_dict,
    stream_event_from_dict,
)

ASSISTANT = AssistantMessage(
    [
        ThinkingContent("hm", "sig"),
        ThinkingContent("unsigned"),
        TextContent("hello"),
        ToolCall("c1", "t", {"x": [1, None]}),
        ToolCall("c2", "t", {}, '{"x"'),
    ],
    "m",
    "p",
    Usage(1, 2, 3, 4, 10, 0.5),
    "tool_use",
    None,
    5,
)
FAILED = AssistantMessage([], "m", "p", Usage(), "error", "E1", 6)
RESULT = ToolResultMessage("c1", "t", [TextContent("ok")], {"n": 1}, is_error=True, timestamp=7)
TOOL_RESULT = AgentToolResult([TextContent("ok")], {"n": 1}, is_error=True, terminate=True)

MESSAGES: list[Message] = [
    UserMessage("hi", 1),
    UserMessage([TextContent("see"), ImageContent("AA==")], 2),
    UserMessage([ImageContent(url="https://example.org/i.jpg", mime_type="image/jpeg")], 3),
    ASSISTANT,
    FAILED,
    RESULT,
    ToolResultMessage("c2", "t", [], timestamp=8),
    CustomMessage("note", "text", {"a": 1}, 9),
    CustomMessage("mark", timestamp=10),
]

EVENTS: list[AgentEvent] = [
    AgentStart(),
    AgentEnd([UserMessage("hi", 1)], "Turn limit of 3 reached", Usage(1)),
    AgentEnd([]),
    TurnStart(),
    TurnEnd(ASSISTANT, [RESULT]),
    MessageStart(RESULT),
    MessageUpdate(ASSISTANT, TextDelta(2, "lo", ASSISTANT)),
    MessageEnd(ASSISTANT),
    ToolExecutionStart("c1", "t", {"x": 1}),
    ToolExecutionUpdate("c1", "t", {}, TOOL_RESULT),
    ToolExecutionEnd("c1", "t", TOOL_RESULT, is_error=True, duration=0.25),
]

STREAM_EVENTS: list[AssistantMessageEvent] = [
    StreamStart(ASSISTANT),
    TextStart(2, ASSISTANT),
    TextDelta(2, "x", ASSISTANT),
    TextEnd(2, "x", ASSISTANT),
    ThinkingStart(0, ASSISTANT),
    ThinkingDelta(0, "x", ASSISTANT),
    ThinkingEnd(0, "x", ASSISTANT, "sig"),
    ToolCallStart(3, ASSISTANT),
    ToolCallDelta(3, "{", ASSISTANT),
    ToolCallEnd(3, ToolCall("c1", "t"), ASSISTANT),
    StreamDone("tool_use", ASSISTANT),
    StreamError("error", FAILED),
]


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_comes_back_from_json(message: Message) -> None:
    assert message_from_dict(json.loads(json.dumps(message.to_dict()))) == message


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_comes_back_from_json(event: AgentEvent) -> None:
    data = json.loads(json.dumps(event.to_dict()))

    assert data["type"] == event.type
    assert event_from_dict(data) == event


@pytest.mark.parametrize("event", STREAM_EVENTS)
def test_a_stream_event_comes_back_from_json(event: AssistantMessageEvent) -> None:
    data = json.loads(json.dumps(event.to_dict()))

    assert data["type"] == event.type
    assert stream_event_from_dict(data, ASSISTANT) == event


def test_the_start_of_a_call_names_it() -> None:
    assert ToolCallStart(3, ASSISTANT).to_dict()["name"] == "t"
    assert "name" not in ToolCallStart(0, ASSISTANT).to_dict()


MALFORMED: list[tuple[Callable[[Any], object], Any, str]] = [
    (message_from_dict, "text", "must be an object"),
    (message_from_dict, None, "must be an object"),
    (message_from_dict, {}, "'role' is missing"),
    (message_from_dict, {"role": 3}, "'role' must be str"),
    (message_from_dict, {"role": "user"}, "'content' is missing"),
    (message_from_dict, {"role": "user", "content": 5}, "'content' must be list"),
    (message_from_dict, {"role": "user", "content": [{"type": "odd"}]}, "unknown type of content"),
    (message_from_dict, {"role": "user", "content": "x", "timestamp": "now"}, "'timestamp'"),
    (message_from_dict, {"role": "user", "content": "x", "timestamp": True}, "'timestamp'"),
    (
        message_from_dict,
        {"role": "user", "content": [{"type": "thinking", "thinking": "x"}]},
        "no place",
    ),
    (
        message_from_dict,
        {"role": "assistant", "content": [{"type": "image", "data": "x"}]},
        "no place",
    ),
    (
        message_from_dict,
        {"role": "assistant", "content": [], "stop_reason": "bored"},
        "'stop_reason' must be one of",
    ),
    (
        message_from_dict,
        {"role": "assistant", "content": [], "usage": {"cost": "free"}},
        "'cost' must be a number",
    ),
    (message_from_dict, {"role": "tool_result", "content": []}, "'tool_call_id' is missing"),
    (content_from_dict, {"type": "image"}, "either data or a url"),
    (content_from_dict, {"type": "image", "data": "x", "url": "y"}, "either data or a url"),
    (content_from_dict, {"type": "tool_call", "id": "c", "name": "t", "arguments": []}, "dict"),
    (event_from_dict, {"type": "party"}, "unknown type of event"),
    (event_from_dict, {"type": "tool_execution_end", "tool_name": "t"}, "'tool_call_id'"),
    (event_from_dict, {"type": "message_end"}, "must be an object"),
    (Model.from_dict, {"id": "m"}, "'provider' is missing"),
    (Model.from_dict, {"id": "m", "provider": "p", "api": "soap"}, "'api' must be one of"),
    (Agent.from_dict, {"system_prompt": "", "tools": ["t"], "messages": []}, "no tool named t"),
    (Agent.from_dict, [], "must be an object"),
    (lambda data: stream_event_from_dict(data, ASSISTANT), {"type": "x"}, "'content_index'"),
    (
        lambda data: stream_event_from_dict(data, ASSISTANT),
        {"type": "x", "content_index": 0},
        "unknown type of stream event",
    ),
    (
        lambda data: stream_event_from_dict(data, ASSISTANT),
        {
            "type": "toolcall_end",
            "content_index": 0,
            "tool_call": {"type": "text", "text": "x"},
        },
        "unknown type of stream event",
    ),
]


@pytest.mark.parametrize(("read", "data", "message"), MALFORMED)
def test_malformed_data_is_refused(read: Callable[[Any], object], data: Any, message: str) -> None:
    with pytest.raises(MalformedDataError, match=message):
        read(data)


def test_a_custom_message_has_a_role_of_its_own() -> None:
    with pytest.raises(MalformedDataError, match="not a custom role"):
        CustomMessage("user", "hi")


def test_what_a_model_is_given_leaves_out_what_it_cannot_take() -> None:
    assert convert_to_llm(MESSAGES) == [*MESSAGES[:4], RESULT, MESSAGES[6]]


def test_text_and_calls_of_an_answer() -> None:
    assert ASSISTANT.text == "hello"
    assert [call.id for call in ASSISTANT.tool_calls] == ["c1", "c2"]


def test_a_model_comes_back_from_json_without_its_headers() -> None:
    model = Model("m", "p", base_url="http://h/v1", temperature=0.2, headers={"X": "secret"})

    data = model.to_dict()

    assert "secret" not in json.dumps(data)
    assert Model.from_dict(json.loads(json.dumps(data))) == Model(
        "m", "p", base_url="http://h/v1", temperature=0.2
    )
