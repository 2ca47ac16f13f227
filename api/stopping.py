"""Knowing that the process is about to stop before the server waits for open requests.

Servers run an application's shutdown only when all of its requests have ended; streams and long
polls must hear of it earlier, or they would hold up the stop.
"""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeAlias

_Handler: TypeAlias = Callable[[int, FrameType | None], Any] | int | None


class Stopping:
    """A flag that is raised once, by SIGTERM, SIGINT or by hand."""

    def __init__(self, on_stop: Callable[[], None]) -> None:
        self._on_stop = on_stop
        self._set = False

    def __bool__(self) -> bool:
        return self._set

    def begin(self) -> None:
        """Raise the flag, and tell those who wait."""
        if not self._set:
            self._set = True
            self._on_stop()

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Listen to the signals beside the server's own handlers, which are called all the same."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may have handlers
            return
        loop = asyncio.get_running_loop()
        before: dict[signal.Signals, _Handler] = {}

        def handle(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self.begin)
            previous = before[signal.Signals(number)]
            if callable(previous):
                previous(number, frame)

        for one in (signal.SIGTERM, signal.SIGINT):
            previous = signal.getsignal(one)
            if callable(previous):  # otherwise the server does not handle it: leave it so
                before[one] = previous
                signal.signal(one, handle)
        try:
            yield
        finally:
            for one, previous in before.items():
                if signal.getsignal(one) is handle:
                    signal.signal(one, previous)
