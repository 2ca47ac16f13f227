"""Ending tasks for certain."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

_AGAIN_SECONDS = 0.25


def goes_on() -> bool:
    """Whether nobody has cancelled the task that asks: what a loop for ever goes on by, for the
    cancellation itself may have been swallowed (see `end_all`)."""
    task = asyncio.current_task()
    return task is None or not task.cancelling()


async def end_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks until each of them has ended; nothing is raised of what they raise.

    Before Python 3.12 `asyncio.wait_for`, by which redis-py sends each command, can swallow a
    cancellation that comes just as the command has gone out. A task that goes on for ever would
    then go on.
    """
    ending = list(tasks)
    while pending := [task for task in ending if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=_AGAIN_SECONDS)
    for task in ending:
        if not task.cancelled():
            task.exception()  # so that it does not count as lost


async def ended_within(seconds: float, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """The task that did the work for so many seconds at the most; it has ended, one way or another.

    `asyncio.timeout` cancels once, which `end_all` tells is not enough.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait([task], timeout=seconds)
    finally:
        await end_all([task])
    return task
