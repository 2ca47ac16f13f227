"""A small process that cleans up after a launcher that could not: killed, or crashed.

The launcher writes one JSON line for each child it starts. When its end of the pipe closes, for
whatever reason, the warden stops the children that are left, last first, and kills every process
that carries the run's mark in its environment. It needs no feature of one kernel, so it also
serves where no death signal exists.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from deploy.local.process import Child
from deploy.local.server import ROOT

MARK = "FIRESIDE_RUN"  # in the environment of every process of one run
PATIENCE = 10.0  # seconds for one child to end in order
_POLL = 0.02


class Warden:
    """The launcher's end: start it before the first child, `close` it after the last.

    `lock` is the handle of the home's lock, which stays taken until the warden has ended too.
    """

    def __init__(self, mark: str, *, lock: int | None = None) -> None:
        command = [sys.executable, "-m", "deploy.local.warden", mark]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
            start_new_session=True,
            pass_fds=() if lock is None else (lock,),
        )

    @property
    def pid(self) -> int:
        """The number of the warden's process."""
        return self._process.pid

    def watch(self, child: Child) -> None:
        """Tell of a child that has just been spawned; a later process of the same name replaces
        it.
        """
        signum = int(child.command.stop_signal)
        line = json.dumps({"name": child.name, "pid": child.pid, "signal": signum})
        pipe = self._process.stdin
        if pipe is not None:
            with contextlib.suppress(
                BrokenPipeError
            ):  # somebody killed it: the death signal remains
                pipe.write(line.encode() + b"\n")
                pipe.flush()

    def close(self) -> None:
        """Let it kill what is left, and wait for its end."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()


class _Orphan:
    """A child of the launcher, held by a handle where the kernel has one, so that it is surely
    the same.
    """

    def __init__(self, pid: int, signum: int) -> None:
        self.pid = pid
        self.signum = signum
        self._handle: int | None = None
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                self._handle = os.pidfd_open(pid)

    def stop(self) -> None:
        """Ask it to end, wait, and kill it if it does not."""
        if self._send(self.signum) and not self._ends_within(PATIENCE):
            self._send(signal.SIGKILL)
            self._ends_within(PATIENCE)

    def _send(self, signum: int) -> bool:
        try:
            if sys.platform == "linux":
                if self._handle is None:
                    return False
                signal.pidfd_send_signal(self._handle, signum)
            else:
                os.kill(self.pid, signum)
        except OSError:
            return False
        return True

    def _ends_within(self, seconds: float) -> bool:
        if self._handle is not None:
            return bool(select.select([self._handle], [], [], seconds)[0])
        deadline = time.monotonic() + seconds
        while self._send(0):
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL)
        return True


def main(mark: str) -> None:
    """Read children until the pipe closes, then stop what is left."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    orphans: dict[str, _Orphan] = {}
    for line in sys.stdin:
        child = json.loads(line)
        orphans.pop(child["name"], None)
        orphans[child["name"]] = _Orphan(child["pid"], child["signal"])
    for orphan in reversed(orphans.values()):
        orphan.stop()
    kill_marked(mark)


def kill_marked(mark: str) -> None:
    """Kill every other process with the mark; again until none is left, since they may be
    forking.
    """
    for _ in range(50):
        found = marked(mark) - {os.getpid()}
        if not found:
            return
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL)


def marked(mark: str) -> set[int]:
    """Return the living processes that were started with the mark in their environment (Linux)."""
    wanted = f"{MARK}={mark}".encode()
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.add(int(folder.name))
        except OSError:
            continue  # it has ended, or is another user's
    return found


if __name__ == "__main__":
    main(sys.argv[1])
