"""One child process: it dies with us, is stopped with everything it started, and says when it is
ready.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self

from deploy.local.account import Account, shim_command
from deploy.local.errors import StartFailedError

POLL = 0.02  # seconds between two looks at a child that is starting or ending
_TELLING = re.compile(r"^fireside: |FATAL|PANIC|[Ee]rror|No space left|cannot|denied")


@dataclass(frozen=True, kw_only=True)
class Command:
    """What a child runs and how it wants to be treated. Times are seconds.

    `env` is the child's whole environment (None: ours). `stop_signal` asks for an orderly end, to
    be reached within `stop_timeout`; `orphan_signal` is what the kernel sends if we die.
    """

    name: str
    argv: Sequence[str]
    log: Path
    env: Mapping[str, str] | None = None
    cwd: Path = Path("/")
    account: Account = Account.SELF
    stop_signal: signal.Signals = signal.SIGTERM
    stop_timeout: float = 15.0
    orphan_signal: signal.Signals = signal.SIGKILL
    start_timeout: float = 60.0


class Process(Protocol):
    """What a child needs of its process: its number, and to be told of its end and reap it."""

    @property
    def pid(self) -> int:
        """Its number."""

    def has_ended(self) -> bool:
        """Tell whether it has ended, without reaping it where that is possible."""

    def wait(self) -> int:
        """Reap it, and return how it ended (negative: by that signal)."""


class _Started(subprocess.Popen[bytes]):
    def has_ended(self) -> bool:
        if sys.platform == "darwin":
            return self.poll() is not None
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


class Child:
    """A process of ours. Subclasses say how to prepare it and when it is ready.

    Start children from the main thread: the kernel's death signal follows the *thread* that
    forked, so from any other thread it is left out, and only `stop` or a Warden ends the child.
    """

    def __init__(self, command: Command) -> None:
        self.command = command
        self._process: Process | None = None
        self._returncode: int | None = None
        self._log_start = 0

    @property
    def name(self) -> str:
        """The name for logs and messages."""
        return self.command.name

    @property
    def pid(self) -> int:
        """The number of the last process started; RuntimeError if there was none."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """How the last process ended (negative: by that signal); None while it runs."""
        self._collect()
        return self._returncode

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        self._collect()
        return self._process is not None and self._returncode is None

    def prepare(self) -> None:
        """Do what must be done before the process can run (create its data); LaunchError if it
        cannot.
        """

    def probe(self) -> bool:
        """Tell whether the process is ready to serve; by default as soon as it runs."""
        return True

    def retry(self, output: list[str]) -> bool:
        """Tell from its output whether a process that ended while starting deserves another try."""
        return False

    def spawn(self) -> None:
        """Start the process without waiting for it to be ready."""
        if self.alive:
            raise RuntimeError(f"{self.name} is already running")
        self.prepare()
        command = self.command
        command.log.parent.mkdir(parents=True, exist_ok=True)
        with command.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = self.begin(log)
        self._returncode = None

    def begin(self, log: IO[bytes]) -> Process:
        """Begin the process, in a session of its own, with its output in the log."""
        command = self.command
        on_main_thread = threading.current_thread() is threading.main_thread()
        shim = shim_command(
            command.account,
            parent=os.getpid(),
            signum=command.orphan_signal if on_main_thread else 0,
        )
        return _Started(
            [*shim, *command.argv],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=None if command.env is None else dict(command.env),
            cwd=command.cwd,
            start_new_session=True,  # Ctrl-C in the terminal is for us alone
        )

    def start(self) -> Self:
        """Start the process and return when it is ready; StartFailedError if it ends or takes too
        long.
        """
        self.spawn()
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until `probe` says yes; StartFailedError if it ends first or is late."""
        limit = self.command.start_timeout if timeout is None else timeout
        deadline = time.monotonic() + limit
        while not (self.alive and self.probe()):
            in_time = time.monotonic() < deadline
            if not self.alive:
                if not (in_time and self.retry(self.output())):
                    raise self.failure(
                        f"ended with {describe(self._returncode)} instead of starting"
                    )
                self.spawn()
            if not in_time:
                raise self.failure(f"was not ready after {limit:.0f} s")
            time.sleep(POLL)

    def stop(self, timeout: float | None = None) -> None:
        """Ask the process to end, wait, and kill it and all of its group if it does not;
        idempotent.
        """
        if self.alive:
            self.signal(self.command.stop_signal)
            if not self.wait(self.command.stop_timeout if timeout is None else timeout):
                self.kill()

    def kill(self) -> None:
        """End the process and its group at once, as a crash would; idempotent."""
        if self.alive:
            os.killpg(self.pid, signal.SIGKILL)
            self.wait()

    def signal(self, signum: signal.Signals) -> None:
        """Send a signal to the process alone, if it runs."""
        if self.alive:  # so it is not reaped yet, and the number is certainly still its own
            os.kill(self.pid, signum)

    def restart(self) -> Self:
        """Stop and start."""
        self.stop()
        return self.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end of the process; False if it still runs after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = 0.001
        while self.alive:
            if deadline is not None and time.monotonic() >= deadline:
                return False
            time.sleep(pause)
            pause = min(pause * 2, POLL)
        return True

    def failure(self, what: str) -> StartFailedError:
        """Build the error that says what went wrong, with the most telling line of the log as the
        reason.
        """
        output = self.output()
        telling = [line for line in output if _TELLING.search(line)] or output
        reason = f": {telling[-1].strip()}" if telling else ""
        return StartFailedError(f"{self.name} {what}{reason}", log=self.command.log)

    def output(self) -> list[str]:
        """Return the lines that the last process has written to its log (of 64 KiB)."""
        return log_tail(self.command.log, since=self._log_start)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _collect(self) -> None:
        """Reap the process if it has ended, after killing what is left of its group.

        In this order: until it is reaped its number, which is also the group's, cannot go to
        others.
        """
        if self._process is None or self._returncode is not None:
            return
        if not self._process.has_ended():
            return
        pid = self._process.pid
        # macOS says EPERM when only the dead one is left in the group.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        self._returncode = self._process.wait()


def run(command: Command) -> tuple[int, list[str]]:
    """Run a program to its end within `start_timeout`; returns its exit code and the lines it
    wrote.
    """
    child = Child(command)
    child.spawn()
    try:
        if not child.wait(command.start_timeout):
            raise child.failure(f"did not end within {command.start_timeout:.0f} s")
    finally:
        child.kill()
    return child.returncode or 0, child.output()


def log_tail(log: Path, *, since: int = 0) -> list[str]:
    """Return a file's lines from byte `since` on, of its last 64 KiB, without empty ones."""
    if not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(max(since, file.seek(0, os.SEEK_END) - 65_536))
        text = file.read().decode(errors="replace")
    return [line for line in text.splitlines() if line.strip()]


def describe(returncode: int | None) -> str:
    """Say a return code in words."""
    if returncode is not None and returncode < 0:
        return f"signal {-returncode}"
    return f"exit code {returncode}"
