"""When leases are renewed: again and again, and at once where an outage is over."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
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
        self.is_dumb = False

    async def heartbeat(self, db: Any, fences: Sequence[Fence], *, lease_seconds: float) -> Pulse:
        self.asked.append(time.monotonic())
        if self.is_dumb:
            self.is_dumb = False
            await asyncio.sleep(3600)
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
async def renewing(stage: Stage, *, lease_seconds: float = 3.0) -> AsyncIterator[Renewal]:
    settings = load_settings().model_copy(
        update={"heartbeat_seconds": 0.05, "lease_seconds": lease_seconds}
    )
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


async def test_a_connection_that_is_dead_without_a_word_is_given_up_within_a_lease(
    stage: Stage, logs: list[Any]
) -> None:
    stage.is_dumb = True
    async with renewing(stage, lease_seconds=0.6):
        await until(lambda: stage.renewed > 0)

    assert stage.asked[1] - stage.asked[0] < 60  # a machine may stand still; 3600 it does not
    assert [entry["error"] for entry in logs if entry["event"] == "heartbeat failed"] == [
        "no answer in half a lease"
    ]


async def test_heartbeats_that_fail_are_told_once_and_their_end(
    stage: Stage, logs: list[Any]
) -> None:
    stage.is_away, stage.notices = True, False
    async with renewing(stage):
        await until(lambda: len(stage.asked) >= 4)
        stage.is_away = False
        await until(lambda: stage.renewed > 1)

    assert [(entry["event"], entry.get("error")) for entry in logs] == [
        ("heartbeat failed", "away"),
        ("works again", None),
    ]


def test_a_loop_that_answers_before_the_thread_goes_on_is_in_time(logs: list[Any]) -> None:
    renewal = Renewal(load_settings(), Gate(), cast(Outage, None), cast(Holding, None))
    at_once = SimpleNamespace(call_soon_threadsafe=lambda call: call())
    renewal._loop = cast(asyncio.AbstractEventLoop, at_once)

    assert [renewal._loop_turns() for _ in range(3)] == [True] * 3
    assert logs == []


def test_a_loop_that_does_not_answer_stands_still_until_it_does(
    logs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr("worker.renewal.time", clock)
    asked: list[Callable[[], None]] = []
    renewal = Renewal(load_settings(), Gate(), cast(Outage, None), cast(Holding, None))
    silent = SimpleNamespace(call_soon_threadsafe=asked.append)
    renewal._loop = cast(asyncio.AbstractEventLoop, silent)
    for clock.now, turns in ((0.0, True), (9.0, True), (9.5, False), (20.0, False)):
        assert renewal._loop_turns() is turns
    asked[0]()

    assert renewal._loop_turns()
    assert len(asked) == 2
    assert [entry["event"] for entry in logs] == [
        "the loop stands still: its sessions are left to others"
    ]
