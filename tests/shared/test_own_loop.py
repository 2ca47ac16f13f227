"""Work on a loop of its own goes on while the caller's loop stands still, and ends with it."""

import asyncio
import threading

import pytest

from shared.own_loop import on_own_loop
from tests.waiting import within


async def test_it_goes_on_while_the_callers_loop_stands_still() -> None:
    done = threading.Event()

    async def work() -> None:
        await asyncio.sleep(0)
        done.set()

    working = asyncio.create_task(on_own_loop(work, name="test"))
    await asyncio.sleep(0)  # it has begun

    assert done.wait(60)  # nothing else turns on this loop meanwhile
    await within(working)


async def test_what_it_raises_is_raised() -> None:
    async def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await within(on_own_loop(work, name="test"))


async def test_who_cancels_it_waits_for_its_end() -> None:
    """Also where a cancellation is missed: see `shared.ending.end_all`."""
    began, missed, ended = threading.Event(), threading.Event(), threading.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            missed.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    working = asyncio.create_task(on_own_loop(work, name="test"))
    await asyncio.to_thread(began.wait, 60)
    working.cancel()
    await asyncio.to_thread(missed.wait, 60)
    assert not working.done()
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(working)

    assert ended.is_set()
