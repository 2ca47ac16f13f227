"""kombu's Redis transport, but what is not a hint is dropped before Celery sees it.

A stock Celery worker ends with an error at a message that it can't parse. Anyone who may write to
the queue, or one wrong byte in it, could end all workers like that, one after the other.
"""

import base64
import binascii
from uuid import UUID

import structlog
from kombu.transport import redis

from shared.encoding import loads
from shared.queue import ADVANCE, envelope

log = structlog.get_logger(__name__)


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
    """Drops what is not JSON."""

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
