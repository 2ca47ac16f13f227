"""What a worker believes of its leases."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

from agent_core import AbortSignal
from shared.records import Claim, Fence
from tests.waiting import until
from worker.holding import Held, Holding
from worker.outage import Outage
from worker.task_log import TaskLog


async def test_a_claim_that_stood_in_line_is_not_doubted_at_once() -> None:
    """For longer than a lease lasts: many waited for a connection."""
    lost: list[tuple[str, float]] = []
    began = time.monotonic()
    task_log = SimpleNamespace(
        ending=False, lose=lambda reason: lost.append((reason, time.monotonic() - began))
    )
    claim = SimpleNamespace(fence=Fence(uuid4(), 1, uuid4()))
    outage = SimpleNamespace(blameless_until=float("-inf"))
    holding = Holding(
        cast(Any, None), cast(Outage, outage), lease_seconds=1.0, heartbeat_seconds=0.1
    )
    held = Held(cast(Claim, claim), cast(TaskLog, task_log), AbortSignal(), began - 100.0)
    holding.add(held)
    looking = asyncio.create_task(holding.stop_overdue())
    await until(lambda: bool(lost))
    looking.cancel()

    reason, after = lost[0]
    assert reason == "the lease could not be renewed in time"
    assert after > 0.2  # two heartbeats, neither of which renewed it here
