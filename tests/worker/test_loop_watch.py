"""A process whose loop is late runs fewer sessions at once, until it is in time again."""

import asyncio
import threading
import time

import pytest
from structlog.testing import capture_logs

from tests.waiting import until, within
from worker.loop_watch import FEWEST_SESSIONS, LATE_SECONDS, LoopWatch
from worker.slots import Slots


def full(count: int) -> Slots:
    slots = Slots(count)
    while slots.take_free():
        pass
    return slots


def looked(watch: LoopWatch, late: float, times: int = 100) -> None:
    for _ in range(times):
        watch.look(late)


def test_a_late_loop_takes_no_more_until_it_is_in_time() -> None:
    slots = full(100)
    watch = LoopWatch(slots)
    with capture_logs() as logs:
        looked(watch, 2 * LATE_SECONDS, times=10)
        slots.give_back()
        assert slots.all_taken
        assert not slots.take_free()
        looked(watch, 0.9 * LATE_SECONDS)

    assert slots.most == 100
    assert slots.take_free()
    assert [(one["log_level"], one["event"]) for one in logs] == [
        ("warning", "the loop is late: sessions wait"),
        ("info", "the loop is in time: sessions wait no more"),
    ]


def test_a_loop_that_was_late_once_is_not_late() -> None:
    """However late: a process may have been frozen for an hour."""
    slots = full(100)
    watch = LoopWatch(slots)
    watch.look(3600.0)
    assert slots.most == 100
    looked(watch, 0.0)

    assert slots.most == 100
    assert watch.late < LATE_SECONDS / 100


@pytest.mark.parametrize(("count", "fewest"), [(1, 1), (2, 2), (1000, FEWEST_SESSIONS)])
def test_some_are_run_however_late_it_is(count: int, fewest: int) -> None:
    slots = full(count)
    looked(LoopWatch(slots), 60.0)

    assert slots.most == fewest


def test_what_counts_is_how_many_run_and_not_how_many_could() -> None:
    slots = Slots(1000)
    for _ in range(20):
        slots.take_free()
    looked(LoopWatch(slots), 2 * LATE_SECONDS, times=5)

    assert slots.most < 20
    assert slots.all_taken


def test_where_nothing_runs_it_is_the_machine_that_is_late() -> None:
    slots = Slots(100)
    with capture_logs() as logs:
        looked(LoopWatch(slots), 60.0)

    assert slots.most == 100
    assert logs == []


async def test_who_waits_is_let_in_when_it_is_in_time_again() -> None:
    slots = full(10)
    watch = LoopWatch(slots)
    looked(watch, 60.0)
    for _ in range(5):
        slots.give_back()
    waiting = asyncio.create_task(asyncio.to_thread(slots.take, threading.Event()))
    await until(lambda: slots.wanted)
    looked(watch, 0.0)

    assert await within(waiting)


async def test_a_loop_that_is_kept_busy_is_seen_to_be_late() -> None:
    watch = LoopWatch(Slots(10))
    watching = asyncio.create_task(watch.watch_for_ever())
    while watch.late < LATE_SECONDS:
        time.sleep(4 * LATE_SECONDS)  # noqa: ASYNC251 - what a busy loop does
        await asyncio.sleep(0)
    watching.cancel()
