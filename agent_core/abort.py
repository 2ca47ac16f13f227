"""Telling running work to stop: the abort signal, and waiting that ends with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Literal, Protocol

from agent_core.errors import AbortedError
from agent_core.interruption import Interruption

CLEANUP_SECONDS = 2.0
"""How long what was told to stop may clean up; then its cleaning up is ended, too."""


class CancelEvent(Protocol):
    """What a caller may pass as the cancel signal: an `asyncio.Event` fits."""

    def is_set(self) -> bool:
        """Whether the work is to stop."""

    async def wait(self) -> object:
        """Return when the work is to stop."""


class AbortSignal:
    """An event that also calls back, so that waiting on it needs no task.

    A task has three, and hardly anyone waits on them: an `asyncio.Event` takes 0.9 KB for its
    waiters, whether there are any or not.
    """

    __slots__ = ("__weakref__", "_callbacks", "_is_set")

    def __init__(self) -> None:
        self._is_set = False
        self._callbacks: list[Callable[[], None]] = []

    def is_set(self) -> bool:
        """Whether the work is to stop."""
        return self._is_set

    def set(self) -> None:
        """Raise the signal; the second time changes nothing."""
        if self._is_set:
            return
        self._is_set = True
        for callback in tuple(self._callbacks):
            callback()

    async def wait(self) -> Literal[True]:
        """Return when the signal is set."""
        if self._is_set:
            return True
        raised = asyncio.get_running_loop().create_future()

        def on_abort() -> None:
            if not raised.done():
                raised.set_result(None)

        self.add_callback(on_abort)
        try:
            await raised
        finally:
            self.remove_callback(on_abort)
        return True

    def add_callback(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the signal is set; it must be quick and not raise."""
        self._callbacks.append(callback)

    def remove_callback(self, callback: Callable[[], None]) -> None:
        """Forget a callback."""
        self._callbacks.remove(callback)


@asynccontextmanager
async def signal_from(cancel: CancelEvent | None) -> AsyncIterator[AbortSignal]:
    """Give an AbortSignal that is set when `cancel` is."""
    if isinstance(cancel, AbortSignal):
        yield cancel
        return
    signal = AbortSignal()
    if cancel is None:
        yield signal
        return
    if cancel.is_set():
        signal.set()
    watcher = asyncio.create_task(_forward(cancel, signal))
    try:
        yield signal
    finally:
        watcher.cancel()


async def _forward(cancel: CancelEvent, signal: AbortSignal) -> None:
    await cancel.wait()
    signal.set()


@contextmanager
def signal_after(seconds: float) -> Iterator[AbortSignal]:
    """Give an AbortSignal that is set after so many seconds."""
    signal = AbortSignal()
    timer = asyncio.get_running_loop().call_later(seconds, signal.set)
    try:
        yield signal
    finally:
        timer.cancel()


class UntilAbort:
    """`with UntilAbort(signal):` lets the signal end what is awaited inside, by AbortedError.

    Unless somebody else has cancelled the task, too. What then awaits anything in cleaning up
    is cancelled again, every CLEANUP_SECONDS.
    """

    __slots__ = ("_handle", "_interruption", "_signal")

    def __init__(self, signal: AbortSignal) -> None:
        self._signal = signal
        self._interruption = Interruption()
        self._handle: asyncio.Handle | None = None

    def __enter__(self) -> None:
        if self._signal.is_set():
            raise AbortedError
        self._interruption.begin()
        self._signal.add_callback(self._on_abort)

    def _on_abort(self) -> None:
        # Not at once: the signal may be set by the very task that waits here, and a task that
        # cancels itself would be cancelled at its next await, which may be outside.
        self._handle = asyncio.get_running_loop().call_soon(self._interrupt)

    def _interrupt(self) -> None:
        self._interruption.fire()
        loop = asyncio.get_running_loop()
        self._handle = loop.call_later(CLEANUP_SECONDS, self._interrupt)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._signal.remove_callback(self._on_abort)
        if self._handle is not None:
            self._handle.cancel()
        if self._interruption.ended_by_it(kind):
            raise AbortedError from error
