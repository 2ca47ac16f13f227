"""Deadlines of what others are to give, also for a process that stood still meanwhile."""

import asyncio
import time

import pytest
import uvloop

from agent_core.patience import GRACE_SECONDS, STOOD_STILL_SECONDS, Patience
from tests.agent_core.clock import LoopClock


def _now() -> float:
    return asyncio.get_running_loop().time()


async def test_what_comes_in_time_passes() -> None:
    with Patience().until(_now() + 5.0):
        await asyncio.sleep(0)


async def test_what_comes_too_late_is_ended() -> None:
    with pytest.raises(TimeoutError), Patience().until(_now() + 0.01):
        await asyncio.Event().wait()
    await asyncio.sleep(0)  # and nothing of the cancellation is left


async def test_one_patience_is_for_many_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, patience = LoopClock(monkeypatch), Patience()
    for seconds in (5.0, 0.2, 5.0):
        with patience.until(_now() + seconds):
            await asyncio.sleep(0)
    with patience.until(_now() + 0.4):
        await clock.passes(0.3)  # the timer of the short wait goes off meanwhile
    late = asyncio.create_task(waited(patience, 0.1))
    for seconds in (0.0, 0.1, GRACE_SECONDS):
        assert not late.done()
        await clock.passes(seconds)
    with pytest.raises(TimeoutError):
        await late
    with patience.until(_now() + 5.0):
        await asyncio.sleep(0)
    patience.close()


async def waited(patience: Patience, seconds: float) -> None:
    with patience.until(_now() + seconds):
        await asyncio.Event().wait()


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
    task = asyncio.create_task(waited(Patience(), 5.0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_process_that_stood_still_reads_what_came_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, reader = LoopClock(monkeypatch), asyncio.StreamReader()

    async def read() -> bytes:
        with Patience().until(_now() + 0.05):
            return await reader.read(1)

    reading = asyncio.create_task(read())
    await clock.passes(0.0)
    await clock.passes(30.0)
    await clock.passes(GRACE_SECONDS * 0.9)
    # A loop may look at its timers before it looks at its sockets.
    reader.feed_data(b"x")

    assert await reading == b"x"


async def test_a_process_that_stands_still_time_and_again_is_still_given_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = LoopClock(monkeypatch)
    waiting = asyncio.create_task(waited(Patience(), 0.1))
    await clock.passes(0.0)
    for _ in range(3):  # each time it stands still to beyond the grace that it had
        await clock.passes(GRACE_SECONDS + STOOD_STILL_SECONDS + 0.1)
    await clock.passes(GRACE_SECONDS * 0.9)
    assert not waiting.done()

    await clock.passes(GRACE_SECONDS * 0.2)  # and now that it runs, its time comes to an end

    with pytest.raises(TimeoutError):
        await waiting


async def test_a_process_that_stood_still_does_not_wait_for_ever() -> None:
    asyncio.get_running_loop().call_soon(time.sleep, 0.6)
    with pytest.raises(TimeoutError), Patience().until(_now() + 0.01):
        await asyncio.Event().wait()
