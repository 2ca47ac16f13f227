"""How this process reaches Redis: a bounded pool that waits, with time-outs on everything."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from shared.errors import FiresideError, QueueUnavailable
from shared.settings import Settings


class _Telling(AbstractConnection):
    """A connection that says it was lost as all others say it.

    redis-py looks for the end of an idle connection before it uses one, but not for a reset: a
    server that was killed sends one to connections that it had not taken yet, a load balancer to
    those that it has forgotten. uvloop then answers the next write with a RuntimeError, which
    nobody takes for an error of Redis.
    """

    async def send_packed_command(
        self, command: bytes | str | Iterable[bytes], check_health: bool = True
    ) -> None:
        try:
            await super().send_packed_command(command, check_health)
        except RuntimeError as error:
            raise RedisConnectionError(str(error)) from error


class _OverTcp(_Telling, Connection):
    pass


class _OverTls(_Telling, SSLConnection):
    pass


class _OverSocket(_Telling, UnixDomainSocketConnection):
    pass


_CLASSES: dict[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: _OverTcp,
    SSLConnection: _OverTls,
    UnixDomainSocketConnection: _OverSocket,
}


def connect_redis(settings: Settings) -> Redis:
    """A client for `REDIS_URL`; nothing connects before the first command.

    One quick retry hides a connection that was closed while idle; more would only block whoever
    waits, and everything that Redis carries may be lost without harm.
    """
    url = settings.redis_url.get_secret_value()
    over_tcp = {} if url.startswith("unix:") else {"socket_keepalive": True}
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=50,
        timeout=5,
        socket_timeout=5,
        socket_connect_timeout=2,
        health_check_interval=30,
        retry=Retry(NoBackoff(), 1),
        client_name="fireside",
        **over_tcp,
    )
    pool.connection_class = _CLASSES[pool.connection_class]
    return Redis.from_pool(pool)


@contextmanager
def redis_asked() -> Iterator[None]:
    """Raise QueueUnavailable for what a call of Redis inside raises."""
    try:
        yield
    except (RedisError, OSError) as error:  # the latter: also that it took too long
        raise QueueUnavailable(redis_said(error)) from error


def redis_said(error: BaseException) -> str:
    """What the log is told of an error of a call of Redis, whose own words leave out whose it is.

    An error of ours is told as it is.
    """
    text = str(error) or type(error).__name__
    return text if isinstance(error, FiresideError) else f"Redis is not available: {text}"
