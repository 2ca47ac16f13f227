"""Keeps children running: starts them in order, restarts those that crash, stops them in reverse
order.
"""

import contextlib
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from deploy.local.errors import GivenUpError
from deploy.local.process import Child, describe
from deploy.local.warden import Warden

_PROBE_EVERY = 0.1  # seconds, while a restarted child is not ready yet


@dataclass(frozen=True, kw_only=True)
class Policy:
    """When a crashed child is started again. Times are seconds.

    The nth failure in a row waits `first_pause` * 2^(n-1), at most `longest_pause`. A child that
    was up for `settled` begins at one again; more than `attempts` failures in a row are given up.
    """

    first_pause: float = 0.25
    longest_pause: float = 8.0
    settled: float = 30.0
    attempts: int = 5

    def pause(self, failures: int) -> float:
        """Return how long to wait after so many failures in a row."""
        return min(self.longest_pause, self.first_pause * 2.0 ** (failures - 1))


@dataclass
class _Watched:
    """A child with its history. `due` is set while it waits to be started again; without one that
    is `needed` nothing goes.
    """

    child: Child
    since: float
    needed: bool = True
    failures: int = 0
    due: float | None = None
    ready: bool = True


class Supervisor:
    """Runs children in one thread, the main one. `report` gets a line for each thing worth
    telling.
    """

    def __init__(
        self,
        *,
        report: Callable[[str], None],
        warden: Warden | None = None,
        policy: Policy | None = None,
    ) -> None:
        self._report = report
        self._warden = warden
        self._policy = policy or Policy()
        self._watched: list[_Watched] = []

    def add(self, child: Child, *, needed: bool = True) -> None:
        """Spawn a child and keep it; it is stopped before those that were added earlier.

        Args:
            needed: if it is given up, so is everything; else the others go on without it.
        """
        self._watched.append(_Watched(child, time.monotonic(), needed))
        self._spawn(child)

    def wait_ready(self, *children: Child) -> None:
        """Wait until the children are ready; StartFailedError as soon as one cannot be."""
        for child in children:
            pid = child.pid
            child.wait_ready()
            if self._warden is not None and child.pid != pid:
                self._warden.watch(child)

    def run(self) -> None:
        """Restart what crashes, for ever; GivenUpError if that is of no use.

        Ends only by an exception, as a signal handler of the caller raises it.
        """
        with _child_signals() as wakeup:
            while True:
                pauses = [self._look_after(watched) for watched in list(self._watched)]
                waiting = [pause for pause in pauses if pause is not None]
                if select.select([wakeup], [], [], min(waiting, default=None))[0]:
                    wakeup.recv(4096)

    def stop(self) -> None:
        """Stop all children in reverse order, waiting for each."""
        for watched in reversed(self._watched):
            watched.child.stop()

    def kill(self) -> None:
        """End all children at once."""
        for watched in reversed(self._watched):
            watched.child.kill()

    def _spawn(self, child: Child) -> None:
        child.spawn()
        if self._warden is not None:
            self._warden.watch(child)

    def _look_after(self, watched: _Watched) -> float | None:
        """Do what a child needs now; returns after how many seconds to look again (None: when it
        ends).
        """
        now = time.monotonic()
        if watched.due is not None:
            if now < watched.due:
                return watched.due - now
            watched.due, watched.since, watched.ready = None, now, False
            self._spawn(watched.child)
            return 0.0
        if not watched.child.alive:
            self._failed(watched, now)
            return 0.0
        if watched.ready:
            return None
        return self._await(watched, now)

    def _await(self, watched: _Watched, now: float) -> float | None:
        """See whether a restarted child is ready; kill it if it takes too long."""
        child = watched.child
        if child.probe():
            watched.ready = True
            self._report(f"{child.name} is running again")
            return None
        if now - watched.since > child.command.start_timeout:
            child.kill()
            return 0.0
        return _PROBE_EVERY

    def _failed(self, watched: _Watched, now: float) -> None:
        """Count the failure and plan the next start, or give up."""
        child, policy = watched.child, self._policy
        if watched.ready and now - watched.since > policy.settled:
            watched.failures = 0
        watched.failures += 1
        how = describe(child.returncode)
        if watched.failures > policy.attempts:
            self._give_up(watched, how)
            return
        watched.due = now + policy.pause(watched.failures)
        self._report(f"{child.name} ended unexpectedly with {how}; starting it again")

    def _give_up(self, watched: _Watched, how: str) -> None:
        """Raise GivenUpError, or leave out a child that nothing needs."""
        child, log = watched.child, watched.child.command.log
        message = f"{child.name} ended {watched.failures} times in a row, last with {how}"
        if watched.needed:
            raise GivenUpError(message, log=log)
        self._watched.remove(watched)
        why = "".join(f": {line.strip()}" for line in child.output()[-1:])
        self._report(f"{message}{why}; going on without it (log: {log})")


@contextlib.contextmanager
def _child_signals() -> Iterator[socket.socket]:
    """Give a socket that becomes readable when a child ends, or any other signal arrives."""
    reading, writing = socket.socketpair()
    reading.setblocking(False)
    writing.setblocking(False)
    before = signal.signal(signal.SIGCHLD, lambda *_: None)
    wakeup = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGCHLD, before)
        reading.close()
        writing.close()
