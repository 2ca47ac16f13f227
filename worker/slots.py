"""The places of a worker process, and whether they are scarce."""

import threading
import time

_SCARCE_SECONDS = 1.0
"""For so long after somebody waited, what was read ahead meanwhile may have become stale."""

_LOOK_SECONDS = 0.5
"""How often one who waits looks whether the process stops."""


class Slots:
    """Places for sessions; taken in Celery's threads, given back on the loop."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._change = threading.Condition()
        self._waiting = 0
        self._waited_at = float("-inf")

    @property
    def all_taken(self) -> bool:
        """Whether whoever comes has to wait."""
        return self._free == 0

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
            if self._free == 0 and not self._wait(stop):
                return False
            self._free -= 1
            return True

    def take_free(self) -> bool:
        """Take a place if there is one."""
        with self._change:
            if self._free == 0:
                return False
            self._free -= 1
            return True

    def _wait(self, stop: threading.Event) -> bool:
        self._waiting += 1
        try:
            while self._free == 0:
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
            self._free += 1
            self._change.notify()
