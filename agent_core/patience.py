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
    """`with Patience(deadline):` ends what is awaited inside, soon after that time of the loop.

    A process that was frozen, swapped out or blocked finds its deadlines passed and, behind them,
    all that came meanwhile. So a deadline counts only after a time of grace in which the process
    ran.

    Raises:
        TimeoutError: at the deadline.
    """

    __slots__ = ("_deadline", "_in_grace", "_interruption", "_timer")

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._in_grace = False
        self._interruption = Interruption()

    def __enter__(self) -> None:
        self._interruption.begin()
        self._wait()

    def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(self._deadline, self._on_deadline)

    def _on_deadline(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._in_grace and now - self._deadline < STOOD_STILL_SECONDS:
            self._interruption.fire()
            return
        self._in_grace = True
        self._deadline = now + GRACE_SECONDS
        self._wait()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        if self._interruption.ended_by_it(kind):
            raise TimeoutError from error
