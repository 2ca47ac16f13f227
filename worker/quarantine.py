"""`python -m worker.quarantine`: runs the sessions in quarantine, one by one, until none is left.

A worker's keeper starts it. It drains, as a worker does, at SIGTERM and at the end of its standard
input, which is the end of that worker.
"""

import asyncio
import os
import select
import signal
import sys
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any
from uuid import UUID

import structlog

from shared.command import complain
from shared.errors import FiresideError
from shared.logs import set_up_logs
from shared.settings import get_settings
from shared.store import claims
from worker.claiming import claimed
from worker.host import Host
from worker.rota import BACK_OFF_SECONDS
from worker.start import agents_of, key_of, model_of, tiers_of
from worker.transcript import HISTORY_MESSAGES

log = structlog.get_logger(__name__)

_ALONE = UUID(int=0)
"""Stands for the session that is claimed and run: which one, only the claim tells."""


class QuarantineHost(Host):
    """A host that takes what is in quarantine instead of hints; its own SIGTERM says it is done."""

    _found = False
    _judges_after = 0.0  # it lives for one session, and its worker has been there for a while

    def _chores(self) -> Sequence[Coroutine[Any, Any, object]]:
        return [self._take_all()]

    async def _take_all(self) -> None:
        try:
            while not self._closing.is_set() and await self._take_one():
                pass
        except FiresideError as error:
            log.warning("quarantine left", error=str(error))
        os.kill(os.getpid(), signal.SIGTERM)
        await self._stop.wait()

    async def _take_one(self) -> bool:
        """Claim and run one session's task; whether there was one."""
        # A drain waits for it, whether it claims or runs.
        turn = self._rota.advancing[_ALONE] = asyncio.create_task(self._turn())
        await asyncio.wait({turn})
        self._rota.advancing.clear()
        turn.result()
        return self._found

    async def _turn(self) -> None:
        # As the rota does: it may be the last attempt that the task has.
        ask = partial(
            claims.claim_quarantined,
            self._db,
            lease_seconds=self._settings.lease_seconds,
            history=HISTORY_MESSAGES,
            back_off=BACK_OFF_SECONDS,
            rules=self._rules,
        )
        claim, began = await claimed(self._outage, ask)
        self._found = claim is not None
        if claim is None:
            return
        if self._closing.is_set():
            await self._runs.release(claim)
            return
        self._rota.advancing[claim.fence.session_id] = self._rota.advancing[_ALONE]
        log.info("runs alone", session_id=str(claim.fence.session_id), attempts=claim.attempts)
        if await self._runs.run(claim, began):
            await self._hints.send([claim.fence.session_id])


def main() -> int:
    """Run until nothing is left or this process is told to stop; its exit code."""
    woken, wake = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(wake, b"."))
    try:
        settings = get_settings()
        set_up_logs(settings)
        host = QuarantineHost(
            settings,
            agents_of(settings),
            model_of(settings),
            key_of(settings),
            tiers=tiers_of(settings),
            watched=True,
        )
        host.start()
    except FiresideError as error:
        return complain(f"the quarantine can't start: {error}")
    select.select([sys.stdin, woken], [], [])
    host.drain()
    return 0 if host.failure is None else 1


if __name__ == "__main__":
    sys.exit(main())
