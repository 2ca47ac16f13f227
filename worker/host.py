"""The worker process: one event loop in a thread, with every session that it holds.

Celery's threads only hand a session over. The loop claims it, runs it, and hands over what
is left when the process stops.
"""

import asyncio
import contextlib
import functools
import logging
import os
import signal as signals
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from typing import Any
from uuid import UUID

import structlog
import uvloop

from agent_core import AbortSignal, Model
from shared.ending import end_all
from shared.errors import FiresideError, StoreUnavailable
from shared.events import Publisher
from shared.levels import FIRST
from shared.lineage import Lineage
from shared.pace import Pace
from shared.queue import Hints
from shared.records import Claim, Written
from shared.redis_pool import connect_redis
from shared.retention import prune_for_ever
from shared.settings import Settings
from shared.store import catalog, claims, consolidation, leases, turns
from shared.store.database import Database
from shared.sweep import sweep_for_ever
from worker.agent_cache import AgentCache
from worker.agents import RegisteredAgent, Resources
from worker.attempt import run_attempt
from worker.consolidation import consolidate_for_ever
from worker.figures import Figures
from worker.holding import Held, Holding
from worker.home import Home
from worker.keeper import Keeper
from worker.late_usage import LateUsage
from worker.memory_limit import MemoryWatch, Share
from worker.metering import Tariff
from worker.outage import Outage
from worker.outlived import OutlivedAttempts
from worker.postgres_tasks import PostgresTasks
from worker.provider_limits import ProviderLimits
from worker.recollection import Recollection
from worker.slots import Slots
from worker.task_log import AttemptLostError, TaskLog
from worker.telling import Telling
from worker.tiers import ModelTiers
from worker.transcript import HISTORY_MESSAGES, Transcript, claimed
from worker.watchdog import watch_for_ever

log = structlog.get_logger(__name__)

BACK_OFF_SECONDS = 1.0
"""How long a session waits after its third lost attempt; after each further one twice as long."""

STUBBORN_SECONDS = 0.5
"""How long a stopping process waits for its loop, when all it had to do there is done."""

HAND_OVER_SECONDS = 1.0
"""How long a stopping process may take to give back what did not end within its budget. Should
Postgres not answer by then, the leases run out by themselves."""

HOLD_SECONDS = 0.1
"""How often a hint that waits for Postgres looks whether it is back."""

LAST_NEWS_SECONDS = 2.0
"""How long a stopping process tries to reach Redis; the log and the sweep make up for it."""

LAST_ENTRIES_SECONDS = 1.0
"""How long a stopping process tries to enter calls of models; what is left stands in its log."""

_EXCHANGE_SECONDS = 5.0
"""How long a hint waits to be exchanged, should the loop or Redis hang."""


