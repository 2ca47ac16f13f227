"""The keeper of a worker: it has a process of its own run what is in quarantine.

A task that took processes down with it must not take the thousand others of a worker again. Such
tasks are rare, so their process is started when one is found, and ends when none is left.
"""

import asyncio
import contextlib
import subprocess
import sys
from uuid import UUID

import structlog

from shared.store import quarantine
from shared.store.database import Database
from shared.trouble import Trouble

log = structlog.get_logger(__name__)

START_SECONDS = 15.0
"""How long the process may take until it has claimed the session that it was started for."""

LAST_SECONDS = 5.0
"""How long a process that drains may take beyond its budget; then it is killed."""

_LOOK_SECONDS = 0.1


class Keeper:
    """Looks for sessions in quarantine, and has at most one process that runs them.

    Nothing is ever written to the process' standard input. When it ends, because this worker is
    told to stop or is no more, the process hands over what it runs.

    Args:
        every: seconds between two looks.
    """

    def __init__(self, db: Database, *, every: float) -> None:
        self._db = db
        self._every = every
        self._child: subprocess.Popen[bytes] | None = None
        self._stopping = False

    async def keep_for_ever(self) -> None:
        """Look and start until cancelled."""
        trouble = Trouble(log, "quarantine not looked at")
        while True:
            await asyncio.sleep(self._every)
            session_id = None
            with trouble.catch():
                session_id = await quarantine.reserve(self._db, seconds=START_SECONDS)
            if session_id is not None and not self._stopping:
                await self._run_child(session_id)

    async def _run_child(self, session_id: UUID) -> None:
        try:
            self._child = child = _start()
        except OSError as error:
            # No process is free, or no memory. The thousand tasks of this worker go on; the session
            # is given out again when the time it was reserved for is over.
            log.warning("quarantine not begun", session_id=str(session_id), error=str(error))
            return
        log.warning("quarantine begun", session_id=str(session_id), pid=child.pid)
        code = await _end_of(child)
        self._child = None
        assert child.stdin is not None
        child.stdin.close()
        if code == 0:
            log.info("quarantine over", pid=child.pid)
        else:
            log.error("a process in quarantine ended", pid=child.pid, code=code)

    async def stop(self, budget: float) -> None:
        """Have the process end within its budget, in seconds, and start no other."""
        self._stopping = True
        child = self._child
        if child is None:
            return
        assert child.stdin is not None
        child.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(budget + LAST_SECONDS):
                await _end_of(child)
        if child.poll() is None:
            child.kill()
            await _end_of(child)


def _start() -> subprocess.Popen[bytes]:
    # A session of its own: what ends this worker's group must leave it the time to hand over.
    return subprocess.Popen(
        [sys.executable, "-m", "worker.quarantine"], stdin=subprocess.PIPE, start_new_session=True
    )


async def _end_of(child: subprocess.Popen[bytes]) -> int:
    """Wait for the end; asked again and again, for a thread that waits would outlive a cancel."""
    while (code := child.poll()) is None:  # noqa: ASYNC110 - nothing here tells of a process' end
        await asyncio.sleep(_LOOK_SECONDS)
    return code
