"""The sweep: sessions that wait without a worker are hinted again, whatever lost their hint."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias
from uuid import UUID

import structlog

from shared.ending import goes_on
from shared.errors import QueueUnavailable
from shared.queue import Hints
from shared.store import clock, sweeps, turns
from shared.store.database import Database
from shared.trouble import Trouble

log = structlog.get_logger(__name__)

BATCH = 200
"""Sessions that one statement sweeps."""

MEND_SECONDS = 30.0
"""How often it is looked whether the database's clock was set back."""

LOST_SECONDS = 2.0
"""A hint that was sent longer ago, and does not stand in the queue, counts as lost."""

Take: TypeAlias = Callable[[Sequence[UUID]], Sequence[UUID]]
"""Takes sessions on in this very process; gives back those for which it has no room."""


async def sweep_for_ever(
    db: Database,
    hints: Hints,
    *,
    every: float,
    grace: float = 0.0,
    take: Take | None = None,
    lost: asyncio.Event | None = None,
) -> None:
    """Sweep until cancelled; a database or a queue that is away is tried again.

    Args:
        every: seconds between two sweeps.
        grace: for so many seconds after its start Postgres gives the lease of a running task to
            nobody else: its worker could not renew it before.
        take: a worker's way to go on while no hint can be sent.
        lost: set where hints of this moment may be lost; they are sent again at once.
    """
    lost = lost or asyncio.Event()
    mended_at = float("-inf")
    trouble = Trouble(log, "sweep failed")
    while goes_on():
        with trouble.catch():
            if time.monotonic() - mended_at > MEND_SECONDS:
                if mended := await clock.mend(db):
                    log.warning("the database's clock was set back", sessions=mended)
                mended_at = time.monotonic()
            if lost.is_set():
                lost.clear()
                await sweeps.doubt_latest(db)
            await _sweep(db, hints, grace, take)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(every):
                await lost.wait()


async def _sweep(db: Database, hints: Hints, grace: float, take: Take | None) -> None:
    try:
        # First of all: while Redis is away, nobody's next hint is put off.
        if await hints.is_empty():
            await sweeps.doubt_hints(db, age=LOST_SECONDS)
    except QueueUnavailable:
        if take is None:
            raise
        await _go_on_alone(db, await sweeps.sweep(db, limit=BATCH, grace=grace), take)
        return
    hinted = 0
    while found := await sweeps.sweep(db, limit=BATCH, grace=grace):
        try:
            await hints.send(found, await turns.levels(db, found))
        except QueueUnavailable:
            if take is not None:
                await _go_on_alone(db, found, take)
                return
            await sweeps.due_again(db, found)
            raise
        hinted += len(found)
        if len(found) < BATCH:
            break
    if hinted:
        log.info("hinted again", sessions=hinted)


async def _go_on_alone(db: Database, found: Sequence[UUID], take: Take) -> None:
    left = take(found)
    if left:
        await sweeps.due_again(db, left)
    if len(found) > len(left):
        log.info("taken on without a hint", sessions=len(found) - len(left))
