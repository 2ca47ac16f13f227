"""Pooled HTTP connections: one aiohttp session per event loop, closed with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from aiohttp import ClientSession

_CONNECT_TIMEOUT = 10.0
_KEEPALIVE = 60.0

_sessions: WeakKeyDictionary[asyncio.AbstractEventLoop, _Holder] = WeakKeyDictionary()


class _Holder:
    def __init__(self, session: ClientSession, life: AsyncGenerator[ClientSession, None]) -> None:
        self.session = session
        self.life = life


async def http_session() -> ClientSession:
    """Return the session of the running loop.

    How many calls run at once is for limiters to say, so the pool has no limit of its own.
    """
    loop = asyncio.get_running_loop()
    holder = _sessions.get(loop)
    if holder is None or holder.session.closed:
        # An event loop that ends closes the async generators it has seen begin: `asyncio.run`
        # thus closes the connections, and nobody has to remember it.
        life = _life()
        holder = _sessions[loop] = _Holder(await anext(life), life)
    return holder.session


async def close_connections() -> None:
    """Close the session of the running loop; the next call opens another."""
    holder = _sessions.pop(asyncio.get_running_loop(), None)
    if holder is not None:
        await holder.life.aclose()


async def _life() -> AsyncGenerator[ClientSession, None]:
    import aiohttp  # noqa: PLC0415 - heavy, and only needed for direct calls

    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300, keepalive_timeout=_KEEPALIVE),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT),
        # All users' calls go over it: what a server set for one must not come with another's key.
        cookie_jar=aiohttp.DummyCookieJar(),
    )
    try:
        yield session
    finally:
        await session.close()


def network_errors() -> tuple[type[Exception], ...]:
    """Return what a call over the network may raise."""
    import aiohttp  # noqa: PLC0415 - see above

    errors: tuple[Any, ...] = (aiohttp.ClientError, OSError, TimeoutError)
    return errors
