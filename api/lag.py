"""Listeners that missed something unnoticed: a publication that was lost leaves no trace else."""

import asyncio
from collections.abc import Sequence
from uuid import UUID

import structlog

from shared.follow import Follower, Subscription
from shared.store import sessions
from shared.store.database import Database
from shared.trouble import Trouble

log = structlog.get_logger(__name__)

GRACE_SECONDS = 0.5
"""What was committed a moment ago may still be on its way."""

_BATCH = 2_000


async def watch_for_ever(db: Database, follower: Follower, *, every: float) -> None:
    """Compare followed sessions with the log until cancelled.

    Args:
        every: seconds between two comparisons.
    """
    trouble = Trouble(log, "followed sessions not compared")
    while True:
        await asyncio.sleep(every)
        with trouble.catch():
            followed = follower.sessions
            for start in range(0, len(followed), _BATCH):
                await _compare(db, follower, followed[start : start + _BATCH])


async def _compare(db: Database, follower: Follower, ids: Sequence[UUID]) -> None:
    heads = await sessions.heads(db, ids)
    for gone in set(ids) - heads.keys():
        follower.mark_stale(gone)
    behind = [
        (subscription, head)
        for session_id, head in heads.items()
        for subscription in follower.listeners(session_id)
        if _is_behind(subscription, head)
    ]
    if not behind:
        return
    await asyncio.sleep(GRACE_SECONDS)
    for subscription, head in behind:
        if _is_behind(subscription, head):
            subscription.mark_stale()


def _is_behind(subscription: Subscription, head: int) -> bool:
    return subscription.seen is not None and subscription.seen < head
