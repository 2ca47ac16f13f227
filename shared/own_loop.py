"""Work that must not wait for a busy event loop: on a loop and in a thread of its own."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import uvloop


async def on_own_loop(work: Callable[[], Coroutine[Any, Any, None]], *, name: str) -> None:
    """Do the work on a loop of its own until it is done, and raise what it raises.

    Each cancellation of the caller is the work's; the caller waits until that has ended.
    """
    outer, runner = asyncio.get_running_loop(), asyncio.Runner(loop_factory=uvloop.new_event_loop)
    inner = runner.get_loop()
    task = inner.create_task(work())
    over: asyncio.Future[None] = outer.create_future()

    def run() -> None:
        with runner:
            runner.run(_ended(task))
            with suppress(RuntimeError):  # the caller's loop is closed
                # Before this one is: that waits for a name that is being resolved.
                outer.call_soon_threadsafe(over.set_result, None)

    # A process that has to go does not wait for it.
    threading.Thread(target=run, name=name, daemon=True).start()
    cancelled = False
    while not over.done():
        try:
            await asyncio.shield(over)
        except asyncio.CancelledError:
            cancelled = True
            with suppress(RuntimeError):  # it has just ended
                inner.call_soon_threadsafe(task.cancel)
    if cancelled:
        if not task.cancelled():
            task.exception()  # so that it does not count as lost
        raise asyncio.CancelledError
    task.result()


async def _ended(task: asyncio.Task[None]) -> None:
    await asyncio.wait({task})
