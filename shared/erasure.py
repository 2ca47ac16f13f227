"""Erasing a user: the tables, then what Redis still has, after which nothing names the user."""

import asyncio
import contextlib
import re
import time
from typing import cast

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.errors import QueueUnavailable
from shared.events import Publisher
from shared.queue import Hints
from shared.store import erasure
from shared.store.database import Database
from shared.store.erasure import Erased

log = structlog.get_logger(__name__)

_SCANNED_AT_ONCE = 1_000
_UUID = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TICKETS = b"fireside:ticket:"
_KEYS_OF_TICKETS = b"fireside:ticket-key:"
"""With which API key a ticket was made; it ends with what the ticket's own key ends with."""


async def erase_user(
    db: Database, redis: Redis, hints: Hints, user_id: str, *, settle_seconds: float
) -> Erased:
    """Delete everything of a user; returns when it was looked for and nothing was found.

    Workers that run a task of the user's are told to stop and can write nothing meanwhile. One
    may go on to tell clients of text for as long as it believes in its lease, so Redis is cleared
    once that is over.

    Args:
        settle_seconds: how long a worker may believe in a lease that it lost.

    Raises:
        SessionBusy: the user goes on making sessions or actions.
        StoreUnavailable, QueueUnavailable: not all is gone; call it again.
    """
    erased = Erased()
    await erasure.fence(db, user_id, erased)
    fenced_at = time.monotonic()
    with contextlib.suppress(QueueUnavailable):  # else they find out by their next heartbeat
        for session_id, task_id in erased.open:
            await Publisher(redis).cancel(session_id, task_id)
    await erasure.erase(db, user_id, erased)
    if erased.running:
        await asyncio.sleep(settle_seconds - (time.monotonic() - fenced_at))
    await hints.withdraw_all(erased.recent)
    await _clear(redis, user_id, erased)
    log.info("user erased", rows=sum(erased.rows.values()))
    return erased


async def _clear(redis: Redis, user_id: str, erased: Erased) -> None:
    """Delete the keys that are named by what was erased, and tickets of the user."""
    names = {str(one).encode() for one in erased.sessions | erased.tasks}
    try:
        cursor = 0
        while True:
            cursor, found = await redis.scan(cursor, match="fireside:*", count=_SCANNED_AT_ONCE)
            keys = cast("list[bytes]", found)
            gone = [key for key in keys if not names.isdisjoint(_UUID.findall(key))]
            gone += await _tickets_of(redis, user_id, keys)
            if gone:
                await redis.delete(*gone)
            if not cursor:
                return
    except (RedisError, OSError) as error:
        raise QueueUnavailable(str(error)) from error


async def _tickets_of(redis: Redis, user_id: str, keys: list[bytes]) -> list[bytes]:
    tickets = [key for key in keys if key.startswith(_TICKETS)]
    if not tickets:
        return []
    owners = await redis.mget(tickets)
    mine = [key for key, owner in zip(tickets, owners, strict=True) if owner == user_id.encode()]
    return mine + [key.replace(_TICKETS, _KEYS_OF_TICKETS) for key in mine]
