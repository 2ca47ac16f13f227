"""Deadlines of what others are to give, also for a process that stood still meanwhile."""

import asyncio
import time

import pytest
import uvloop

from agent_core.patience import Patience


def _now() -> float:
    return asyncio.get_running_loop().time()


async def test_what_comes_in_time_passes() -> None:
    with Patience().until(_now() + 5.0):
        await asyncio.sleep(0)


async def test_what_comes_too_late_is_ended() -> None:
    with pytest.raises(TimeoutError), Patience().until(_now() + 0.01):
        await asyncio.Event().wait()
    await asyncio.sleep(0)  # and nothing of the cancellation is left


async def test_one_patience_is_for_many_waits() -> None:
    patience = Patience()
    for seconds in (5.0, 0.2, 5.0):
        with patience.until(_now() + seconds):
            await asyncio.sleep(0)
    began = _now()
    with patience.until(began + 0.4):
        await asyncio.sleep(0.3)  # the timer of the short wait goes off meanwhile
    with pytest.raises(TimeoutError), patience.until(_now() + 0.01):
        await asyncio.Event().wait()
    with patience.until(_now() + 5.0):
        await asyncio.sleep(0)
    patience.close()


def test_a_deadline_that_has_passed_on_the_loop_of_the_servers() -> None:
    async def wait() -> str:
        patience = Patience()
        for _ in range(2):
            with patience.until(_now() - 1.0):
                pass  # what is awaited was there already
        with pytest.raises(TimeoutError), patience.until(_now() - 1.0):
            await asyncio.Event().wait()
        return "waited"

    assert uvloop.run(wait()) == "waited"


async def test_a_cancellation_from_elsewhere_is_no_time_out() -> None:
    async def wait() -> None:
        with Patience().until(_now() + 5.0):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_process_that_stood_still_reads_what_came_meanwhile() -> None:
    reader = asyncio.StreamReader()
    with Patience().until(_now() + 0.05):
        reading = asyncio.create_task(reader.read(1))
        await asyncio.sleep(0)
        time.sleep(0.7)  # noqa: ASYNC251 - as a process does that is frozen
        # A loop may look at its timers before it looks at its sockets.
        asyncio.get_running_loop().call_later(0.05, reader.feed_data, b"x")
        assert await reading == b"x"


async def test_a_process_that_stands_still_time_and_again_is_still_given_time() -> None:
    loop = asyncio.get_running_loop()
    come = asyncio.Event()
    with Patience().until(_now() + 0.01):
        loop.call_later(0.0, time.sleep, 0.3)
        loop.call_later(0.6, time.sleep, 0.5)
        loop.call_later(1.3, come.set)
        await come.wait()


async def test_a_process_that_stood_still_does_not_wait_for_ever() -> None:
    asyncio.get_running_loop().call_soon(time.sleep, 0.6)
    with pytest.raises(TimeoutError), Patience().until(_now() + 0.01):
        await asyncio.Event().wait()
