"""A time-out that does not blame others for the time in which this process stood still."""

from __future__ import annotations

import asyncio
from types import TracebackType

from agent_core.interruption import Interruption

STOOD_STILL_SECONDS = 0.2
"""A timer that comes so much too late says that the whole process stood still."""

GRACE_SECONDS = 0.5
"""How long what has come already may take to be read, once the deadline is there."""


class Patience:
    """`with patience.until(deadline):` ends what is awaited inside, soon after that loop's time.

    A process that was frozen, swapped out or blocked finds its deadlines passed and, behind them,
    all that came meanwhile. So a deadline counts only after a time of grace in which the process
    ran. It can be used again and again, at little cost: its timer stays and looks, when it goes
    off, whether anything is late. `close` when there is nothing more to wait for.

    Raises:
        TimeoutError: at the deadline.
    """

    __slots__ = ("_deadline", "_in_grace", "_interruption", "_looks_at", "_timer", "_waits")

    def __init__(self) -> None:
        self._deadline = 0.0
        self._in_grace = False
        self._waits = False
        self._interruption = Interruption()
        self._timer: asyncio.TimerHandle | None = None
        self._looks_at = 0.0  # not every loop's handles say when they are due

    def until(self, deadline: float) -> Patience:
        """The same patience, for one more wait."""
        self._deadline = deadline
        return self

    def __enter__(self) -> None:
        self._interruption.begin()
        self._waits = True
        self._in_grace = False
        if self._timer is None or self._looks_at > self._deadline:
            self._look_at(self._deadline)

    def _look_at(self, at: float) -> None:
        self.close()
        self._looks_at = at
        self._timer = asyncio.get_running_loop().call_at(at, self._look)

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        self._timer = None
        if not self._waits:
            return
        if not self._in_grace and now < self._deadline:  # of an earlier wait
            self._look_at(self._deadline)
        elif self._in_grace and now - self._deadline < STOOD_STILL_SECONDS:
            self._interruption.fire()
        else:
            self._in_grace = True
            self._deadline = now + GRACE_SECONDS
            self._look_at(self._deadline)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._waits = False
        if self._interruption.ended_by_it(kind):
            raise TimeoutError from error

    def close(self) -> None:
        """Let go of the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
