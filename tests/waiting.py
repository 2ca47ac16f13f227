"""Waiting for what must happen: by a deadline, never by a number of looks.

How long so many looks take is up to the machine: on a quick one they are over before the thing
itself had its time.
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 30.0
"""Seconds after which something that should have happened has not, on however busy a machine."""

PAUSE = 0.01
"""Seconds between two looks."""


async def within(awaited: Awaitable[T], seconds: float = PATIENCE) -> T:
    """The result of what must be there in so many seconds; raises TimeoutError if it is not."""
    async with asyncio.timeout(seconds):
        return await awaited


async def until(condition: Callable[[], Awaitable[bool] | bool], seconds: float = PATIENCE) -> None:
    """Look again and again until something is so, where no event tells of it.

    The last look begins after the deadline, so that a machine that stood still in between does not
    decide.

    Raises:
        AssertionError: it is not so after so many seconds.
    """
    deadline = time.monotonic() + seconds
    while True:
        late = time.monotonic() >= deadline
        holds = condition()
        if await holds if inspect.isawaitable(holds) else holds:
            return
        assert not late, f"it did not come to that in {seconds:g} s"
        await asyncio.sleep(PAUSE)
