"""What a worker believes of its leases."""

import asyncio
import time
import weakref
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

from agent_core import AbortSignal
from shared.records import Claim, Fence
from tests.waiting import until, within
from worker.holding import Held, Holding
from worker.outage import Outage
from worker.task_log import TaskLog


class NoOutage:
    """Postgres is there. `asked` is set when a pass over what is held asks for that."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    @property
    def blameless_until(self) -> float:
        self.asked.set()
        return float("-inf")


def new_holding(outage: NoOutage) -> Holding:
    return Holding(cast(Any, None), cast(Outage, outage), lease_seconds=1.0, heartbeat_seconds=0.1)


def new_held(task_log: SimpleNamespace, renewed_at: float) -> Held:
    claim = SimpleNamespace(fence=Fence(uuid4(), 1, uuid4()))
    return Held(cast(Claim, claim), cast(TaskLog, task_log), AbortSignal(), renewed_at)


async def test_a_claim_that_stood_in_line_is_not_doubted_at_once() -> None:
    """For longer than a lease lasts: many waited for a connection."""
    lost: list[tuple[str, float]] = []
    began = time.monotonic()
    holding = new_holding(NoOutage())

    def lose(reason: str) -> None:
        lost.append((reason, time.monotonic() - began))

    holding.add(new_held(SimpleNamespace(ending=False, lose=lose), began - 100.0))
    looking = asyncio.create_task(holding.stop_overdue())
    await until(lambda: bool(lost))
    looking.cancel()

    reason, after = lost[0]
    assert reason == "the lease could not be renewed in time"
    assert after > 0.2  # two heartbeats, neither of which renewed it here


async def test_what_was_looked_at_last_is_not_kept_alive() -> None:
    """A task that runs for longer than a heartbeat, and after which none comes for a while."""
    gone, outage = asyncio.Event(), NoOutage()
    holding = new_holding(outage)
    held = new_held(SimpleNamespace(ending=False), time.monotonic())
    weakref.finalize(held.signal, gone.set)
    holding.add(held)
    looking = asyncio.create_task(holding.stop_overdue())
    await within(outage.asked.wait())
    holding.remove(held)
    del held
    await within(gone.wait())
    looking.cancel()
