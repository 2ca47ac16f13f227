"""Starting the launcher in a process of its own and watching it and its whole tree end."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.local.server import ROOT
from tests.ports import promised_port

PATIENCE = 60.0
"""Seconds after which something that should have happened has not, on however busy a machine."""

STANDIN = str(Path(__file__).with_name("standin.py"))
_QUICK = [sys.executable, "-S", STANDIN]
PROGRAMS: dict[str, list[str]] = {
    "migrate": ["true"],
    "gateway": [*_QUICK, "gateway"],
    "worker": [*_QUICK, "worker"],
    "embed": [*_QUICK, "embed"],
}
CRASHING = [*_QUICK, "crash", "no room on the hearth"]
MIGRATING = [sys.executable, STANDIN, "migrate"]


@dataclass
class Ended:
    """What a launcher left: its exit code, the lines it printed, and those on standard error."""

    code: int
    lines: list[str]
    errors: list[str]


class Launch:
    """A launcher on the folder `home`. Leaving the block kills it if it still runs."""

    def __init__(
        self,
        home: Path,
        *,
        port: int | None = None,
        wrap: tuple[str, ...] = (),
        embeddings: str = "none",
        **programs: list[str],
    ):
        self.home = home
        self.port = port or promised_port()
        self._wrap = wrap
        self._embeddings = embeddings
        self._programs = {**PROGRAMS, **programs}
        self._lines: list[str] = []

    def __enter__(self) -> Self:
        environment = {
            **os.environ,
            "PORT": str(self.port),
            "FIRESIDE_HOME": str(self.home),
            "FIRESIDE_LLM": "none",
            "FIRESIDE_EMBEDDINGS": self._embeddings,
        }
        command = [sys.executable, "-m", "tests.deploy.launch", json.dumps(self._programs)]
        self._process = subprocess.Popen(
            [*self._wrap, *command],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate(timeout=PATIENCE)

    @property
    def pid(self) -> int:
        return self._process.pid

    def line_with(self, part: str) -> str:
        """Read what the launcher prints up to a line with `part`, and return it."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line.rstrip("\n"))
            if part in line:
                return self._lines[-1]
        _, errors = self._process.communicate(timeout=PATIENCE)
        raise AssertionError(f"ended without {part!r}: {self._lines}\n{errors}")

    def says_more_within(self, seconds: float, *, after: str) -> bool:
        """Whether the launcher prints anything in this time, after the line with `after`."""
        self.line_with(after)
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], seconds)[0])

    def ready(self) -> None:
        self.line_with("Ctrl-C stops everything")

    def signal(self, signum: signal.Signals) -> None:
        self._process.send_signal(signum)

    def ended(self) -> Ended:
        """Wait for the launcher to end by itself."""
        output, errors = self._process.communicate(timeout=PATIENCE)
        return Ended(
            self._process.returncode, self._lines + output.splitlines(), errors.splitlines()
        )

    def tree(self) -> dict[int, str]:
        """The processes below the launcher, each with its command line."""
        return {pid: name for pid, name in _tree(self.pid).items() if pid != self.pid}

    def tree_with(self, *parts: str) -> dict[int, str]:
        """The tree as soon as each part is in some process's command line."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            tree = self.tree()
            if all(any(part in name for name in tree.values()) for part in parts):
                return tree
            time.sleep(0.01)
        raise AssertionError(f"not all of {parts} in {self.tree()}")

    def child(self, part: str) -> int:
        """The number of the one direct child whose command line contains `part`, as soon as it is
        there: between a fork and its program a child still has its parent's."""
        tree, parents = self.tree_with(part), _parents()
        (found,) = (p for p, name in tree.items() if part in name and parents.get(p) == self.pid)
        return found


class Watch:
    """Handles on processes, to see all of them end even if their numbers are used again."""

    def __init__(self, processes: dict[int, str]) -> None:
        self._handles: dict[int, str] = {}
        for pid, name in processes.items():
            with contextlib.suppress(ProcessLookupError):  # ended since it was listed
                self._handles[os.pidfd_open(pid)] = name

    def left_after(self, seconds: float) -> list[str]:
        """Wait until all have ended, or time is up; return those that have not."""
        left = dict(self._handles)
        while left:
            ended, _, _ = select.select(list(left), [], [], seconds)
            if not ended:
                break
            for handle in ended:
                del left[handle]
        for handle in self._handles:
            os.close(handle)
        return list(left.values())


def _tree(root: int) -> dict[int, str]:
    parents = _parents()
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: _command_line(pid) for pid in found}


def _parents() -> dict[int, int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text(errors="replace")
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(text.rpartition(")")[2].split()[1])
    return parents


def _command_line(pid: int) -> str:
    try:
        return (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    except OSError:
        return ""
