"""The time-outs of one attempt, which stand still while a model call waits for its turn."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager


class Deadlines:
    """Time-outs that can all be stopped and go on later.

    A provider's limit makes calls wait for minutes; none of them hangs.
    """

    def __init__(self) -> None:
        self._left: dict[asyncio.Timeout, float] = {}
        self._stops = 0

    @asynccontextmanager
    async def within(self, seconds: float) -> AsyncIterator[None]:
        """Give what is inside so many seconds, waiting not counted; raises TimeoutError."""
        async with asyncio.timeout(seconds) as timeout:
            self._left[timeout] = seconds
            if self._stops:
                self._stop(timeout)
            try:
                yield
            finally:
                del self._left[timeout]

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Let no time-out run meanwhile; may be opened several times at once."""
        self._stops += 1
        if self._stops == 1:
            for timeout in self._left:
                self._stop(timeout)
        try:
            yield
        finally:
            self._stops -= 1
            if not self._stops:
                now = asyncio.get_running_loop().time()
                for timeout, left in self._left.items():
                    if not timeout.expired():
                        timeout.reschedule(now + left)

    def _stop(self, timeout: asyncio.Timeout) -> None:
        when = timeout.when()
        if when is not None and not timeout.expired():
            self._left[timeout] = when - asyncio.get_running_loop().time()
            timeout.reschedule(None)
