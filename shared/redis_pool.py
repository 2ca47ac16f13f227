"""How this process reaches Redis: a bounded pool that waits, with time-outs on everything."""

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from shared.settings import Settings


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
    return Redis.from_pool(pool)
