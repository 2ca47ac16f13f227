"""Processes in a moment: forked from one that has everything imported already.

    python -m tests.nursery

To start a gateway or a worker takes seconds of CPU, nearly all of them for imports, and the tests
start hundreds. The process reads a line of JSON for each program, its arguments, environment,
folder and log, and answers with the process's number; or for one to be reaped, and answers with how
it ended. All that it has borne die with it, and it dies with whoever started it.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import IO, Any

from deploy.local.fleet import Fleet, Gateway, Worker
from deploy.local.process import Child, Process
from deploy.local.server import ROOT
from deploy.local.shim import die_with

IMPORTED = (
    *("uvicorn", "uvloop", "httptools", "celery.bin.celery", "celery.apps.worker"),
    *("celery.worker.worker", "celery.concurrency.thread", "kombu.transport.redis"),
    *("api.gateway", "api.wire", "worker.start", "worker.companion", "worker.story"),
)
"""What gateways and workers import, but for the modules that read settings then."""


class Nursery:
    """The process that forks others, from outside."""

    def __init__(self) -> None:
        # It ends with its input: a death signal would come with the end of the thread that is here.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            start_new_session=True,
        )
        self._one_at_a_time = threading.Lock()

    def ask(self, wanted: Mapping[str, Any]) -> int:
        """Send a line; the number that is the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._one_at_a_time:
            self._process.stdin.write(json.dumps(wanted).encode() + b"\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())


@cache
def nursery() -> Nursery:
    """The nursery of this process, begun at its first use."""
    return Nursery()


class _Newborn:
    """As much of a `subprocess.Popen` as a `Child` needs."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def has_ended(self) -> bool:
        """Whether it waits to be reaped."""
        stat = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8", errors="replace")
        return stat.rpartition(")")[2].split()[0] == "Z"

    def wait(self) -> int:
        """Reap it; its exit code, negative for a signal."""
        return nursery().ask({"reap": self.pid})


class _Born(Child):
    """A child that is forked instead of started."""

    def begin(self, log: IO[bytes]) -> Process:
        """Fork a process that does what the command says."""
        command = self.command
        assert command.env is not None
        wanted = {
            "argv": list(command.argv),
            "env": dict(command.env),
            "cwd": str(command.cwd),
            "log": str(command.log),
        }
        return _Newborn(nursery().ask(wanted))


class _BornGateway(_Born, Gateway):
    pass


class _BornWorker(_Born, Worker):
    pass


class BornFleet(Fleet):
    """A fleet whose processes are forked: in all else they are what they are."""

    gateway_type = _BornGateway
    worker_type = _BornWorker


def main() -> None:
    """Fork processes until standard input ends."""
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is here stays shared
    for line in sys.stdin.buffer:
        wanted = json.loads(line)
        if "reap" in wanted:
            answer = os.waitstatus_to_exitcode(os.waitpid(wanted["reap"], 0)[1])
        else:
            mine = os.getpid()
            born, giving_birth = os.pipe()
            answer = os.fork()
            if answer == 0:
                _live(mine, wanted)
                return
            os.close(giving_birth)
            os.read(born, 1)  # nothing, but not before it has a session of its own
            os.close(born)
        os.write(1, b"%d\n" % answer)


def leave_home(nursery: int, log: str, env: Mapping[str, str]) -> None:
    """Be a process of one's own after a fork: with this log and nothing else in the environment,
    dead as soon as the nursery is."""
    die_with(nursery, signal.SIGKILL)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.environ.clear()
    os.environ.update(env)


def _live(mine: int, wanted: Mapping[str, Any]) -> None:
    """Be the program that is wanted, in a session of its own."""
    os.setsid()
    leave_home(mine, wanted["log"], wanted["env"])
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.closerange(3, null + 1)  # the pipe too: this tells that it is born
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.chdir(wanted["cwd"])
    dash, module, *arguments = wanted["argv"][1:]
    assert dash == "-m"
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
