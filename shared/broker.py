"""kombu's Redis transport, but what is not a hint is dropped before Celery sees it.

A stock Celery worker ends with an error at a message that it can't parse. Anyone who may write to
the queue, or one wrong byte in it, could end all workers like that, one after the other.
"""

from typing import Any, Self
from uuid import uuid4

import structlog
from celery.app.amqp import AMQP
from kombu.connection import Connection
from kombu.transport import redis

from shared.levels import LEVELS
from shared.queue import envelope, hint_of, level_in

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


class Channel(redis.Channel):
    """Takes hints by their levels, drops what is not JSON, and closes without a word from Redis."""

    priority_steps = list(range(LEVELS))  # noqa: RUF012 - kombu says that it is a list

    # The sweep hints again what a killed worker had taken; a register of what is not acknowledged
    # would cost two more round trips for each hint, and bring it back an hour later.
    ack_emulation = False

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
            # On the others Celery's workers tell each other that they live.
            if not queue.startswith("celeryev."):
                log.warning("dropped a message that is no hint", queue=queue)
            return
        hint = envelope(session_id, queue, level_in(message), message_id=uuid4())
        super()._deliver(hint, queue)  # type: ignore[no-untyped-call]
