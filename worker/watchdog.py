"""Ends a process whose loop stands still, as one does in which a task computes without end.

Its leases are others' by then. Left alone it would hold its slots for ever and swallow hints, and a
task that blocks one worker after the other would take all of them out of service.
"""

import asyncio
import faulthandler

_FEED_SECONDS = 1.0


async def watch_for_ever(stuck_seconds: float) -> None:
    """Keep the process alive until cancelled.

    Where this has not been heard of for so long, every thread's stack is written to standard error
    and the process exits with 1. That is done by a thread of the interpreter's own which needs no
    lock of its: a regular expression that never comes back stops all others.
    """
    try:
        while True:
            faulthandler.dump_traceback_later(stuck_seconds, exit=True)
            await asyncio.sleep(min(_FEED_SECONDS, stuck_seconds / 4))
    finally:
        faulthandler.cancel_dump_traceback_later()
