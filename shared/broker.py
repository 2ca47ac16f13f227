"""kombu's Redis transport, but what is not a hint is dropped before Celery sees it.

A stock Celery worker ends with an error at a message that it can't parse. Anyone who may write to
the queue, or one wrong byte in it, could end all workers like that, one after the other.
"""

import base64
import binascii
from typing import Any, Self
from uuid import UUID

import structlog
from celery.app.amqp import AMQP
from kombu.connection import Connection
from kombu.transport import redis

from shared.encoding import loads
from shared.queue import ADVANCE, envelope

log = structlog.get_logger(__name__)


RECONNECT_SECONDS = 2
"""How often a worker tries to reach a broker that is away; kombu would come to 30 seconds."""


class SteadyConnection(Connection):
    """A connection that is tried again at even intervals, however long the broker has been away."""

    def ensure_connection(self, *arguments: Any, **options: Any) -> Self:
        """Connect, as often as the caller says."""
        pauses = {"interval_start": RECONNECT_SECONDS, "interval_step": 0}
        super().ensure_connection(*arguments, **pauses | options)  # type: ignore[no-untyped-call]
        return self


class Amqp(AMQP):  # type: ignore[misc]  # Celery has no types
    """Celery's way to its connections, with ours."""

    Connection = SteadyConnection


def hint_of(message: object) -> UUID | None:
    """The session that a message of Celery's protocol 2 hints at; None where it is no hint."""
    match message:
        case {"headers": {"task": task}, "body": str(body)} if task == ADVANCE:
            pass
        case _:
            return None
    try:
        match loads(base64.b64decode(body, validate=True)):
            case [[str(session_id)], *_]:
                return UUID(session_id)
    except (binascii.Error, ValueError):
        pass
    return None


class Channel(redis.Channel):
    """Drops what is not JSON, and closes without a word from Redis."""

    def close(self) -> None:
        """Close; kombu would first wait for the next hint, for seconds where Redis is silent."""
        self._in_poll = False
        super().close()  # type: ignore[no-untyped-call]

    def _brpop_read(self, **options: object) -> object:
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]
        except (ValueError, RecursionError) as error:
            log.warning("dropped a message that is not JSON", error=type(error).__name__)
            return True


class Transport(redis.Transport):
    """Drops what is JSON but no hint, and delivers a hint without whatever else was in it."""

    Channel = Channel

    def _deliver(self, message: object, queue: str) -> None:
        session_id = hint_of(message)
        if session_id is None:
            log.warning("dropped a message that is no hint", queue=queue)
            return
        super()._deliver(envelope(session_id, queue), queue)  # type: ignore[no-untyped-call]
