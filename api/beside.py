"""What runs beside the requests for as long as the process; what fails is begun again."""

import asyncio
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any, TypeAlias

import structlog

from shared.ending import end_all, goes_on

log = structlog.get_logger(__name__)

_SHORTEST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
_STEADY_SECONDS = 60.0
"""What ran for so long before it failed is begun again at once, as after a first failure."""

Work: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


class Beside:
    """The works of one process, by name. Each of them waits out what it expects to go wrong; this
    is for what nobody expected, after which a work would be gone for as long as the process lives.
    """

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._pausing: set[str] = set()

    def begin(self, name: str, work: Work) -> None:
        """Do a work until `end`."""
        self._tasks[name] = asyncio.create_task(self._do(name, work))

    @property
    def ended(self) -> list[str]:
        """The works that are not being done just now."""
        return [name for name, task in self._tasks.items() if name in self._pausing or task.done()]

    async def end(self) -> None:
        """End all works."""
        await end_all(self._tasks.values())

    async def _do(self, name: str, work: Work) -> None:
        pause = _SHORTEST_PAUSE
        while goes_on():
            began = monotonic()
            try:
                await work()
            except Exception:  # the edge: nobody else would begin it again
                if monotonic() - began > _STEADY_SECONDS:
                    pause = _SHORTEST_PAUSE
                log.exception("background task ended", task=name, retry_in=pause)
            self._pausing.add(name)
            await asyncio.sleep(pause)
            self._pausing.discard(name)
            pause = min(pause * 2, _LONGEST_PAUSE)
