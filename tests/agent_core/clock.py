"""The clock of the running loop in a test's hand: no test waits, and no slow machine decides."""

from __future__ import annotations

import asyncio

import pytest


class LoopClock:
    """A clock that stands still but for what it is told; what is due then is done."""

    def __init__(self, patched: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        self.now = loop.time()
        patched.setattr(loop, "time", lambda: self.now)

    async def passes(self, seconds: float) -> None:
        """Let time pass in one leap, as it does for a process that was frozen."""
        self.now += seconds
        for _ in range(5):
            await asyncio.sleep(0)


class Leap:
    """Puts a clock that runs forward: what would have to be waited for is over."""

    def __init__(self, patched: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        runs, self.seconds = loop.time, 0.0
        patched.setattr(loop, "time", lambda: runs() + self.seconds)
