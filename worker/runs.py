"""Runs: one attempt of one claimed task, from its claim to its end or to what became of it."""

import asyncio
import logging
import time
from collections.abc import Mapping

import structlog

from agent_core import AbortSignal
from shared.errors import FiresideError
from shared.pace import Pace
from shared.queue import Hints
from shared.records import Claim, Written
from shared.settings import Settings
from shared.store import leases
from shared.store.database import Database
from worker.agent_cache import AgentCache
from worker.agents import RegisteredAgent, Resources
from worker.attempt import run_attempt
from worker.figures import Work
from worker.holding import Held, Holding
from worker.late_usage import LateUsage
from worker.outage import Outage
from worker.outlived import OutlivedAttempts
from worker.postgres_tasks import PostgresTasks
from worker.task_log import TaskLog
from worker.task_store import AttemptLostError
from worker.transcript import Transcript, transcript_of

log = structlog.get_logger(__name__)

LAST_NEWS_SECONDS = 2.0
"""How long a stopping process tries to reach Redis; the log and the sweep make up for it."""


class Runs:
    """Runs what was claimed, and holds its session meanwhile.

    Args:
        agents: what this worker can run, by name, with the `resources` that they are given.
        hints: where others are told of a session that is given back.
        cache: what is kept of a session once its task has ended.
        late_usage, outlived: what a run that was lost leaves behind.
        work: where attempts and ended tasks are counted.
        judges_after: when this worker knows that nobody has an agent, in seconds from now; where
            none is given, when others have had the time to announce it.
    """

    def __init__(
        self,
        settings: Settings,
        agents: Mapping[str, RegisteredAgent],
        resources: Resources,
        *,
        db: Database,
        store: PostgresTasks,
        hints: Hints,
        holding: Holding,
        outage: Outage,
        cache: AgentCache,
        pace: Pace,
        late_usage: LateUsage,
        outlived: OutlivedAttempts,
        work: Work,
        judges_after: float | None = None,
    ) -> None:
        patience = settings.agent_seconds if judges_after is None else judges_after
        self._judges_at = time.monotonic() + patience
        self._settings = settings
        self._agents = agents
        self._resources = resources
        self._db = db
        self._store = store
        self._hints = hints
        self._holding = holding
        self._outage = outage
        self._cache = cache
        self._pace = pace
        self._late_usage = late_usage
        self._outlived = outlived
        self._work = work

    def judge_later(self) -> None:
        """Give others the time to announce what they have: just now nobody could."""
        self._judges_at = time.monotonic() + self._settings.agent_seconds

    async def run(self, claim: Claim, began: float, kept: Transcript | None = None) -> bool:
        """Run one claimed task; whether the session has more.

        Args:
            began: when the lease was asked for, so that it is never believed to last too long.
            kept: what the cache had of the session, when the claim was made with it.
        """
        if self._is_for_others(claim) and await self._left(claim):
            return False
        if claim.head_message is not None:
            self._cache.count(kept, after=claim.after, read=len(claim.messages))
        self._work.began(claim.attempt)
        transcript = transcript_of(claim, kept)
        held = self._held(claim, began)
        run = await self._attempt(held, transcript)
        if run.cancelled() or run.exception() is not None:
            await self._lost(held, run)
            return False
        self._pace.ended()
        task_log = held.task_log
        if task_log.status is not None:
            # A session may name an agent that this worker does not have.
            agent = claim.agent if claim.agent in self._agents else "other"
            self._work.ended(agent, task_log.status)
        if task_log.committed is not None:
            self._cache.keep(claim.fence.session_id, transcript.ended(claim, task_log.committed))
        return run.result().open_tasks > 0

    def _held(self, claim: Claim, began: float) -> Held:
        signal = AbortSignal()
        if claim.cancel_requested:
            signal.set()
        task_log = TaskLog(
            claim,
            self._store,
            on_lost=lambda: held.stop(),  # noqa: PLW0108 - not yet there
            on_late=self._late_usage.add,
        )
        held = Held(claim, task_log, signal, began)
        return held

    async def _attempt(self, held: Held, transcript: Transcript) -> asyncio.Task[Written]:
        """Run the agent, and hold its session meanwhile; what ran, however it ended."""
        self._holding.add(held)
        try:
            held.run = asyncio.ensure_future(
                run_attempt(
                    held.claim,
                    held.task_log,
                    self._agents,
                    resources=self._resources,
                    signal=held.signal,
                    task_seconds=self._settings.task_seconds,
                    max_attempts=self._settings.max_attempts,
                    history=transcript.history,
                )
            )
            await asyncio.wait({held.run})
            await held.task_log.close()
        finally:
            self._holding.remove(held)
            self._store.forget(held.claim.fence)
        return held.run

    def _is_for_others(self, claim: Claim) -> bool:
        """Whether it takes another worker to run a claim; any can end what is cancelled or dead."""
        return (
            claim.agent not in self._agents
            and not claim.cancel_requested
            and claim.attempts <= self._settings.max_attempts
        )

    async def _left(self, claim: Claim) -> bool:
        """Undo a claim for a worker that has its agent; False where there has been none for long,
        and the task is to fail."""
        left = await leases.leave(
            self._db,
            claim,
            seconds=self._settings.agent_seconds,
            judges=time.monotonic() >= self._judges_at,
        )
        if left:
            log.info(
                "left to a worker that has the agent",
                agent=claim.agent,
                session_id=str(claim.fence.session_id),
            )
        return left

    async def _lost(self, held: Held, run: asyncio.Task[Written]) -> None:
        """Say why an attempt did not end its task, and let another begin at once.

        Its lease may still last: whatever else ended the attempt, nobody need wait for it.
        """
        claim = held.claim
        error = None if run.cancelled() else run.exception()
        broke = error is not None and not isinstance(error, AttemptLostError)
        log.log(
            logging.ERROR if broke else logging.WARNING,
            "attempt lost",
            task_id=str(claim.task_id),
            attempt=claim.attempt,
            error=str(held.task_log.lost),
            exc_info=error if broke else None,
        )
        if held.handed_over:
            return
        if not self._outage.lasts:
            await self.release(claim, counted=True)
        self._outlived.add(claim, held.task_log.lost_to)

    async def release(self, claim: Claim, *, counted: bool = False) -> None:
        """Give a lease back and tell others; where that fails it runs out, or the sweep tells."""
        try:
            if await leases.release(self._db, claim.fence, counted=counted):
                async with asyncio.timeout(LAST_NEWS_SECONDS):
                    await self._hints.send([claim.fence.session_id])
        except (FiresideError, TimeoutError) as error:
            log.warning("not all was handed over", error=str(error))
