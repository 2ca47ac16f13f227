"""The abort signal and waiting that ends with it."""

from __future__ import annotations

import asyncio

import pytest

from agent_core import AbortedError, AbortSignal
from agent_core.abort import UntilAbort


async def test_what_is_awaited_ends_with_the_signal() -> None:
    signal = AbortSignal()
    asyncio.get_running_loop().call_soon(signal.set)

    with pytest.raises(AbortedError), UntilAbort(signal):
        await asyncio.Event().wait()

    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_all_who_wait_for_a_signal_hear_of_it() -> None:
    signal = AbortSignal()
    waits = [asyncio.create_task(signal.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    waits.pop().cancel()
    signal.set()

    assert await asyncio.gather(*waits) == [True, True]
    assert await signal.wait()


async def test_a_signal_that_is_set_lets_nothing_begin() -> None:
    signal = AbortSignal()
    signal.set()
    signal.set()

    with pytest.raises(AbortedError), UntilAbort(signal):
        raise RuntimeError("never reached")


async def test_a_task_that_sets_its_own_signal_is_not_cancelled_later() -> None:
    signal = AbortSignal()
    with UntilAbort(signal):
        signal.set()
    await asyncio.sleep(0)


async def test_a_cancellation_from_outside_stays_one() -> None:
    signal = AbortSignal()

    async def wait() -> None:
        with UntilAbort(signal):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    signal.set()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_in_the_same_moment_goes_first() -> None:
    signal = AbortSignal()

    async def fail() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("in cleaning up")

    asyncio.get_running_loop().call_soon(signal.set)
    with pytest.raises(ValueError, match="in cleaning up"), UntilAbort(signal):
        await fail()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_nested_waits_end_together() -> None:
    signal = AbortSignal()
    asyncio.get_running_loop().call_soon(signal.set)

    with pytest.raises(AbortedError), UntilAbort(signal), UntilAbort(signal):
        await asyncio.Event().wait()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


def test_without_a_task_there_is_nothing_to_end() -> None:
    loop = asyncio.new_event_loop()
    caught: list[BaseException] = []

    def enter() -> None:
        try:
            with UntilAbort(AbortSignal()):
                pass
        except RuntimeError as error:
            caught.append(error)
        loop.stop()

    loop.call_soon(enter)
    loop.run_forever()
    loop.close()

    assert "needs a running task" in str(caught[0])
