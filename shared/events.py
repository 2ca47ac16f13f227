"""Events on their way to clients: the frames, and how they are published over Redis.

One message on a session's channel holds one or more lines, `<seq>:<task>:<attempt> <frame>`; a
delta has no number and says `-`. A gateway can pass a frame on, or drop it, without decoding it.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, cast
from uuid import UUID

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from shared.encoding import dumps, loads, well_formed
from shared.records import TERMINAL_EVENTS, Event
from shared.redis_pool import redis_asked

EventType: TypeAlias = Literal[
    "task_queued",
    "task_started",
    "task_restarted",
    "agent_start",
    "turn_start",
    "message_start",
    "message_end",
    "tool_execution_start",
    "tool_execution_update",
    "tool_execution_end",
    "turn_end",
    "agent_end",
    "state_changed",
    "task_completed",
    "task_failed",
    "task_cancelled",
    "task_dead",
]

TERMINAL_TYPES = frozenset(TERMINAL_EVENTS.values())

TEXT_SECONDS = 600
"""How long the text so far of an unfinished message is kept, from its beginning or from when it
last grew by `TEXT_STRETCH`: longer than any model takes for so little."""

TEXT_STRETCH = 500  # characters


@dataclass(slots=True)
class Line:
    """One frame as it travels: `seq` is None for a delta."""

    seq: int | None
    task_id: str
    attempt: int
    frame: bytes
    _message: bytes | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def message(self) -> bytes:
        """The frame as a WebSocket carries it, made once for all sockets of the session."""
        if self._message is None:
            self._message = text_message(self.frame)
        return self._message


def text_message(text: bytes) -> bytes:
    """A server's text message on a WebSocket (RFC 6455, 5.2): whole, and never masked."""
    size = len(text)
    if size < 126:
        return b"\x81%c%b" % (size, text)
    if size < 1 << 16:
        return b"\x81\x7e%b%b" % (size.to_bytes(2), text)
    return b"\x81\x7f%b%b" % (size.to_bytes(8), text)


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of streaming text: never numbered, never stored in Postgres.

    `message` is the message's 0-based number in its task; `offset` counts the Unicode code points
    of the message's text before this piece.
    """

    message: int
    offset: int
    text: str


def channel(session_id: UUID) -> str:
    """The Redis channel of a session's frames."""
    return f"fireside:session:{session_id}"


def event_frame(event: Event) -> bytes:
    """The frame of a numbered event, as WebSocket and SSE clients get it."""
    return dumps(
        {
            "seq": event.seq,
            "type": event.type,
            "task_id": event.task_id,
            "at": event.at,
            "data": event.data,
        }
    )


def delta_frame(task_id: UUID, attempt: int, delta: Delta) -> bytes:
    """The frame of a piece of streaming text."""
    return dumps(
        {
            "type": "message_update",
            "task_id": task_id,
            "attempt": attempt,
            "message": delta.message,
            "offset": delta.offset,
            "delta": delta.text,
        }
    )


def decode_delta(frame: bytes) -> Delta | None:
    """What `delta_frame` made; None where it is something else, for anyone may publish."""
    try:
        content = loads(frame)
        return Delta(int(content["message"]), int(content["offset"]), str(content["delta"]))
    except (ValueError, KeyError, TypeError):
        return None


def encode_lines(lines: Iterable[Line]) -> bytes:
    """The lines as one Redis message."""
    return b"\n".join(
        b"%s:%s:%d %s"
        % (
            b"-" if line.seq is None else b"%d" % line.seq,
            line.task_id.encode(),
            line.attempt,
            line.frame,
        )
        for line in lines
    )


def decode_lines(payload: bytes) -> list[Line]:
    """What `encode_lines` made; a malformed line is left out, for anyone may publish."""
    lines = []
    for raw in payload.split(b"\n"):
        head, _, frame = raw.partition(b" ")
        try:
            seq, task_id, attempt = head.split(b":")
            lines.append(
                Line(None if seq == b"-" else int(seq), task_id.decode(), int(attempt), frame)
            )
        except ValueError:
            continue
    return lines


@dataclass(frozen=True, slots=True)
class AttemptNews:
    """What one attempt of a task gave, in its order: committed events and deltas.

    With `lost` some of its deltas were never told, so that no text so far can be kept.
    """

    session_id: UUID
    task_id: UUID
    attempt: int
    entries: Sequence[Event | Delta]
    lost: bool = False


