"""Events on their way to clients: the frames, and how they are published over Redis.

One message on a session's channel holds one or more lines, `<seq>:<task>:<attempt> <frame>`; a
delta has no number and says `-`. A gateway can pass a frame on, or drop it, without decoding it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.encoding import dumps, well_formed
from shared.errors import QueueUnavailable
from shared.records import TERMINAL_EVENTS, Event

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

TEXT_SECONDS = 120
"""How long the text so far of an unfinished message is kept after its last delta."""


@dataclass(frozen=True, slots=True)
class Line:
    """One frame as it travels: `seq` is None for a delta."""

    seq: int | None
    task_id: str
    attempt: int
    frame: bytes


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


def delta_frame(task_id: UUID, attempt: int, message: int, offset: int, delta: str) -> bytes:
    """The frame of a piece of streaming text.

    Args:
        message: the message's 0-based number in its task.
        offset: Unicode code points of the message's text before this piece.
    """
    return dumps(
        {
            "type": "message_update",
            "task_id": task_id,
            "attempt": attempt,
            "message": message,
            "offset": offset,
            "delta": delta,
        }
    )


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


class Publisher:
    """Tells the gateways what happened; what fails here is lost without harm: the log has it."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def events(self, session_id: UUID, events: Sequence[Event], attempt: int = 0) -> None:
        """Publish committed events.

        Raises:
            QueueUnavailable: Redis did not answer; clients find the events in the log.
        """
        if not events:
            return
        payload = encode_lines(
            Line(event.seq, str(event.task_id or ""), attempt, event_frame(event))
            for event in events
        )
        try:
            await self._redis.publish(channel(session_id), payload)
        except (RedisError, OSError) as error:
            raise QueueUnavailable(str(error)) from error

    async def delta(
        self, session_id: UUID, task_id: UUID, attempt: int, message: int, offset: int, delta: str
    ) -> None:
        """Publish a piece of text, and keep the text so far for clients that join later.

        The kept text is written first: whoever subscribes and then reads it has missed nothing.
        Half of a character, which a model's stream may end a piece with, becomes U+FFFD.

        Raises:
            QueueUnavailable: Redis did not answer.
        """
        key = text_key(task_id)
        delta = well_formed(delta)
        line = Line(
            None, str(task_id), attempt, delta_frame(task_id, attempt, message, offset, delta)
        )
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                if offset == 0:
                    pipe.set(key, f"{attempt}:{message}\n{delta}", ex=TEXT_SECONDS)
                else:
                    pipe.append(key, delta)
                    pipe.expire(key, TEXT_SECONDS)
                pipe.publish(channel(session_id), encode_lines([line]))
                await pipe.execute()
        except (RedisError, OSError) as error:
            raise QueueUnavailable(str(error)) from error

    async def cancel(self, session_id: UUID, task_id: UUID) -> None:
        """Tell the workers that a running task was asked to stop.

        Raises:
            QueueUnavailable: Redis did not answer; the worker's next heartbeat finds out.
        """
        try:
            await self._redis.publish(CANCEL_CHANNEL, f"{session_id}:{task_id}")
        except (RedisError, OSError) as error:
            raise QueueUnavailable(str(error)) from error


CANCEL_CHANNEL = "fireside:cancel"
"""Where gateways tell workers of cancelled tasks; a message is `<session>:<task>`."""


def text_key(task_id: UUID) -> str:
    """Where the text so far of a task's unfinished message is kept."""
    return f"fireside:text:{task_id}"


async def text_so_far(redis: Redis, task_id: UUID) -> bytes | None:
    """A delta frame with offset 0 and the whole text so far, for a client that joins late.

    Raises:
        QueueUnavailable: Redis did not answer.
    """
    try:
        kept = cast("bytes | None", await redis.get(text_key(task_id)))
    except (RedisError, OSError) as error:
        raise QueueUnavailable(str(error)) from error
    head, newline, text = (kept or b"").partition(b"\n")
    attempt, _, message = head.partition(b":")
    if not newline or not attempt.isdigit() or not message.isdigit():
        return None  # nothing kept, or only the tail of a text whose head ran out
    return delta_frame(task_id, int(attempt), int(message), 0, text.decode("utf-8", "replace"))
