"""Ending what a task awaits, as `asyncio.timeout` does: a cancellation becomes an error."""

from __future__ import annotations

import asyncio


def ends_this_task(error: BaseException) -> bool:
    """Whether an exception is meant for the running task, and not a failure of what it called.

    A cancellation that nobody asked of this task is a failure: something cancelled was awaited.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is None or task.cancelling() > 0
    return isinstance(error, (KeyboardInterrupt, GeneratorExit))


class Interruption:
    """Cancels the task it was last begun in; knows its own cancellations on the way out."""

    __slots__ = ("_cancelling", "_fired", "_task")

    def __init__(self) -> None:
        self._fired = 0

    def begin(self) -> None:
        """Take the running task for the one to interrupt."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("this needs a running task")
        self._task = task
        self._fired = 0
        self._cancelling = task.cancelling()

    def fire(self) -> None:
        """Cancel what the task awaits."""
        self._fired += 1
        self._task.cancel()

    def ended_by_it(self, kind: type[BaseException] | None) -> bool:
        """Whether what was inside ended by these cancellations and by nobody else's.

        Args:
            kind: of the exception that leaves, None if there is none.
        """
        if not self._fired:
            return False
        left = min([self._task.uncancel() for _ in range(self._fired)])
        return left <= self._cancelling and kind is asyncio.CancelledError
