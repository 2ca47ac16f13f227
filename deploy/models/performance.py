"""From a request and a reply to what goes over the connection, and when."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import assert_never

import orjson
from pydantic import JsonValue

from deploy.models import wire
from deploy.models.request import ChatRequest
from deploy.models.script import (
    CloseFault,
    ContentTypeFault,
    EmptyFault,
    ErrorEventFault,
    GarbageFault,
    HangFault,
    MalformedFault,
    NoDoneFault,
    NoFinishFault,
    NoUsageFault,
    Profile,
    Reply,
    StatusFault,
)
from deploy.models.wire import Identity

GARBAGE = b"\x00\xff\xfe\x80 not an event \xc3\x28\n\n"
_LOAD = "chatcmpl-load"


@dataclass(frozen=True, kw_only=True)
class Performance:
    """Bytes with their times: frame k leaves `ttft` + k * `step` seconds after the request, the
    opening with frame 0.

    `tokens` counts the frames at the front that are content. Before frame `hold` the performance
    waits to be released; with `hold_opening` before the opening. `close` closes the connection at
    the end; `good` is false if the answer is a fault. `usage` is what the answer reports where it
    is played to its end, None where it reports nothing that can be read.
    """

    frames: Sequence[bytes]
    opening: bytes = b""
    ttft: float = 0.0
    step: float = 0.0
    tokens: int = 0
    hold: int | None = None
    hold_opening: bool = False
    close: bool = False
    good: bool = True
    usage: JsonValue = None


@dataclass
class _Stream:
    """The parts of a streamed answer, while a fault changes them."""

    opening: bytes
    content: list[bytes]
    ending: bytes
    close: bool = False
    good: bool = True
    hold: int | None = None
    hold_opening: bool = field(default=False)
    usage: JsonValue = None


def perform(request: ChatRequest, reply: Reply) -> Performance:
    """Turn a reply, whose fault is to strike, into a performance."""
    who = Identity(f"chatcmpl-{request.number}", request.model)
    match reply.fault:
        case StatusFault() as fault:
            return Performance(frames=[_status(fault)], ttft=reply.ttft, good=False)
        case ContentTypeFault() as fault:
            page = b"<!doctype html><title>Bad gateway</title><p>Please try again later.</p>"
            frame = wire.response(200, page, content_type=fault.value)
            return Performance(frames=[frame], ttft=reply.ttft, good=False)
        case _:
            return _streamed(request, reply, who) if request.stream else _whole(request, reply, who)


def load(request: ChatRequest, profile: Profile) -> Performance:
    """Return the performance of a load profile; what is sent is encoded once and kept."""
    who = Identity(_LOAD, request.model)
    usage = _usage(request.size, profile.chunks)
    if not request.stream:
        texts = [wire.token(i) for i in range(profile.chunks)]
        body = wire.completion(who, Reply(), texts, usage, "stop")
        return Performance(
            frames=[wire.json_response(body)],
            ttft=profile.ttft + profile.duration,
            tokens=1,
            usage=usage,
        )
    ending = wire.event(who, {}, finish="stop")
    if request.include_usage:
        ending += wire.usage_event(who, usage)
    ending += wire.http_chunk(wire.DONE) + wire.END
    return Performance(
        opening=_opening(who),
        frames=(*wire.token_events(who, profile.chunks), ending),
        ttft=profile.ttft,
        step=profile.duration / profile.chunks,
        tokens=profile.chunks,
        usage=usage if request.include_usage else None,
    )


def _streamed(request: ChatRequest, reply: Reply, who: Identity) -> Performance:
    chunks = _chunks(reply)
    parts = _Stream(
        opening=_opening(who),
        content=wire.content_events(who, reply, chunks),
        ending=_ending(request, reply, who, chunks),
        usage=_reply_usage(request, reply, chunks) if request.include_usage else None,
    )
    steps = max(1, len(parts.content))
    _strike(parts, reply, who)
    return Performance(
        opening=parts.opening,
        frames=[*parts.content, parts.ending],
        ttft=reply.ttft,
        step=reply.delay if reply.duration is None else reply.duration / steps,
        tokens=len(parts.content),
        hold=parts.hold,
        hold_opening=parts.hold_opening,
        close=parts.close,
        good=parts.good,
        usage=parts.usage,
    )


def _strike(parts: _Stream, reply: Reply, who: Identity) -> None:
    """Change the parts as the reply's fault says."""
    parts.good = reply.fault is None or isinstance(reply.fault, HangFault)
    if not isinstance(reply.fault, HangFault | NoDoneFault | None):
        parts.usage = None
    match reply.fault:
        case HangFault(after=after):
            parts.hold, parts.hold_opening = after or 0, after is None
        case CloseFault(after=after):
            parts.opening = b"" if after is None else parts.opening
            parts.content, parts.ending, parts.close = parts.content[: after or 0], b"", True
        case MalformedFault(after=after):
            parts.content.insert(after, wire.http_chunk(b'data: {"id": "broken, "choices": [\n\n'))
        case GarbageFault(after=after):
            parts.content = [*parts.content[:after], wire.http_chunk(GARBAGE)]
            parts.ending = wire.END
        case ErrorEventFault(after=after) as fault:
            body = orjson.dumps(
                wire.error_body(fault.message, kind="server_error", code=fault.code)
            )
            parts.content = [*parts.content[:after], wire.http_chunk(b"data: " + body + b"\n\n")]
            parts.ending = wire.END
        case NoDoneFault():
            parts.ending = parts.ending.replace(wire.http_chunk(wire.DONE), b"")
        case NoFinishFault():
            parts.ending = wire.END
        case EmptyFault():
            parts.opening, parts.content, parts.ending = wire.STREAM_HEAD, [], wire.END
        case None | StatusFault() | ContentTypeFault() | NoUsageFault():
            pass
        case _:
            assert_never(reply.fault)


