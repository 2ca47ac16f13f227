"""The places of a worker process, and whether they are scarce."""

import threading
import time

_SCARCE_SECONDS = 1.0
"""For so long after somebody waited, what was read ahead meanwhile may have become stale."""

_LOOK_SECONDS = 0.5
"""How often one who waits looks whether the process stops."""


class Slots:
    """Places for sessions; taken in Celery's threads, given back on the loop.

    While they are `held_back` one session is let in at a time: the process is short of memory, and
    must nevertheless come to the end of what waits for it. `most` may be taken at once: fewer than
    there are, `count`, where the process has too much to do.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._most = count
        self._taken = 0
        self._held_back = False
        self._change = threading.Condition()
        self._waiting = 0
        self._waited_at = float("-inf")

    @property
    def all_taken(self) -> bool:
        """Whether whoever comes has to wait."""
        return not self._has_one

    @property
    def taken(self) -> int:
        """How many are taken."""
        return self._taken

    @property
    def wanted(self) -> bool:
        """Whether a hint waits for a place now."""
        return self._waiting > 0

    @property
    def scarce(self) -> bool:
        """Whether a hint waits for a place, or did a moment ago."""
        return self.wanted or time.monotonic() - self._waited_at < _SCARCE_SECONDS

    def take(self, stop: threading.Event) -> bool:
        """Take a place, wait for one where there is none; False where `stop` was set meanwhile."""
        with self._change:
            if not self._has_one and not self._wait(stop):
                return False
            self._taken += 1
            return True

    def take_free(self) -> bool:
        """Take a place if there is one."""
        with self._change:
            if not self._has_one:
                return False
            self._taken += 1
            return True

    def hold_back(self, held_back: bool) -> None:
        """Let in one session at a time from now on, or as many as there are places again."""
        with self._change:
            self._held_back = held_back
            self._change.notify_all()

    @property
    def most(self) -> int:
        """How many may be taken at once, as far as the process' time goes."""
        return self._most

    @most.setter
    def most(self, most: int) -> None:
        with self._change:
            self._most = most
            self._change.notify_all()

    @property
    def _has_one(self) -> bool:
        return self._taken < (1 if self._held_back else self._most)

    def _wait(self, stop: threading.Event) -> bool:
        self._waiting += 1
        try:
            while not self._has_one:
                if stop.is_set():
                    return False
                self._change.wait(_LOOK_SECONDS)
            return True
        finally:
            self._waiting -= 1
            self._waited_at = time.monotonic()

    def give_back(self) -> None:
        """Leave a place to whoever waits."""
        with self._change:
            self._taken -= 1
            self._change.notify()
