"""The hint: `advance(session_id)` on a Celery queue. It may be lost, doubled, late or forged."""

import asyncio
import base64
import uuid
from collections.abc import Iterable
from uuid import UUID

from celery import Celery
from kombu.exceptions import OperationalError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.encoding import dumps
from shared.errors import QueueUnavailable
from shared.settings import Settings

ADVANCE = "fireside.advance"
"""Name of the one Celery task; its one argument is a session's id."""


def make_celery(settings: Settings) -> Celery:
    """The Celery app that both sides share; connects at first use.

    Results, events and acknowledgement after the run are off: a message is only a hint, and what
    they would give stands in Postgres.
    """
    app = Celery("fireside", broker=_broker(settings))
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_default_queue=settings.queue,
        task_create_missing_queues=True,
        task_ignore_result=True,
        task_acks_late=False,
        task_send_sent_event=False,
        worker_send_task_events=False,
        worker_prefetch_multiplier=1,
        worker_pool="threads",
        worker_concurrency=4,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "socket_timeout": 10,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 25,
        },
    )
    return app


def _broker(settings: Settings) -> str:
    return (settings.broker_url or settings.redis_url).get_secret_value()


class Hints:
    """Sends hints. With a Redis broker they are pushed directly, in the form Celery reads.

    `send_task` costs about four times as much and blocks the event loop, half a second where
    Redis is away; other brokers go that way all the same, in a thread.
    """

    def __init__(self, settings: Settings, redis: Redis) -> None:
        self._queue = settings.queue
        self._redis = redis
        broker = _broker(settings)
        shared_redis = settings.redis_url.get_secret_value()
        self._celery = None if broker == shared_redis else make_celery(settings)

    async def send(self, session_ids: Iterable[UUID]) -> None:
        """Hint that each of these sessions has something to do.

        Raises:
            QueueUnavailable: the broker did not answer; the sweep hints again.
        """
        ids = list(session_ids)
        if not ids:
            return
        try:
            if self._celery is None:
                await self._redis.lpush(self._queue, *(_message(one, self._queue) for one in ids))
            else:
                await asyncio.to_thread(self._send_by_celery, ids)
        except (RedisError, OSError, OperationalError) as error:
            raise QueueUnavailable(str(error)) from error

    def _send_by_celery(self, ids: list[UUID]) -> None:
        assert self._celery is not None
        with self._celery.producer_or_acquire() as producer:
            for one in ids:
                self._celery.send_task(
                    ADVANCE, [str(one)], producer=producer, queue=self._queue, retry=False
                )


def _message(session_id: UUID, queue: str) -> bytes:
    """One message of Celery's protocol 2 as kombu's Redis transport stores it.

    Source: Celery's "Message Protocol", version 2, and kombu's virtual transport.
    """
    message_id = str(uuid.uuid4())
    body = dumps([[str(session_id)], {}, {}])
    return dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {
                "lang": "py",
                "task": ADVANCE,
                "id": message_id,
                "root_id": message_id,
                "retries": 0,
                "ignore_result": True,
            },
            "properties": {
                "correlation_id": message_id,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": queue},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": message_id,
            },
        }
    )
