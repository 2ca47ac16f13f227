"""Retention: a little at a time, what was kept for long enough is deleted."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from uuid import UUID

import structlog

from shared.settings import Settings
from shared.store import batches, retention
from shared.store.database import Database
from shared.trouble import Trouble

log = structlog.get_logger(__name__)

ASK_SECONDS = 30.0
TURN_SECONDS = 0.25
PAUSE_SECONDS = 0.05


async def prune_for_ever(db: Database, settings: Settings, *, every: float = ASK_SECONDS) -> None:
    """Prune until cancelled; any number of processes may, and they share the work.

    Args:
        every: seconds after which a process without a turn asks for one.
    """
    trouble = Trouble(log, "retention failed")
    while True:
        await asyncio.sleep(every)
        with trouble.catch():
            rows = await batches.prune(db)
            while (ids := await retention.turn(db)) is not None:
                rows += await prune(db, ids, settings)
                await asyncio.sleep(TURN_SECONDS)
            if rows:
                log.info("pruned", rows=rows)


async def prune(db: Database, ids: Sequence[UUID], settings: Settings) -> int:
    """Delete what is too old of these sessions; how many events and steps that were.

    Raises:
        StoreUnavailable: the rest stays for the next round.
    """
    rows = 0
    if settings.event_days:
        age = timedelta(days=settings.event_days)
        for session_id in await retention.with_old_events(db, ids, age):
            prune_some = functools.partial(retention.prune_events, db, session_id, age)
            rows += await _all(prune_some)
    if settings.step_days:
        age = timedelta(days=settings.step_days)
        rows += await _all(functools.partial(retention.prune_steps, db, ids, age))
    await retention.prune_cancels(db, ids)
    return rows


async def _all(prune_some: Callable[[], Awaitable[int]]) -> int:
    """Prune until less than a full batch was found; pauses let others have the row."""
    total = 0
    while (count := await prune_some()) == retention.ROWS_AT_ONCE:
        total += count
        await asyncio.sleep(PAUSE_SECONDS)
    return total + count
