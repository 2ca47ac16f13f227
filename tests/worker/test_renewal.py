"""When leases are renewed: again and again, and at once where an outage is over."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest

from shared.ending import end_all
from shared.errors import StoreUnavailable
from shared.records import Fence
from shared.settings import load_settings
from shared.store.database import Gate
from shared.store.leases import Pulse
from tests.waiting import until
from worker.holding import Holding
from worker.outage import Outage
from worker.renewal import Renewal

FENCE = Fence(uuid4(), 1, uuid4())


class Stage:
    """A Postgres that may be away, and whoever hears of the leases."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.renewed = 0
        self.is_away = False
        self.lasts = False
        self.back = asyncio.Event()
        self.notices = True

    async def heartbeat(self, db: Any, fences: Sequence[Fence], *, lease_seconds: float) -> Pulse:
        self.asked.append(time.monotonic())
        if self.is_away:
            raise StoreUnavailable("away")
        return Pulse(frozenset(), frozenset(), frozenset())

    def noticed(self) -> None:
        self.lasts = self.notices

    async def over(self, patience: float) -> bool:
        if self.lasts:
            await self.back.wait()
            self.lasts = False
        return True

    def hear(self, *renewed: object) -> None:
        self.renewed += 1


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage()
    monkeypatch.setattr("worker.renewal.leases", SimpleNamespace(heartbeat=stage.heartbeat))
    return stage


@asynccontextmanager
async def renewing(stage: Stage) -> AsyncIterator[Renewal]:
    settings = load_settings().model_copy(update={"heartbeat_seconds": 0.05, "lease_seconds": 3.0})
    holding = SimpleNamespace(fences=lambda: {FENCE.session_id: FENCE}, renewed=stage.hear)
    renewal = Renewal(settings, Gate(), cast(Outage, stage), cast(Holding, holding))
    working = asyncio.create_task(renewal.renew_for_ever())
    try:
        yield renewal
    finally:
        stage.back.set()
        await end_all([working])


async def test_after_an_outage_it_is_renewed_at_once_however_long_that_was(
    stage: Stage, logs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + gone)
    monkeypatch.setattr("worker.renewal.time", clock)
    async with renewing(stage) as renewal:
        await until(lambda: stage.renewed > 0)
        # From here on nobody comes to the next heartbeat.
        rare = renewal._settings.model_copy(update={"heartbeat_seconds": 300.0})
        stage.is_away = True
        await until(lambda: stage.lasts)
        renewal._settings = rare
        gone = 3_000.0
        stage.is_away = False
        before = stage.renewed
        stage.back.set()
        await until(lambda: stage.renewed > before)

    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == []


async def test_a_connection_that_fails_alone_is_not_tried_without_end(stage: Stage) -> None:
    """Postgres answers all others, and so the outage is over as soon as it is noticed."""
    stage.is_away, stage.notices = True, False
    async with renewing(stage):
        await until(lambda: len(stage.asked) >= 12)

    # The first is repeated at once, no other.
    assert stage.asked[11] - stage.asked[1] >= 0.9 * 10 * 0.05
