"""The hint: `advance(session_id)` on a Celery queue. It may be lost, doubled, late or forged."""

import asyncio
import base64
import uuid
from collections.abc import Iterable
from urllib.parse import parse_qsl, urlencode, urlsplit
from uuid import UUID

from celery import Celery
from kombu.exceptions import OperationalError
from kombu.transport import TRANSPORT_ALIASES
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.encoding import JsonObject, dumps
from shared.errors import QueueUnavailable
from shared.settings import Settings

ADVANCE = "fireside.advance"
"""Name of the one Celery task; its one argument is a session's id."""


_ASK_SECONDS = 1.0

_TRANSPORT = "shared.broker:Transport"


def make_celery(settings: Settings) -> Celery:
    """The Celery app that both sides share; connects at first use.

    Results, events and acknowledgement after the run are off: a message is only a hint, and what
    they would give stands in Postgres.
    """
    broker = _own_broker(settings) or _redis_for_kombu(settings.redis_url.get_secret_value())
    # kombu's register of what a URL's scheme stands for; `redis+socket` goes by `redis`.
    TRANSPORT_ALIASES.update(redis=_TRANSPORT, rediss=_TRANSPORT)
    app = Celery("fireside", broker=broker, amqp="shared.broker:Amqp")
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
            "socket_timeout": 5,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 25,
        },
    )
    return app


def _own_broker(settings: Settings) -> str | None:
    """The broker's URL where it is not the Redis that all else uses."""
    if settings.broker_url in {None, settings.redis_url}:
        return None
    assert settings.broker_url is not None
    return settings.broker_url.get_secret_value()


def _redis_for_kombu(url: str) -> str:
    """A URL of redis-py's in kombu's spelling."""
    parts = urlsplit(url)
    scheme, path = parts.scheme, parts.path
    options = dict(parse_qsl(parts.query))
    database = options.pop("db", None)
    if scheme == "unix":
        scheme = "redis+socket"
        options["virtual_host"] = database or "0"
    elif database is not None:
        path = f"/{database}"
    if scheme == "rediss":
        options.setdefault("ssl_cert_reqs", "required")  # kombu would check no certificate
    query = f"?{urlencode(options)}" if options else ""
    return f"{scheme}://{parts.netloc}{path}{query}"


class Hints:
    """Sends hints. With a Redis broker they are pushed directly, in the form Celery reads.

    `send_task` costs about four times as much and blocks the event loop, half a second where
    Redis is away; other brokers go that way all the same, in a thread.
    """

    def __init__(self, settings: Settings, redis: Redis) -> None:
        self._queue = settings.queue
        self._redis = redis
        self._celery = make_celery(settings) if _own_broker(settings) else None
        if self._celery is not None:
            # The sweep tries again; six seconds of kombu's own tries would only keep threads busy.
            self._celery.conf.broker_transport_options["max_retries"] = 0

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
                messages = [dumps(envelope(one, self._queue)) for one in ids]
                await self._redis.lpush(self._queue, *messages)
            else:
                await asyncio.to_thread(self._send_by_celery, ids)
        except (RedisError, OSError, OperationalError) as error:
            raise QueueUnavailable(str(error)) from error

    async def is_empty(self) -> bool:
        """Whether no hint waits for a worker; False where that can't be known of the broker.

        Raises:
            QueueUnavailable: Redis did not answer within a second.
        """
        if self._celery is not None:
            return False
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                return int(await self._redis.llen(self._queue)) == 0
        except (RedisError, OSError, TimeoutError) as error:
            raise QueueUnavailable(str(error) or type(error).__name__) from error

    def _send_by_celery(self, ids: list[UUID]) -> None:
        assert self._celery is not None
        with self._celery.producer_or_acquire() as producer:
            for one in ids:
                self._celery.send_task(
                    ADVANCE, [str(one)], producer=producer, queue=self._queue, retry=False
                )


def envelope(session_id: UUID, queue: str) -> JsonObject:
    """One message of Celery's protocol 2 as kombu's Redis transport stores it.

    Source: Celery's "Message Protocol", version 2, and kombu's virtual transport.
    """
    message_id = str(uuid.uuid4())
    body = dumps([[str(session_id)], {}, {}])
    return {
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
