"""Ending tasks, also those that miss a cancellation."""

import asyncio
import random

import pytest
from redis.asyncio import Redis

from shared.ending import end_all, ended_within
from tests.waiting import within


async def for_ever() -> None:
    await asyncio.Event().wait()


async def test_all_have_ended_whatever_they_raise() -> None:
    async def failing() -> None:
        raise ValueError("failed before")

    async def failing_on_the_way_out() -> None:
        try:
            await for_ever()
        finally:
            raise ValueError("failed at its end")

    tasks = [asyncio.create_task(work()) for work in (for_ever, failing, failing_on_the_way_out)]
    await asyncio.sleep(0)

    await end_all(tasks)

    assert [task.cancelled() for task in tasks] == [True, False, False]


async def test_a_task_that_misses_a_cancellation_is_cancelled_again() -> None:
    missed = 0

    async def deaf() -> None:
        nonlocal missed
        while missed < 2:
            try:
                await for_ever()
            except asyncio.CancelledError:
                missed += 1
        await for_ever()

    task = asyncio.create_task(deaf())
    await asyncio.sleep(0)
    await within(end_all([task]))

    assert task.cancelled()
    assert missed == 2


@pytest.mark.parametrize("seed", range(3))
async def test_loops_that_speak_with_redis_end(redis: Redis, seed: int) -> None:
    """As a worker listens for cancels: send a command, then wait for what may never come."""
    choice = random.Random(seed)

    async def listen() -> None:
        while True:
            async with redis.pubsub() as pubsub:
                await pubsub.subscribe("quiet")
                async for _ in pubsub.listen():
                    pass

    for _ in range(40):
        tasks = [asyncio.create_task(listen()) for _ in range(3)]
        await asyncio.sleep(choice.random() * 0.004)
        await within(end_all(tasks))


async def test_work_is_done_or_ended_in_its_seconds() -> None:
    async def done() -> int:
        return 1

    assert (await ended_within(60, done())).result() == 1
    assert (await within(ended_within(0.01, for_ever()))).cancelled()


async def test_work_ends_with_who_waits_for_it() -> None:
    ended = asyncio.Event()

    async def working() -> None:
        try:
            await for_ever()
        finally:
            ended.set()

    waiting = asyncio.create_task(ended_within(3600, working()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await end_all([waiting])

    assert waiting.cancelled()
    assert ended.is_set()