def _whole(request: ChatRequest, reply: Reply, who: Identity) -> Performance:
    """An answer in one piece, with what corresponds to the fault of a stream."""
    chunks = _chunks(reply)
    usage = _reply_usage(request, reply, chunks)
    body = orjson.dumps(wire.completion(who, reply, chunks, usage, _finish(reply)))
    length, close = len(body), False
    match reply.fault:
        case CloseFault(after=None):
            return Performance(frames=[], ttft=reply.ttft, close=True, good=False)
        case CloseFault():
            body, close = body[: length // 2], True
        case MalformedFault():
            body = body[: length // 2]
            length = len(body)
        case GarbageFault():
            body, length = GARBAGE, len(GARBAGE)
        case EmptyFault():
            body, length = b"", 0
        case ErrorEventFault() as fault:
            body = orjson.dumps(
                wire.error_body(fault.message, kind="server_error", code=fault.code)
            )
            length = len(body)
        case _:
            pass  # the others only exist in a stream, or hold it up
    spread = reply.delay * len(chunks) if reply.duration is None else reply.duration
    plain = Performance(
        frames=[wire.head(200, length, content_type="application/json") + body],
        ttft=reply.ttft + spread,
        tokens=1,
        close=close,
        good=reply.fault is None or isinstance(reply.fault, HangFault),
        usage=usage if reply.fault is None or isinstance(reply.fault, HangFault) else None,
    )
    return (
        replace(plain, hold=0, hold_opening=True) if isinstance(reply.fault, HangFault) else plain
    )


def _status(fault: StatusFault) -> bytes:
    headers = {} if fault.retry_after is None else {"retry-after": f"{fault.retry_after:g}"}
    kind = "rate_limit_error" if fault.status == 429 else "server_error"
    if fault.status < 500 and fault.status != 429:
        kind = "invalid_request_error"
    body = wire.error_body(fault.message, kind=kind, code=fault.code)
    return wire.json_response(body, status=fault.status, headers=headers)


def _opening(who: Identity) -> bytes:
    return wire.STREAM_HEAD + wire.event(who, {"role": "assistant", "content": ""})


def _ending(request: ChatRequest, reply: Reply, who: Identity, chunks: Sequence[str]) -> bytes:
    ending = wire.event(who, {}, finish=_finish(reply))
    if request.include_usage and not isinstance(reply.fault, NoUsageFault):
        ending += wire.usage_event(who, _reply_usage(request, reply, chunks))
    return ending + wire.http_chunk(wire.DONE) + wire.END


def _chunks(reply: Reply) -> list[str]:
    return (
        reply.chunks if reply.chunks is not None else wire.split_text(reply.text or "", reply.split)
    )


def _finish(reply: Reply) -> str:
    return reply.finish_reason or ("tool_calls" if reply.tool_calls else "stop")


def _reply_usage(request: ChatRequest, reply: Reply, chunks: Sequence[str]) -> JsonValue:
    """The scripted counts; what is left out is estimated: a chunk is a token, a prompt has 4
    bytes in each.
    """
    given = reply.usage
    arguments = sum(len(call.encoded) // 4 + 4 for call in reply.tool_calls)
    prompt = given.prompt_tokens if given else None
    spent = given.completion_tokens if given else None
    return _usage(
        request.size if prompt is None else prompt * 4,
        len(chunks) + arguments if spent is None else spent,
        cached=given.cached_tokens if given else None,
        reasoning=given.reasoning_tokens if given else None,
    )


def _usage(
    size: int, spent: int, *, cached: int | None = None, reasoning: int | None = None
) -> JsonValue:
    prompt = size // 4
    usage: dict[str, JsonValue] = {
        "prompt_tokens": prompt,
        "completion_tokens": spent,
        "total_tokens": prompt + spent,
    }
    if cached is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    if reasoning is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    return usage
