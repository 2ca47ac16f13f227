"""The hint: `advance(session_id)` on a Celery queue. It may be lost, doubled, late or forged."""

import asyncio
import base64
import binascii
from collections.abc import Iterable, Mapping
from urllib.parse import parse_qsl, urlencode, urlsplit
from uuid import UUID

from celery import Celery
from kombu.exceptions import ChannelError, OperationalError
from kombu.exceptions import ConnectionError as BrokerError
from kombu.transport import TRANSPORT_ALIASES
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.encoding import JsonObject, dumps, loads
from shared.errors import QueueUnavailable
from shared.homes import Homes
from shared.levels import BACKGROUND, FIRST, LEVELS, as_level, key_of
from shared.redis_pool import redis_asked, redis_said
from shared.settings import Settings

ADVANCE = "fireside.advance"
"""Name of the one Celery task; its one argument is a session's id."""


_ASK_SECONDS = 1.0

_TRANSPORT = "shared.broker:Transport"

_AMQP = {"amqp", "amqps", "pyamqp"}
"""Brokers to which a higher number means more urgent; kombu's Redis means the opposite."""


def make_celery(settings: Settings) -> Celery:
    """The Celery app that both sides share; connects at first use.

    Results, events and acknowledgement after the run are off: a message is only a hint, and what
    they would give stands in Postgres.
    """
    broker = _own_broker(settings) or _redis_for_kombu(settings.redis_url.get_secret_value())
    # kombu's register of what a URL's scheme stands for; `redis+socket` goes by `redis`.
    TRANSPORT_ALIASES.update(redis=_TRANSPORT, rediss=_TRANSPORT)
    app = Celery("fireside", broker=broker, amqp="shared.broker:Amqp")
    if urlsplit(broker).scheme in _AMQP:
        app.conf.task_queue_max_priority = BACKGROUND
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_default_queue=settings.queue,
        task_create_missing_queues=True,
        task_ignore_result=True,
        task_acks_late=True,  # "run" means handed to the loop: one hint is read ahead, no more
        task_send_sent_event=False,
        worker_send_task_events=False,
        worker_prefetch_multiplier=1,
        worker_pool="threads",
        worker_concurrency=1,
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
        self._homes = Homes(redis, settings.queue)
        self._celery = make_celery(settings) if _own_broker(settings) else None
        if self._celery is not None:
            # The sweep tries again; six seconds of kombu's own tries would only keep threads busy.
            self._celery.conf.broker_transport_options["max_retries"] = 0
            self._reversed = urlsplit(self._celery.conf.broker_url).scheme in _AMQP

    async def send(
        self,
        session_ids: Iterable[UUID],
        levels: Mapping[UUID, int] | None = None,
        *,
        home: bool = False,
    ) -> None:
        """Hint that each of these sessions has something to do.

        Args:
            levels: where each is to wait; one that is missing waits on the first level.
            home: tell the worker that may have the session in memory, where it has room; any other
                one may take what does not reach it.

        Raises:
            QueueUnavailable: the broker did not answer; the sweep hints again.
        """
        hints = [(one, (levels or {}).get(one, FIRST)) for one in session_ids]
        try:
            if home:
                hints = list(await self._homes.send(hints))
            if not hints:
                return
            if self._celery is None:
                await self._push(hints)
            else:
                await asyncio.to_thread(self._send_by_celery, hints)
        except RedisError as error:
            raise QueueUnavailable(redis_said(error)) from error
        except (OSError, OperationalError, ChannelError, BrokerError) as error:
            # The last two: what a broker of AMQP refuses for good, kombu passes on as it came.
            raise QueueUnavailable(str(error)) from error

    async def is_empty(self) -> bool:
        """Whether no hint waits for a worker; False where that can't be known of the broker.

        Raises:
            QueueUnavailable: Redis did not answer within a second.
        """
        if self._celery is not None:
            return False
        with redis_asked():
            async with asyncio.timeout(_ASK_SECONDS):
                keys = [key_of(self._queue, level) for level in range(LEVELS)]
                return int(await self._redis.exists(*keys)) == 0

    async def exchange(self, session_id: UUID, level: int) -> UUID:
        """Give back a hint that was taken a while ago for one that goes before it by now.

        Returns:
            The session whose turn it is; the given one where no other is, or where the broker
            can't be asked.

        Raises:
            QueueUnavailable: Redis did not answer; the sweep hints again what may be lost.
        """
        if self._celery is not None or level == FIRST:
            return session_id
        keys = [key_of(self._queue, before) for before in range(level)]
        with redis_asked():
            async with self._redis.pipeline() as pipe:
                pipe.brpop(keys, 0)  # within a transaction it takes what there is, and never waits
                (found,) = await pipe.execute()
            best = _hint_in(found)
            if best is None:
                return session_id
            # To the end from which it was taken: it had waited longest.
            held = dumps(envelope(session_id, self._queue, level))
            await self._redis.rpush(key_of(self._queue, level), held)
        return best

    async def withdraw(self, session_id: UUID) -> None:
        """Take back what waits for a session on the first level: its turn has come.

        Each further hint of it there would be one more turn, before those of others. Where the
        broker can't be asked they stay.

        Raises:
            QueueUnavailable: Redis did not answer.
        """
        if self._celery is not None:
            return
        with redis_asked():
            hint = dumps(envelope(session_id, self._queue)).decode()
            await self._redis.lrem(key_of(self._queue, FIRST), 0, hint)

    async def withdraw_all(self, session_ids: Iterable[UUID]) -> None:
        """Take back every hint of sessions that are gone; a worker would find nothing there.

        Where the broker can't be asked they stay until one does.

        Raises:
            QueueUnavailable: Redis did not answer.
        """
        if self._celery is not None:
            return
        with redis_asked():
            async with self._redis.pipeline(transaction=False) as pipe:
                for session_id in session_ids:
                    for level in range(LEVELS):
                        hint = dumps(envelope(session_id, self._queue, level)).decode()
                        pipe.lrem(key_of(self._queue, level), 0, hint)
                await pipe.execute()

    async def _push(self, hints: list[tuple[UUID, int]]) -> None:
        lists: dict[str, list[bytes]] = {}
        for one, level in hints:
            message = dumps(envelope(one, self._queue, level))
            lists.setdefault(key_of(self._queue, level), []).append(message)
        if len(lists) == 1:
            ((key, messages),) = lists.items()
            await self._redis.lpush(key, *messages)
            return
        async with self._redis.pipeline(transaction=False) as pipe:
            for key, messages in lists.items():
                pipe.lpush(key, *messages)
            await pipe.execute()

    def _send_by_celery(self, hints: list[tuple[UUID, int]]) -> None:
        assert self._celery is not None
        with self._celery.producer_or_acquire() as producer:
            for one, level in hints:
                self._celery.send_task(
                    ADVANCE,
                    [str(one)],
                    producer=producer,
                    queue=self._queue,
                    priority=BACKGROUND - level if self._reversed else level,
                    retry=False,
                )


def _hint_in(popped: object) -> UUID | None:
    """The session in what BRPOP gave; None where there was nothing, or nothing good."""
    match popped:
        case [_, bytes() as message]:
            try:
                return hint_of(loads(message))
            except (ValueError, RecursionError):
                return None
    return None


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


def level_in(message: object) -> int:
    """The level that a message says it is of."""
    match message:
        case {"properties": {"priority": priority}}:
            return as_level(priority)
    return FIRST


def envelope(
    session_id: UUID, queue: str, level: int = FIRST, *, message_id: UUID | None = None
) -> JsonObject:
    """One message of Celery's protocol 2 as kombu's Redis transport stores it.

    Args:
        message_id: the session's where none is given, so that two hints of it are the same.

    Source: Celery's "Message Protocol", version 2, and kombu's virtual transport.
    """
    name = str(message_id or session_id)
    body = dumps([[str(session_id)], {}, {}])
    return {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": ADVANCE,
            "id": name,
            "root_id": name,
            "retries": 0,
            "ignore_result": True,
        },
        "properties": {
            "correlation_id": name,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": level,
            "body_encoding": "base64",
            "delivery_tag": name,
        },
    }
