"""The rota: which sessions this process has begun, and whose turn it is where places are scarce."""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any
from uuid import UUID

import structlog

from shared.errors import FiresideError, StoreUnavailable
from shared.levels import FIRST
from shared.queue import Hints
from shared.records import Claim
from shared.settings import Settings
from shared.store import claims, turns
from shared.store.database import Database
from worker.agent_cache import AgentCache
from worker.claiming import claimed
from worker.holding import Held, Holding
from worker.outage import Outage
from worker.runs import Runs
from worker.slots import Slots
from worker.task_store import AttemptLostError
from worker.transcript import HISTORY_MESSAGES, Transcript

log = structlog.get_logger(__name__)

BACK_OFF_SECONDS = 1.0
"""How long a session waits after its third lost attempt; after each further one twice as long."""

HAND_OVER_SECONDS = 1.0
"""How long a stopping process may take to give back what did not end within its budget. Should
Postgres not answer by then, the leases run out by themselves."""


class Rota:
    """Begins sessions, and runs the tasks of each one after the other.

    Everything here is called on the loop. Who calls `begin` has taken a slot.

    Args:
        closing: set once no more sessions are to begin.

    `advancing` are the sessions that have begun, each with its asyncio task.
    """

    def __init__(
        self,
        settings: Settings,
        closing: threading.Event,
        *,
        db: Database,
        hints: Hints,
        runs: Runs,
        holding: Holding,
        outage: Outage,
        slots: Slots,
        cache: AgentCache,
    ) -> None:
        self.advancing: dict[UUID, asyncio.Task[None]] = {}
        self._settings = settings
        self._rules = settings.budgets
        # Where no start would be left for the quarantine, the task is given up at once.
        after = settings.quarantine_after
        self._quarantine_after = after if after < settings.max_attempts else None
        self._closing = closing
        self._db = db
        self._hints = hints
        self._runs = runs
        self._holding = holding
        self._outage = outage
        self._slots = slots
        self._cache = cache
        self._beside: set[asyncio.Task[None]] = set()
        self._hinted_again: set[UUID] = set()

    def exchange(self, session_id: UUID, level: int, answer: Future[UUID]) -> None:
        """Give a hint back for a better one, which the answer is; it was read while no slot was
        free."""
        self._do_beside(self._exchange(session_id, level, answer))

    async def _exchange(self, session_id: UUID, level: int, answer: Future[UUID]) -> None:
        best = session_id
        try:
            best = await self._hints.exchange(session_id, level)
        except FiresideError as error:
            log.warning("hint not exchanged", error=str(error))
        finally:
            answer.set_result(best)

    def hint_again(self, session_id: UUID, level: int = FIRST) -> None:
        """Have a session that is held here looked at once more; if it is not any more, by others.

        Whether the task that holds it had looked for more already, nobody here can know.
        """
        if session_id in self.advancing:
            self._hinted_again.add(session_id)
        elif not self._closing.is_set():
            self._do_beside(self._hint({session_id: level}, home=not self._slots.scarce))

    async def _hint(self, levels: Mapping[UUID, int], *, home: bool = False) -> None:
        try:
            await self._hints.send(levels, levels, home=home)
        except FiresideError as error:
            log.warning("not hinted", error=str(error))  # the sweep does

    def _do_beside(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)
        return task

    def has_room(self) -> bool:
        """Whether a hint that comes to this worker begins at once and takes nobody's turn."""
        return not (
            self._closing.is_set()
            or self._outage.lasts
            or self._slots.scarce
            or self._slots.all_taken
            or not self._cache.holds_any
        )

    def begin_here(self, session_id: UUID, level: int) -> None:
        """Take a hint that came to this worker; without room here it is anyone's, in its turn."""
        if session_id in self.advancing:
            self.hint_again(session_id, level)
        elif self.has_room() and self._slots.take_free():
            self.begin(session_id)
        else:
            self._do_beside(self._hint({session_id: level}))

    def begin(self, session_id: UUID) -> None:
        """Begin a session in the slot that was taken for it; it is given back when it is done."""
        if session_id in self.advancing:
            self.hint_again(session_id)
            self._slots.give_back()
            return
        if self._closing.is_set():
            self._slots.give_back()
            return
        task = asyncio.get_running_loop().create_task(self._advance(session_id))
        self.advancing[session_id] = task
        task.add_done_callback(lambda _: self._finished(session_id))

    def take_on(self, session_ids: Sequence[UUID]) -> Sequence[UUID]:
        """Begin sessions that were found without a hint; those for which there is no slot."""
        left = []
        for session_id in session_ids:
            if not self._closing.is_set() and self._slots.take_free():
                self.begin(session_id)
            else:
                left.append(session_id)
        return left

    def _finished(self, session_id: UUID) -> None:
        del self.advancing[session_id]
        self._slots.give_back()
        if session_id in self._hinted_again:
            self._hinted_again.discard(session_id)
            self.hint_again(session_id)

    async def _advance(self, session_id: UUID) -> None:
        """Run the session's open tasks, one after the other, as long as it can be claimed."""
        try:
            more = True
            while more and not self._closing.is_set():
                self._hinted_again.discard(session_id)
                held = self._cache.take(session_id)
                claim, began = await self._claim(session_id, held)
                if claim is None and held is not None:
                    self._cache.keep(session_id, held)
                if claim is not None and self._closing.is_set():
                    await self._runs.release(claim)
                    return
                beside = set()
                if claim is not None and self._slots.scarce:
                    beside.add(self._do_beside(self._withdraw(session_id)))
                more = claim is not None and await self._runs.run(claim, began, held)
                if claim is not None and self._slots.wanted:
                    if beside:
                        await asyncio.wait(beside)  # or it would take back the hints that follow
                    self._hinted_again.discard(session_id)
                    await self._let_others(session_id)
                    more = False
                more = more or session_id in self._hinted_again
        except FiresideError as error:
            # Nothing is lost: the sweep finds the session again.
            if isinstance(error, StoreUnavailable):
                self._outage.noticed()
            log.warning("session left", session_id=str(session_id), error=str(error))
        except Exception:
            log.exception("session left", session_id=str(session_id))

    async def _claim(self, session_id: UUID, held: Transcript | None) -> tuple[Claim | None, float]:
        """Claim a session, as soon as Postgres answers; and when its lease was asked for."""
        claim = partial(
            claims.claim,
            self._db,
            session_id,
            lease_seconds=self._settings.lease_seconds,
            history=HISTORY_MESSAGES,
            back_off=BACK_OFF_SECONDS,
            quarantine_after=self._quarantine_after,
            known=None if held is None else held.known,
            rules=self._rules,
        )
        return await claimed(self._outage, claim)

    async def _withdraw(self, session_id: UUID) -> None:
        """Leave a session one turn at a time; should it have more, its end says so."""
        try:
            await self._hints.withdraw(session_id)
        except FiresideError as error:
            log.warning("hints not withdrawn", error=str(error))

    async def _let_others(self, session_id: UUID) -> None:
        """Send a session that has more to the back of the queue, and its user's next one ahead."""
        await self._hint(await turns.levels(self._db, [session_id], and_first=True))

    async def wait(self, seconds: float) -> None:
        """Wait for what runs, for so long at the most."""
        if self.advancing:
            log.info("draining", sessions=len(self.advancing))
            await asyncio.wait(self.advancing.values(), timeout=seconds)

    async def hand_over(self) -> None:
        """Give the leases of what still runs back to others."""
        left = list(self._holding)
        if left:
            log.info("handing over", sessions=len(left))
        giving_up = (self._do_beside(self._give_up(held)) for held in left)
        ending = {*self.advancing.values(), *giving_up}
        if ending:
            _, late = await asyncio.wait(ending, timeout=HAND_OVER_SECONDS)
            if late:
                log.warning("not all was handed over", error="not done in time")
            for task in late:
                task.cancel()

    async def _give_up(self, held: Held) -> None:
        """Stop a run and give its lease back; what it has finished is kept for the next attempt."""
        session_id = held.claim.fence.session_id
        with contextlib.suppress(AttemptLostError, TimeoutError):
            async with asyncio.timeout(HAND_OVER_SECONDS / 2):
                await held.task_log.flush()
        held.handed_over = True
        held.lose("handed over: this worker stops")
        if (advancing := self.advancing.get(session_id)) is not None:
            # An agent that does not end is left behind: it can write no more. What is left of the
            # time is the release's: without it the session would wait for its lease to run out.
            await asyncio.wait({advancing}, timeout=HAND_OVER_SECONDS / 4)
        await held.task_log.close()
        await self._runs.release(held.claim)
