"""The event log over HTTP: a page of it as JSON, or a stream (server-sent events)."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from itertools import pairwise
from typing import Annotated
from uuid import UUID

import structlog
from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from api import problems, replies
from api.access import WhoCalls
from api.gateway import Gateway, Parts
from api.identity import Caller
from api.problems import Problem
from api.relay import IDLE, relay
from api.schemas import MAX_NUMBER, EventsBody
from shared.errors import NotFound, StoreUnavailable
from shared.events import Line
from shared.store import sessions

log = structlog.get_logger(__name__)

router = APIRouter(tags=["Events"])

STREAM = "text/event-stream"

_INCOMPLETE = "ASGI callable returned without completing response."

Seq = Annotated[int, Query(ge=0, le=MAX_NUMBER)]


class EventStream(StreamingResponse):
    """A stream that ends where the client does not take a piece of it in time."""

    media_type = STREAM

    def __init__(self, content: AsyncIterator[bytes], send_seconds: float) -> None:
        super().__init__(content, headers={"X-Accel-Buffering": "no"})
        self._send_seconds = send_seconds
        self._too_slow = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; one whose client is too slow is left unfinished, for its end would
        have to wait for the client as well."""
        await super().__call__(scope, receive, send)
        if self._too_slow:
            log.info("an event stream's client is too slow")
            _unfinished.set(True)

    async def stream_response(self, send: Send) -> None:
        """Send the stream."""

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self._send_seconds):
                await send(message)

        try:
            await super().stream_response(send_in_time)
        except TimeoutError:
            self._too_slow = True


_unfinished: ContextVar[bool] = ContextVar("unfinished", default=False)
"""Whether the request of this context was left unfinished on purpose."""


def _is_unforeseen(record: logging.LogRecord) -> bool:
    return not (_unfinished.get() and record.getMessage() == _INCOMPLETE)


# The server takes it for an error of ours, and says so in the task of the request.
logging.getLogger("uvicorn.error").addFilter(_is_unforeseen)


async def _stream(
    parts: Gateway, caller: Caller, session_id: UUID, after: int
) -> AsyncIterator[bytes]:
    """The bytes of a stream; it ends where the session, the server or its database goes, or the
    caller's key or token."""
    try:
        with parts.slots.one(), parts.slots.one_of(caller.user_id):
            yield b"retry: 1000\n\n"
            async with aclosing(relay(parts, caller, session_id, after)) as batches:
                async for lines in batches:
                    yield b": ping\n\n" if lines is IDLE else _encode(lines)
    except (NotFound, StoreUnavailable, Problem):
        return  # the client comes again with its last id and is told


def _encode(lines: Sequence[Line]) -> bytes:
    return b"".join(
        b"data: %s\n\n" % line.frame
        if line.seq is None
        else b"id: %d\ndata: %s\n\n" % (line.seq, line.frame)
        for line in lines
    )


@router.get(
    "/v1/sessions/{session_id}/events",
    response_model=EventsBody,
    responses={
        replies.OK: {"content": {STREAM: {"schema": {"type": "string"}}}},
        **problems.responses(
            "unauthorized", "not_found", "invalid_request", "rate_limited", "unavailable"
        ),
    },
)
async def get_events(
    request: Request,
    session_id: UUID,
    parts: Parts,
    caller: WhoCalls,
    after: Seq = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    last_event_id: Annotated[int | None, Header(ge=0, le=MAX_NUMBER)] = None,
) -> Response:
    """The events after `after`, oldest first; as a stream they go on as they happen."""
    session = await sessions.get(parts.db, caller.user_id, session_id)
    if STREAM in request.headers.get("accept", ""):
        start = after if last_event_id is None else last_event_id
        parts.slots.check(caller.user_id)
        stream = _stream(parts, caller, session_id, start)
        return EventStream(stream, parts.settings.send_seconds)
    events = await sessions.events_after(
        parts.db, caller.user_id, session_id, after=after, limit=limit
    )
    # The head was read first: what a page that is not full leaves out up to there is a hole.
    numbers = [event.seq for event in events]
    end = session.head_seq if len(events) < limit else 0
    return replies.ok(
        {
            "events": events,
            "gaps": _gaps(after, [*numbers, end + 1]),
            "head_seq": session.head_seq,
            "first_seq": session.first_seq,
        }
    )


def _gaps(after: int, numbers: Sequence[int]) -> list[dict[str, int]]:
    """The holes between neighbours, `after` being the first number's."""
    return [
        {"from": before + 1, "to": number - 1}
        for before, number in pairwise([after, *numbers])
        if number > before + 1
    ]