class Host:
    """Runs sessions until it is told to stop.

    Args:
        agents: what this worker can run, by name.
        model, api_key: what agents call, and with which key.
        tiers: the models beside the one, if there are any.
        watched: end the process where the loop stands still; of a process' one host only.
        share: what of the machine's memory it may use; without it, as much as it likes.

    `failure` is what ended its work without being asked to; the process is then told to end.
    `figures` are what it counts.
    """

    def __init__(
        self,
        settings: Settings,
        agents: Mapping[str, RegisteredAgent],
        model: Model,
        api_key: str | None,
        *,
        tiers: ModelTiers | None = None,
        watched: bool = False,
        share: Share | None = None,
    ) -> None:
        self._tiers = tiers
        self._watched = watched
        self._stuck_seconds = max(settings.stuck_seconds, 2 * settings.lease_seconds)
        self._settings = settings
        self._agents = agents
        self._model = model
        self._api_key = api_key
        self._tariff = Tariff.from_settings(settings, tiers.models if tiers else (model,))
        self._rules = settings.budgets
        # Where no start would be left for the quarantine, the task is given up at once.
        after = settings.quarantine_after
        self._quarantine_after = after if after < settings.max_attempts else None
        share = share or Share(None, settings.max_in_flight, settings.cache_bytes)
        self._slots = Slots(share.slots)
        self._cache = AgentCache(
            most=settings.cache_agents,
            most_bytes=share.cache_bytes,
            idle_seconds=settings.cache_idle_seconds,
        )
        self._memory_limit = share.limit
        self.figures = Figures(self._cache, self._slots)
        self._holding: Holding
        self._advancing: dict[UUID, asyncio.Task[None]] = {}
        self._beside: set[asyncio.Task[None]] = set()
        self._hinted_again: set[UUID] = set()
        self._closing = threading.Event()
        self._closed_at = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._over = threading.Event()
        self._stop: asyncio.Event
        self._outage: Outage
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run_loop, name="host", daemon=True)

    # -- called from Celery's threads -----------------------------------------------------------

    def start(self) -> None:
        """Start the loop; returns when it runs. Raises what kept it from starting."""
        self._thread.start()
        self._ready.wait()
        if self.failure is not None:
            raise self.failure

    def submit(self, session_id: UUID, level: int = FIRST) -> None:
        """Hand a session to the loop; blocks while all slots are taken (the backpressure), and
        while Postgres is away: the hints wait in the queue, where they are of use.

        Args:
            level: that of the hint. One that had to wait is exchanged for a better one.
        """
        while self._outage.lasts and not self._closing.wait(HOLD_SECONDS):
            pass
        if self._slots.all_taken and session_id in self._advancing:
            self._call(self._hint_again, session_id, level)  # that needs no slot
            return
        if not self._slots.take(self._closing):
            return
        if level > FIRST and self._slots.scarce:
            session_id = self._exchanged(session_id, level)
        if self._closing.is_set() or not self._call(self._begin, session_id):
            self._slots.give_back()

    def _exchanged(self, session_id: UUID, level: int) -> UUID:
        """The session whose turn it is by now. Until it is known Celery reads no further hint: it
        might be the best one, and would then wait behind the second best."""
        answer: Future[UUID] = Future()
        if not self._call(lambda: self._do_beside(self._exchange(session_id, level, answer))):
            return session_id
        try:
            return answer.result(_EXCHANGE_SECONDS)
        except TimeoutError:
            return session_id

    def close(self) -> None:
        """Take no more sessions; those that run go on, as long as the budget lasts from now."""
        if not self._closing.is_set():
            self._closed_at = time.monotonic()
            self._closing.set()

    def begin_to_drain(self) -> None:
        """Let what runs end within the budget, hand over the rest, and stop the loop."""
        self.close()
        if self._loop is not None:
            self._call(self._stop.set)

    def drain(self) -> None:
        """The same; returns when it is done."""
        self.begin_to_drain()
        if self._loop is not None:
            self._over.wait()
            # An agent that blocks its cancellation keeps the thread; it must not keep the process.
            self._thread.join(STUBBORN_SECONDS)

    def _call(self, function: Callable[..., object], *arguments: object) -> bool:
        """Have the loop call something; False where it has ended."""
        try:
            assert self._loop is not None
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            return False
        return True

    # -- on the loop ------------------------------------------------------------------------------

    def _run_loop(self) -> None:
        try:
            uvloop.run(self._serve())
        except BaseException as error:
            log.exception("the worker's loop ended")
            self._fail(error)
        finally:
            self._over.set()
            self._ready.set()

    def _fail(self, error: BaseException | None) -> None:
        """End the process: it would go on to take hints, and do nothing."""
        if self.failure is None:
            self.failure = error or RuntimeError("a service of the worker ended")
            self.close()
            if self._ready.is_set():
                os.kill(os.getpid(), signals.SIGTERM)

    async def _serve(self) -> None:
        settings = self._settings
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._db = Database.from_settings(settings)
        self._redis = connect_redis(settings)
        lineage = Lineage(self._db, self._redis)
        self._telling = Telling(Publisher(self._redis))
        self._hints = Hints(settings, self._redis)
        self._limits = ProviderLimits.from_settings(settings, self._redis)
        self._pace = Pace(self._redis)
        self._home = Home(
            self._redis, settings.queue, has_room=self._has_room, begin=self._begin_here
        )
        self._recollection = Recollection(self._db, self._redis)
        self._resources = Resources(
            self._model,
            self._api_key,
            functools.partial(catalog.compiled_story, self._db),
            tool_seconds=settings.tool_seconds,
            limiter=self._limits,
            tiers=self._tiers,
            recollect=self._recollection.recall,
            read_material=functools.partial(consolidation.read, self._db),
            tariff=self._tariff,
        )
        self._outage = Outage(self._db, patience=settings.outage_seconds)
        self._holding = Holding(
            self._db,
            self._redis,
            self._outage,
            lease_seconds=settings.lease_seconds,
            heartbeat_seconds=settings.heartbeat_seconds,
        )
        self._store = PostgresTasks(
            self._db,
            self._telling,
            self._outage,
            lease_seconds=settings.lease_seconds,
            idle_seconds=settings.consolidate_seconds or None,
            rules=self._rules,
        )
        self._late_usage = LateUsage(self._db, pause=settings.heartbeat_seconds)
        self._keeper = Keeper(self._db, every=settings.sweep_seconds)
        self._outlived = OutlivedAttempts(self._db, pause=settings.heartbeat_seconds)
        watching = asyncio.create_task(lineage.watch_for_ever())
        await lineage.looked()
        services = [watching] + [
            asyncio.create_task(service)
            for service in (
                self._holding.heartbeat(),
                self._holding.stop_overdue(),
                self._holding.hear_users(),
                self._telling.send_for_ever(),
                self._pace.tell_for_ever(),
                self._outlived.take_back_for_ever(),
                self._recollection.hear_for_ever(),
                self._late_usage.enter_for_ever(),
                *([watch_for_ever(self._stuck_seconds)] if self._watched else []),
                *self._chores(),
                self._stopped(),
            )
        ]
        self._ready.set()
        try:
            done, _ = await asyncio.wait(services, return_when=asyncio.FIRST_COMPLETED)
            left = self._settings.drain_seconds - (time.monotonic() - self._closed_at)
            services.append(asyncio.create_task(self._home.leave()))
            if not self._stop.is_set():
                error = next((one.exception() for one in done), None)
                log.error("a service of the worker ended", exc_info=error)
                self._fail(error)
                left = 0.0  # without its heartbeat a worker would only lose what it runs
            left = max(0.0, left)
            await asyncio.gather(self._wait(left), self._keeper.stop(left))
        finally:
            for service in services:
                service.cancel()
            await self._hand_over()
            await end_all(services)
            await self._late_usage.enter_the_rest(LAST_ENTRIES_SECONDS)
            await self._outage.close()
            await self._telling.send_the_rest(LAST_NEWS_SECONDS)
            await self._limits.aclose()
            await self._redis.aclose()
            await self._db.close()
            self._over.set()

    async def _stopped(self) -> None:
        await self._stop.wait()

    def _chores(self) -> Sequence[Coroutine[Any, Any, object]]:
        """What this process does for all: find sessions that were forgotten or are in quarantine,
        have those read again whose time has come, and delete what is old."""
        every = self._settings.sweep_seconds
        return [
            sweep_for_ever(
                self._db,
                self._hints,
                every=every,
                grace=self._settings.lease_seconds,
                take=self._take_on,
                lost=self._home.silent,
            ),
            self._keeper.keep_for_ever(),
            prune_for_ever(self._db, self._settings),
            self._home.hear_for_ever(),
            self._home.announce_for_ever(),
            self._cache.drop_idle_for_ever(),
            *self._memory_chores(),
            *self._consolidation(every),
        ]

    def _memory_chores(self) -> Sequence[Coroutine[Any, Any, object]]:
        if self._memory_limit is None:
            return []
        return [MemoryWatch(self._memory_limit, self._slots, self._cache).watch_for_ever()]

    def _consolidation(self, every: float) -> Sequence[Coroutine[Any, Any, None]]:
        idle_seconds = self._settings.consolidate_seconds
        if not idle_seconds:
            return []
        return [consolidate_for_ever(self._db, self._hints, idle_seconds=idle_seconds, every=every)]

    async def _exchange(self, session_id: UUID, level: int, answer: Future[UUID]) -> None:
        """Give a hint back for a better one; it was read while no slot was free."""
        best = session_id
        try:
            best = await self._hints.exchange(session_id, level)
        except FiresideError as error:
            log.warning("hint not exchanged", error=str(error))
        finally:
            answer.set_result(best)

    def _hint_again(self, session_id: UUID, level: int = FIRST) -> None:
        """Have a session that is held here looked at once more; if it is not any more, by others.

        Whether the task that holds it had looked for more already, nobody here can know.
        """
        if session_id in self._advancing:
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

    def _has_room(self) -> bool:
        """Whether a hint that comes to this worker begins at once and takes nobody's turn."""
        return not (
            self._closing.is_set()
            or self._outage.lasts
            or self._slots.scarce
            or self._slots.all_taken
            or not self._cache.holds_any
        )

    def _begin_here(self, session_id: UUID, level: int) -> None:
        """Take a hint that came to this worker; without room here it is anyone's, in its turn."""
        if session_id in self._advancing:
            self._hint_again(session_id, level)
        elif self._has_room() and self._slots.take_free():
            self._begin(session_id)
        else:
            self._do_beside(self._hint({session_id: level}))

    def _begin(self, session_id: UUID) -> None:
        if session_id in self._advancing:
            self._hint_again(session_id)
            self._slots.give_back()
            return
        if self._closing.is_set():
            self._slots.give_back()
            return
        task = asyncio.get_running_loop().create_task(self._advance(session_id))
        self._advancing[session_id] = task
        task.add_done_callback(lambda _: self._finished(session_id))

    def _take_on(self, session_ids: Sequence[UUID]) -> Sequence[UUID]:
        """Begin sessions that were found without a hint; those for which there is no slot."""
        left = []
        for session_id in session_ids:
            if not self._closing.is_set() and self._slots.take_free():
                self._begin(session_id)
            else:
                left.append(session_id)
        return left

    def _finished(self, session_id: UUID) -> None:
        del self._advancing[session_id]
        self._slots.give_back()
        if session_id in self._hinted_again:
            self._hinted_again.discard(session_id)
            self._hint_again(session_id)

    async def _advance(self, session_id: UUID) -> None:
        """Run the session's open tasks, one after the other, as long as it can be claimed."""
        try:
            more = True
            while more and not self._closing.is_set():
                self._hinted_again.discard(session_id)
                began = time.monotonic()
                held = self._cache.take(session_id)
                claim = await claims.claim(
                    self._db,
                    session_id,
                    lease_seconds=self._settings.lease_seconds,
                    history=HISTORY_MESSAGES,
                    back_off=BACK_OFF_SECONDS,
                    quarantine_after=self._quarantine_after,
                    known=None if held is None else held.known,
                    rules=self._rules,
                )
                if claim is None and held is not None:
                    self._cache.keep(session_id, held)
                if claim is not None and self._closing.is_set():
                    await self._release(claim)
                    return
                beside = set()
                if claim is not None and self._slots.scarce:
                    beside.add(self._do_beside(self._withdraw(session_id)))
                more = claim is not None and await self._run(claim, began, held)
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

    async def _withdraw(self, session_id: UUID) -> None:
        """Leave a session one turn at a time; should it have more, its end says so."""
        try:
            await self._hints.withdraw(session_id)
        except FiresideError as error:
            log.warning("hints not withdrawn", error=str(error))

    async def _let_others(self, session_id: UUID) -> None:
        """Send a session that has more to the back of the queue, and its user's next one ahead."""
        await self._hint(await turns.levels(self._db, [session_id], and_first=True))

    async def _run(self, claim: Claim, began: float, kept: Transcript | None = None) -> bool:
        """Run one claimed task; whether the session has more.

        Args:
            began: when the lease was asked for, so that it is never believed to last too long.
            kept: what the cache had of the session, when the claim was made with it.
        """
        if claim.head_message is not None:
            self._cache.count(kept, after=claim.after, read=len(claim.messages))
        transcript = claimed(claim, kept)
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
        self._holding.add(held)
        try:
            held.run = asyncio.ensure_future(
                run_attempt(
                    claim,
                    task_log,
                    self._agents,
                    resources=self._resources,
                    signal=signal,
                    task_seconds=self._settings.task_seconds,
                    max_attempts=self._settings.max_attempts,
                    history=transcript.history,
                )
            )
            await asyncio.wait({held.run})
            await task_log.close()
        finally:
            self._holding.remove(held)
            self._store.forget(claim.fence)
        if held.run.cancelled() or held.run.exception() is not None:
            await self._lost(held, held.run)
            return False
        self._pace.ended()
        if task_log.committed is not None:
            self._cache.keep(claim.fence.session_id, transcript.ended(claim, task_log.committed))
        return held.run.result().open_tasks > 0

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
            await self._release(claim, counted=True)
        self._outlived.add(claim, held.task_log.lost_to)

    async def _wait(self, seconds: float) -> None:
        """Wait for what runs, for so long at the most."""
        if self._advancing:
            log.info("draining", sessions=len(self._advancing))
            await asyncio.wait(self._advancing.values(), timeout=seconds)

    async def _hand_over(self) -> None:
        """Give the leases of what still runs back to others."""
        left = list(self._holding)
        if left:
            log.info("handing over", sessions=len(left))
        giving_up = (self._do_beside(self._give_up(held)) for held in left)
        ending = {*self._advancing.values(), *giving_up}
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
        if (advancing := self._advancing.get(session_id)) is not None:
            # An agent that does not end is left behind: it can write no more.
            await asyncio.wait({advancing}, timeout=HAND_OVER_SECONDS / 2)
        await held.task_log.close()
        await self._release(held.claim)

    async def _release(self, claim: Claim, *, counted: bool = False) -> None:
        """Give a lease back and tell others; where that fails it runs out, or the sweep tells."""
        try:
            if await leases.release(self._db, claim.fence, counted=counted):
                async with asyncio.timeout(LAST_NEWS_SECONDS):
                    await self._hints.send([claim.fence.session_id])
        except (FiresideError, TimeoutError) as error:
            log.warning("not all was handed over", error=str(error))
