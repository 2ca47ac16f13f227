"""Places of a worker process, taken from several threads."""

import asyncio
import threading

import pytest

from tests.waiting import PATIENCE, until, within
from worker.slots import Slots


async def test_who_finds_none_free_waits_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.slots._SCARCE_SECONDS", PATIENCE)
    slots, stop = Slots(2), threading.Event()
    assert slots.take(stop)
    assert not slots.all_taken
    assert slots.take(stop)
    assert slots.all_taken
    assert not slots.scarce

    waiting = asyncio.create_task(asyncio.to_thread(slots.take, stop))
    await until(lambda: slots.wanted)
    assert slots.scarce
    slots.give_back()

    assert await within(waiting)
    assert slots.all_taken
    assert not slots.wanted
    assert slots.scarce  # what came with the one that waited may be stale, too


async def test_who_waits_while_the_process_stops_gets_none() -> None:
    slots, stop = Slots(1), threading.Event()
    slots.take(stop)
    waiting = asyncio.create_task(asyncio.to_thread(slots.take, stop))
    await until(lambda: slots.wanted)
    stop.set()

    assert not await within(waiting)
    assert not slots.wanted
    slots.give_back()
    assert not slots.all_taken
