"""Erasing a user: the tables, then what Redis still has, after which nothing names the user.

Whoever has erased the tables clears Redis, too. Where that fails, or dies before, any gateway
does so later.
"""

import asyncio
import contextlib
import re
import time
from typing import cast

import structlog
from redis.asyncio import Redis

from shared.errors import QueueUnavailable, StoreUnavailable
from shared.events import Publisher
from shared.kept_answers import forget_answers
from shared.queue import Hints
from shared.redis_pool import redis_asked
from shared.store import erasure, traces
from shared.store.database import Database
from shared.store.erasure import Erased
from shared.store.traces import Traces, owner_of
from shared.trouble import Trouble

log = structlog.get_logger(__name__)

ASK_SECONDS = 10.0
"""How often it is looked for what an erasure has left."""

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
    once that is over. Where Redis does not answer the rows are gone for good all the same, and
    what it still has is left to `clear_for_ever`: `cleared` says so.

    Args:
        settle_seconds: how long a worker may believe in a lease that it lost.

    Raises:
        SessionBusy: the user goes on making sessions or actions.
        StoreUnavailable: not all is gone, the user's keys least of all; call it again.
    """
    erased = Erased()
    await erasure.fence(db, user_id, erased)
    fenced_at = time.monotonic()
    publisher = Publisher(redis)
    with contextlib.suppress(QueueUnavailable):  # else they find out by their next heartbeat
        for session_id, task_id in erased.open:
            await publisher.cancel(session_id, task_id)
    await erasure.erase(db, user_id, erased, settle_seconds=settle_seconds)
    log.info("user erased", rows=sum(erased.rows.values()))
    with contextlib.suppress(QueueUnavailable):  # else they know the keys for some seconds more
        await publisher.keys_gone()
    if erased.running:
        await asyncio.sleep(settle_seconds - (time.monotonic() - fenced_at))
    try:
        await _clear(db, redis, hints, erased.traces(user_id))
        erased.cleared = True
    except (QueueUnavailable, StoreUnavailable) as error:
        log.warning("what Redis has of an erased user is cleared later", error=str(error))
    return erased


async def clear_for_ever(
    db: Database, redis: Redis, hints: Hints, *, every: float = ASK_SECONDS
) -> None:
    """Clear Redis of what erasures have left in it until cancelled; any number of processes may.

    Args:
        every: seconds between two looks.
    """
    trouble = Trouble(log, "what erasures have left is not cleared")
    while True:
        await asyncio.sleep(every)
        with trouble.catch():
            while (left := await traces.take(db)) is not None:
                await _clear(db, redis, hints, left)


async def _clear(db: Database, redis: Redis, hints: Hints, left: Traces) -> None:
    """Clear Redis of an erased user.

    Raises:
        QueueUnavailable, StoreUnavailable: it is to be done again.
    """
    await hints.withdraw_all(left.hinted)
    await _delete_keys(redis, left)
    await traces.forget(db, left.id)


async def _delete_keys(redis: Redis, left: Traces) -> None:
    """Delete what answers the user's words, the keys that are named by what was erased, and
    tickets of the user."""
    names = {str(one).encode() for one in left.names}
    with redis_asked():
        await forget_answers(redis, left.owner)
        cursor = 0
        while True:
            cursor, found = await redis.scan(cursor, match="fireside:*", count=_SCANNED_AT_ONCE)
            keys = cast("list[bytes]", found)
            gone = [key for key in keys if not names.isdisjoint(_UUID.findall(key))]
            gone += await _tickets_of(redis, left.owner, keys)
            if gone:
                await redis.delete(*gone)
            if not cursor:
                return


async def _tickets_of(redis: Redis, owner: bytes, keys: list[bytes]) -> list[bytes]:
    tickets = [key for key in keys if key.startswith(_TICKETS)]
    if not tickets:
        return []
    users = cast("list[bytes | None]", await redis.mget(tickets))
    mine = [
        ticket
        for ticket, user in zip(tickets, users, strict=True)
        if user is not None and owner_of(user.decode()) == owner
    ]
    return mine + [key.replace(_TICKETS, _KEYS_OF_TICKETS) for key in mine]
