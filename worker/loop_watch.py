"""Whether this process' loop turns in time, and how many sessions it runs at once so that it does.

How many answers a processor can read at once depends on the way to the model (by way of litellm a
chunk costs about thirty times as much), and on what else the machine does. A process that takes
more than that serves none of them faster, and answers to nothing in time.
"""

import asyncio
import time

import structlog

from agent_core.loop_turns import waited_seconds
from worker.slots import Slots

log = structlog.get_logger(__name__)

LOOK_SECONDS = 0.1
"""How often it is looked how late the loop is."""

LATE_SECONDS = 0.15
"""A loop that is later than this takes no more sessions. Where answers wait for their turns each of
them gets seven tokens a second by then, which is about as fast as people read."""

FEWEST_SESSIONS = 4
"""So many are run at once however late the loop is: it may be the machine that is."""

_NEWEST, _LATEST = 0.2, 4 * LATE_SECONDS
"""What the newest look counts for, and for how many seconds at the most: a loop that was late once,
as one is whose process was frozen, is not late."""

_FEWER, _MORE = 0.95, 1.05
"""How the number of sessions changes from look to look."""


class LoopWatch:
    """Holds sessions back while the loop is late; `late` says by how many seconds it was lately.

    Late is also a loop on which the chunks of answers wait for their turn.
    """

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self.late = 0.0

    async def watch_for_ever(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            slept = time.monotonic()
            await asyncio.sleep(LOOK_SECONDS)
            late = time.monotonic() - slept - LOOK_SECONDS
            self.look(max(late, waited_seconds()))

    def look(self, late: float) -> None:
        """Take note of how late the loop was just now."""
        self.late += (min(late, _LATEST) - self.late) * _NEWEST
        slots, most = self._slots, self._slots.most
        if self.late > LATE_SECONDS and slots.taken:
            most = max(FEWEST_SESSIONS, int(min(most, slots.taken) * _FEWER))
        else:
            most = int(most * _MORE) + 1
        most = min(most, slots.count)
        if most == slots.most:
            return
        if slots.most == slots.count:
            log.warning(
                "the loop is late: sessions wait",
                seconds=round(self.late, 2),
                in_flight=slots.taken,
            )
        slots.most = most
        if most == slots.count:
            log.info("the loop is in time: sessions wait no more")