class Publisher:
    """Tells the gateways what happened; what fails here is lost without harm: the log has it."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def events_of_many(self, batch: Iterable[tuple[UUID, Sequence[Event]]]) -> None:
        """Publish committed events of several sessions, in one round trip: such as no attempt of a
        task wrote.

        Raises:
            QueueUnavailable: Redis did not answer; clients find the events in the log.
        """
        async with self._pipeline() as pipe:
            for session_id, events in batch:
                lines = [Line(e.seq, str(e.task_id or ""), 0, event_frame(e)) for e in events]
                if lines:
                    pipe.publish(channel(session_id), encode_lines(lines))

    async def attempts(self, batch: Sequence["AttemptNews"]) -> list[bool]:
        """Publish what attempts of tasks gave, in one round trip and each in its order: committed
        events and deltas. Whether each one's text was kept.

        The text so far is written before the line that brings it up to date: whoever subscribes
        first and reads the text then has missed nothing. It goes where its message has ended.

        Redis may be full: it still passes messages on then, but keeps no text.

        Raises:
            QueueUnavailable: Redis did not answer.
        """
        counts = []
        with redis_asked():
            async with self._redis.pipeline(transaction=False) as pipe:
                for news in batch:
                    before = len(pipe)
                    _tell(pipe, news)
                    counts.append(len(pipe) - before)
                answers = await pipe.execute(raise_on_error=False)
        kept = []
        for count in counts:
            kept.append(not any(isinstance(one, Exception) for one in answers[:count]))
            del answers[:count]
        return kept

    @asynccontextmanager
    async def _pipeline(self) -> AsyncIterator[Pipeline]:
        with redis_asked():
            async with self._redis.pipeline(transaction=False) as pipe:
                yield pipe
                await pipe.execute()

    async def cancel(self, session_id: UUID, task_id: UUID) -> None:
        """Tell the workers that a running task was asked to stop.

        Raises:
            QueueUnavailable: Redis did not answer; the worker's next heartbeat finds out.
        """
        await self._tell(CANCEL_CHANNEL, f"{session_id}:{task_id}")

    async def joining(self, session_id: UUID) -> None:
        """Tell the worker that runs a task of this session of an action that may join it.

        Raises:
            QueueUnavailable: Redis did not answer; the worker's next heartbeat finds out.
        """
        await self._tell(JOIN_CHANNEL, str(session_id))

    async def keys_gone(self) -> None:
        """Tell the gateways that API keys were deleted; whose they were is not said.

        Raises:
            QueueUnavailable: Redis did not answer; they know the keys for some seconds more.
        """
        await self._tell(KEYS_CHANNEL, "")

    async def _tell(self, name: str, message: str) -> None:
        with redis_asked():
            await self._redis.publish(name, message)


def _tell(pipe: Pipeline, news: AttemptNews) -> None:
    key = text_key(news.task_id, news.attempt)
    if news.lost:
        pipe.delete(key)
    else:
        for entry in news.entries:
            _keep_text(pipe, key, entry)
    lines = [_line_of_attempt(news.task_id, news.attempt, entry) for entry in news.entries]
    pipe.publish(channel(news.session_id), encode_lines(lines))


def _keep_text(pipe: Pipeline, key: str, entry: Event | Delta) -> None:
    if isinstance(entry, Event):
        if entry.type == "message_end":
            pipe.delete(key)
    elif entry.offset == 0:
        # By its NUL a head can be told from a tail that was appended to nothing.
        head = f"\0{entry.message}\n"
        pipe.set(key, head + well_formed(entry.text), ex=TEXT_SECONDS)
    else:
        pipe.append(key, well_formed(entry.text))
        end = entry.offset + len(entry.text)
        if entry.offset // TEXT_STRETCH < end // TEXT_STRETCH:
            pipe.expire(key, TEXT_SECONDS)


def _line_of_attempt(task_id: UUID, attempt: int, entry: Event | Delta) -> Line:
    if isinstance(entry, Event):
        return Line(entry.seq, str(entry.task_id or task_id), attempt, event_frame(entry))
    return Line(None, str(task_id), attempt, delta_frame(task_id, attempt, entry))


CANCEL_CHANNEL = "fireside:cancel"
"""Where gateways tell workers of cancelled tasks; a message is `<session>:<task>`."""

JOIN_CHANNEL = "fireside:join"
"""Where gateways tell workers of actions that may join a running task; a message is `<session>`."""


KEYS_CHANNEL = "fireside:keys"
"""Where gateways tell each other that API keys are gone, so that none is known any longer."""


def text_key(task_id: UUID, attempt: int) -> str:
    """Where the text so far of a task's unfinished message is kept.

    Each attempt has its own: one that lost its lease and does not know it yet spoils no other's.
    """
    return f"fireside:text:{task_id}:{attempt}"


async def text_so_far(redis: Redis, task_id: UUID, attempt: int) -> Line | None:
    """A delta with offset 0 and the whole text so far, for a client that joins late.

    Raises:
        QueueUnavailable: Redis did not answer.
    """
    with redis_asked():
        kept = cast("bytes | None", await redis.get(text_key(task_id, attempt)))
    message, newline, text = (kept or b"").partition(b"\n")
    if not newline or message[:1] != b"\0" or not message[1:].isdigit():
        return None  # nothing kept, or only the tail of a text whose head ran out
    text_delta = Delta(int(message[1:]), 0, text.decode("utf-8", "replace"))
    return _line_of_attempt(task_id, attempt, text_delta)
