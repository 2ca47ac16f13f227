"""Worker processes in a moment: forked from one process that has everything imported already.

    python -m tests.failpoints.nursery

reads a line of JSON for each worker, its environment and its log, and writes a line when one is
born, `{"born": pid}`, and when one has ended, `{"ended": pid, "code": code}`. A worker is a host
as Celery's process has it, fed from the queue without Celery. All of them die with the nursery,
and that with whoever started it.
"""

import asyncio
import contextlib
import faulthandler
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID

import redis

from deploy.local.account import Account, shim_command
from deploy.local.server import ROOT
from shared.encoding import loads
from shared.logs import set_up_logs
from shared.queue import hint_of
from shared.settings import Settings, get_settings
from tests.failpoints import effects_agent
from tests.nursery import leave_home
from worker.host import Host
from worker.start import start_host

IMPORTED = (effects_agent,)
"""What a worker imports later on, and should find imported already."""

IDLE_SECONDS = 10.0
"""How long a worker that is to end when it is idle may still work."""


class Newborn:
    """A worker process. `ended` gets its exit code, negative for a signal."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def signal(self, signum: signal.Signals) -> None:
        """Send a signal, if it has not ended."""
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):  # reaped, but not yet told
                os.kill(self.pid, signum)


class Nursery:
    """The process that forks workers, from outside."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._one_birth = asyncio.Lock()
        self._born: asyncio.Queue[Newborn] = asyncio.Queue()
        self._living: dict[int, Newborn] = {}

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator["Nursery"]:
        """Start the process; at the end it goes, and every worker with it."""
        shim = shim_command(Account.SELF, parent=os.getpid(), signum=signal.SIGKILL)
        process = await asyncio.create_subprocess_exec(
            *(*shim, sys.executable, "-m", "tests.failpoints.nursery"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            start_new_session=True,
        )
        nursery = cls(process)
        listening = asyncio.ensure_future(nursery._listen())
        try:
            yield nursery
        finally:
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()
            await listening

    async def worker(
        self, env: Mapping[str, str], log: Path, *, only: UUID, patient: bool = True
    ) -> Newborn:
        """Fork a worker with nothing in its environment but this.

        Args:
            only: the session that it is for; its first sweep may find hints for others.
            patient: told to stop, it first waits until it has nothing to do.
        """
        async with self._one_birth:
            wanted = {"env": dict(env), "log": str(log), "only": str(only), "patient": patient}
            assert self._process.stdin is not None
            self._process.stdin.write(f"{json.dumps(wanted)}\n".encode())
            return await self._born.get()

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            match json.loads(line):
                case {"born": pid}:
                    self._living[pid] = Newborn(pid)
                    self._born.put_nowait(self._living[pid])
                case {"ended": pid, "code": code}:
                    self._living.pop(pid).ended.set_result(code)


def main() -> None:
    """Fork workers until standard input ends."""
    signal.signal(signal.SIGCHLD, _reap)
    for line in sys.stdin:
        wanted = json.loads(line)
        # No worker's end is told before its birth.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        nursery = os.getpid()
        pid = os.fork()
        if pid == 0:
            _live(nursery, wanted)
        _tell({"born": pid})
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])


def _reap(*_: object) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            _tell({"ended": pid, "code": os.waitstatus_to_exitcode(status)})


def _tell(line: Mapping[str, int]) -> None:
    os.write(1, json.dumps(line).encode() + b"\n")


def _live(nursery: int, wanted: Mapping[str, Any]) -> NoReturn:
    """Be a worker, and never return."""
    code = 1
    try:
        leave_home(nursery, wanted["log"], wanted["env"])
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        _work(UUID(wanted["only"]), patient=wanted["patient"])
        code = 0
    except Exception:  # noqa: BLE001 - whatever it is, this process must not be another nursery
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _work(only: UUID, *, patient: bool) -> None:
    settings = get_settings()
    set_up_logs(settings)
    # Only sigwait takes signals: a handler would wait for a thread that may sleep in a read.
    awaited = {signal.SIGTERM, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    host = start_host(settings)
    threading.Thread(target=_feed, args=(host, settings, only), daemon=True).start()
    while signal.sigwait(awaited) == signal.SIGUSR1:
        _tell_all(host)
    signal.signal(signal.SIGUSR1, lambda *_: _tell_all(host))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    until = time.monotonic() + IDLE_SECONDS
    while patient and host._rota.advancing and time.monotonic() < until:
        time.sleep(0.01)
    host.drain()


def _feed(host: Host, settings: Settings, only: UUID) -> None:
    queue = redis.Redis.from_url(settings.redis_url.get_secret_value(), socket_timeout=None)
    while True:
        popped = queue.brpop([settings.queue])
        assert popped is not None
        if hint_of(loads(popped[1])) == only:
            host.submit(only)


def _tell_all(host: Host) -> None:
    """Write into the log what each thread and each task is at, for whoever waits for an end."""
    faulthandler.dump_traceback()
    assert host._loop is not None
    for task in asyncio.all_tasks(host._loop):
        task.print_stack()


if __name__ == "__main__":
    main()
