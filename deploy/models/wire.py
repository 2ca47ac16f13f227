"""The bytes of the OpenAI chat protocol: HTTP heads, server-sent events and whole answers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from http.client import responses

import orjson
from pydantic import JsonValue

from deploy.models.script import Reply, ToolCall

CREATED = 1_700_000_000  # fixed, so that the same request gives the same bytes
DONE = b"data: [DONE]\n\n"
END = b"0\r\n\r\n"  # of a chunked body
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
_WORDS = re.compile(r"\s*\S+\s*")


@dataclass(frozen=True)
class Identity:
    """What every part of one answer repeats."""

    completion: str
    model: str


def response(
    status: int, body: bytes, *, content_type: str, headers: Mapping[str, str] | None = None
) -> bytes:
    """Return a whole HTTP response with a length."""
    return head(status, len(body), content_type=content_type, headers=headers) + body


def head(
    status: int, length: int, *, content_type: str, headers: Mapping[str, str] | None = None
) -> bytes:
    """Return the head of an HTTP response with a length."""
    phrase = responses.get(status, "Unknown")  # providers have codes of their own, as 529
    lines = [f"HTTP/1.1 {status} {phrase}", f"content-type: {content_type}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, f"content-length: {length}", "", ""]).encode("latin-1")


def json_response(
    value: JsonValue, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> bytes:
    """Return a JSON response."""
    return response(status, orjson.dumps(value), content_type="application/json", headers=headers)


def error_body(message: str, *, kind: str, code: str | None) -> dict[str, JsonValue]:
    """Return the error object in OpenAI's form."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def http_chunk(data: bytes) -> bytes:
    """Frame data as one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(who: Identity, delta: dict[str, JsonValue], *, finish: str | None = None) -> bytes:
    """Return one event with a choice, framed."""
    choice: JsonValue = {"index": 0, "delta": delta, "finish_reason": finish}
    return _event(who, {"choices": [choice]})


def usage_event(who: Identity, usage: JsonValue) -> bytes:
    """Return the event that carries only the usage."""
    return _event(who, {"choices": [], "usage": usage})


def _event(who: Identity, fields: dict[str, JsonValue]) -> bytes:
    body = {
        "id": who.completion,
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": who.model,
        **fields,
    }
    return http_chunk(b"data: " + orjson.dumps(body) + b"\n\n")


def content_events(who: Identity, reply: Reply, chunks: Sequence[str]) -> list[bytes]:
    """Return the events with content: the reasoning, each chunk of text, each tool call in two
    parts.
    """
    events = [event(who, {"reasoning_content": reply.reasoning})] if reply.reasoning else []
    events += [event(who, {"content": chunk}) for chunk in chunks]
    for place, call in enumerate(reply.tool_calls):
        events += _call_events(who, place, call)
    return events


def _call_events(who: Identity, place: int, call: ToolCall) -> list[bytes]:
    """A call as providers stream it: its name first, then its arguments in pieces."""
    index = place if call.index is None else call.index
    arguments = call.encoded
    middle = len(arguments) // 2
    opening: JsonValue = {
        "index": index,
        "id": call_id(call, who, place),
        "type": "function",
        "function": {"name": call.name, "arguments": ""},
    }
    pieces = [piece for piece in (arguments[:middle], arguments[middle:]) if piece]
    rest: list[JsonValue] = [{"index": index, "function": {"arguments": piece}} for piece in pieces]
    return [event(who, {"tool_calls": [part]}) for part in (opening, *rest)]


def call_id(call: ToolCall, who: Identity, index: int) -> str:
    """Return the call's own id, or one that no other call of this server has."""
    return call.id or f"call_{who.completion.removeprefix('chatcmpl-')}_{index}"


def completion(
    who: Identity, reply: Reply, chunks: Sequence[str], usage: JsonValue, finish: str
) -> JsonValue:
    """Return the body of an answer that is not streamed."""
    message: dict[str, JsonValue] = {"role": "assistant", "content": "".join(chunks) or None}
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if reply.tool_calls:
        message["tool_calls"] = [
            {
                "id": call_id(call, who, index),
                "type": "function",
                "function": {"name": call.name, "arguments": call.encoded},
            }
            for index, call in enumerate(reply.tool_calls)
        ]
    return {
        "id": who.completion,
        "object": "chat.completion",
        "created": CREATED,
        "model": who.model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": usage,
    }


def split_text(text: str, how: str) -> list[str]:
    """Cut a text into chunks that together are the text again."""
    match how:
        case "chars":
            return list(text)
        case "words":
            return _WORDS.findall(text) or ([text] if text else [])
        case _:
            return [text] if text else []


@lru_cache(maxsize=16)
def token_events(who: Identity, count: int) -> tuple[bytes, ...]:
    """Return the events of a load profile: `tok0 `, `tok1 `, ..."""
    return tuple(event(who, {"content": token(i)}) for i in range(count))


def token(i: int) -> str:
    """Return chunk i of a load profile."""
    return f"tok{i} "
