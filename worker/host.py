"""The worker process: one event loop in a thread, with all that serves the sessions on it.

Celery's threads only hand a session over. The loop's rota begins it, and hands over what is left
when the process stops.
"""

import asyncio
import functools
import os
import signal as signals
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any
from uuid import UUID

import structlog
import uvloop

from agent_core import Model
from agent_core.openai_batches import BatchEndpoint
from shared.ending import end_all
from shared.events import Publisher
from shared.kept_answers import KeptAnswers
from shared.levels import FIRST
from shared.lineage import Lineage
from shared.pace import Pace
from shared.queue import Hints
from shared.records import CatalogEntry
from shared.redis_pool import connect_redis
from shared.retention import prune_for_ever
from shared.settings import Settings
from shared.store import batches, catalog, consolidation
from shared.store.database import Database
from shared.sweep import sweep_for_ever
from worker.agent_cache import AgentCache
from worker.agents import RegisteredAgent, Resources
from worker.batches import LOOK_SWEEPS, Batching
from worker.consolidation import consolidate_for_ever
from worker.figures import Figures, Work
from worker.holding import Holding
from worker.home import Home
from worker.keeper import Keeper
from worker.known_answers import KnownAnswers, Lookups
from worker.late_usage import LateUsage
from worker.loop_watch import LoopWatch
from worker.memory_limit import MemoryWatch, Share
from worker.metering import Tariff
from worker.outage import Outage
from worker.outlived import OutlivedAttempts
from worker.postgres_tasks import PostgresTasks
from worker.provider_limits import ProviderLimits
from worker.publish import announce_for_ever
from worker.recollection import Recollection
from worker.renewal import LEASE_CONNECTIONS, LEASES_STOOD_STILL, Renewal
from worker.rota import Rota
from worker.runs import LAST_NEWS_SECONDS, Runs
from worker.slots import Slots
from worker.telling import Telling
from worker.tiers import ModelTiers
from worker.watchdog import watch_for_ever

log = structlog.get_logger(__name__)

STUBBORN_SECONDS = 0.5
"""How long a stopping process waits for its loop, when all it had to do there is done."""

HOLD_SECONDS = 0.1
"""How often a hint that waits for Postgres looks whether it is back."""

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
        batches: where what nobody waits for is read in batches.
        watched: end the process where the loop stands still; of a process' one host only.
        share: what of the machine's memory it may use; without it, as much as it likes.
        announced: what it has said to have, and says again and again.

    `failure` is what ended its work without being asked to; the process is then told to end.
    `figures` are what it counts.
    """

    _judges_after: float | None = None

    def __init__(
        self,
        settings: Settings,
        agents: Mapping[str, RegisteredAgent],
        model: Model,
        api_key: str | None,
        *,
        tiers: ModelTiers | None = None,
        batches: BatchEndpoint | None = None,
        watched: bool = False,
        share: Share | None = None,
        announced: Sequence[CatalogEntry] = (),
    ) -> None:
        self._announced = announced
        self._tiers = tiers
        self._batches = batches
        self._watched = watched
        self._stuck_seconds = max(
            settings.stuck_seconds, (LEASES_STOOD_STILL + 1) * settings.lease_seconds
        )
        self._settings = settings
        self._agents = agents
        self._model = model
        self._api_key = api_key
        self._rules = settings.budgets
        self._work = Work()
        tariff = Tariff.from_settings(settings, tiers.models if tiers else (model,))
        self._tariff = replace(tariff, on_call=self._work.called)
        share = share or Share(None, settings.max_in_flight, settings.cache_bytes)
        self._slots = Slots(share.slots)
        self._loop_watch = LoopWatch(self._slots)
        self._cache = AgentCache(
            most=settings.cache_agents,
            most_bytes=share.cache_bytes,
            idle_seconds=settings.cache_idle_seconds,
        )
        self._memory_limit = share.limit
        self._lookups: Lookups = Lookups()
        self.figures = Figures(
            self._cache, self._slots, self._loop_watch, self._lookups, self._work
        )
        self._holding: Holding
        self._runs: Runs
        self._rota: Rota
        self._on_their_way: set[UUID] = set()
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
        if self._slots.all_taken and self._has_begun(session_id):
            self._call(self._rota.hint_again, session_id, level)  # that needs no slot
            return
        if not self._slots.take(self._closing):
            return
        if level > FIRST and self._slots.scarce:
            session_id = self._exchanged(session_id, level)
        self._on_their_way.add(session_id)
        if self._closing.is_set() or not self._call(self._begin, session_id):
            self._slots.give_back()

    def _has_begun(self, session_id: UUID) -> bool:
        """Whether a session runs here, or will before anything else that the loop is told now.

        A second hint of one that is on its way must not wait for a slot: it would get the one that
        the session gives to others.
        """
        return session_id in self._on_their_way or session_id in self._rota.advancing

    def _begin(self, session_id: UUID) -> None:
        self._rota.begin(session_id)
        self._on_their_way.discard(session_id)

    def _exchanged(self, session_id: UUID, level: int) -> UUID:
        """The session whose turn it is by now. Until it is known Celery reads no further hint: it
        might be the best one, and would then wait behind the second best."""
        answer: Future[UUID] = Future()
        if not self._call(self._rota.exchange, session_id, level, answer):
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

    def _put_together(self) -> None:
        """Make all that the loop works with; nothing connects yet."""
        settings = self._settings
        self._db = Database.from_settings(settings, most=settings.database_pool - LEASE_CONNECTIONS)
        self._redis = connect_redis(settings)
        self._telling = Telling(Publisher(self._redis))
        self._hints = Hints(settings, self._redis)
        self._limits = ProviderLimits.from_settings(settings, self._redis)
        self._pace = Pace(self._redis)
        self._recollection = Recollection(self._db, self._redis, self._cache)
        self._outage = Outage(self._db, patience=settings.outage_seconds)
        resources = Resources(
            self._model,
            self._api_key,
            self._outage.outlasting(functools.partial(catalog.compiled_story, self._db)),
            tool_seconds=settings.tool_seconds,
            limiter=self._limits,
            tiers=self._tiers,
            recollect=self._recollection.recall,
            read_material=self._outage.outlasting(functools.partial(consolidation.read, self._db)),
            read_answer=self._outage.outlasting(functools.partial(batches.read, self._db)),
            tariff=self._tariff,
            answers=self._known_answers(),
        )
        self._holding = Holding(
            self._redis,
            self._outage,
            lease_seconds=settings.lease_seconds,
            heartbeat_seconds=settings.heartbeat_seconds,
        )
        store = PostgresTasks(
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
        self._runs = Runs(
            settings,
            self._agents,
            resources,
            db=self._db,
            store=store,
            hints=self._hints,
            holding=self._holding,
            outage=self._outage,
            cache=self._cache,
            pace=self._pace,
            late_usage=self._late_usage,
            outlived=self._outlived,
            work=self._work,
            judges_after=self._judges_after,
        )
        self._rota = Rota(
            settings,
            self._closing,
            db=self._db,
            hints=self._hints,
            runs=self._runs,
            holding=self._holding,
            outage=self._outage,
            slots=self._slots,
            cache=self._cache,
        )
        self._home = Home(
            self._redis, settings.queue, has_room=self._rota.has_room, begin=self._rota.begin_here
        )

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._put_together()
        lineage = Lineage(self._db, self._redis)
        renewal = Renewal(self._settings, self._db.gate, self._outage, self._holding)
        watching = asyncio.create_task(lineage.watch_for_ever())
        await lineage.looked()
        services = [watching] + [
            asyncio.create_task(service)
            for service in (
                renewal.renew_for_ever(),
                self._holding.stop_overdue(),
                self._holding.hear_users(),
                self._telling.send_for_ever(),
                self._pace.tell_for_ever(),
                self._outlived.take_back_for_ever(),
                self._recollection.hear_for_ever(),
                self._recollection.tend_for_ever(),
                self._late_usage.enter_for_ever(),
                *([watch_for_ever(self._stuck_seconds)] if self._watched else []),
                self._loop_watch.watch_for_ever(),
                *self._chores(),
                self._stopped(),
            )
        ]
        self._ready.set()
        try:
            done, going = await asyncio.wait(services, return_when=asyncio.FIRST_COMPLETED)
            if self._stop.is_set():
                left = self._settings.drain_seconds - (time.monotonic() - self._closed_at)
                await self._drain(max(0.0, left), going)
            else:
                self._fail(_tell_end_of(done))
                await self._drain(0.0)
        finally:
            for service in services:
                service.cancel()
            await self._rota.hand_over()
            await end_all(services)
            await self._home.leave(LAST_NEWS_SECONDS)
            await self._late_usage.enter_the_rest(LAST_ENTRIES_SECONDS)
            await self._outage.close()
            await self._telling.send_the_rest(LAST_NEWS_SECONDS)
            await self._limits.aclose()
            await self._redis.aclose()
            await self._db.close()
            self._over.set()

    async def _drain(self, seconds: float, services: Iterable[asyncio.Task[Any]] = ()) -> None:
        """Let what runs end, for so long and as long as none of the services does: without its
        heartbeat a worker would only lose what it runs."""
        draining = asyncio.gather(self._rota.wait(seconds), self._keeper.stop(seconds))
        awaited: set[asyncio.Future[Any]] = {draining, *services}
        done, _ = await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        if draining not in done:
            _tell_end_of(done)
            await self._rota.hand_over()
        await draining

    def _known_answers(self) -> KnownAnswers | None:
        seconds = self._settings.response_cache_seconds
        if not seconds:
            return None
        return KnownAnswers(KeptAnswers(self._redis), seconds, self._lookups)

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
                take=self._rota.take_on,
                lost=self._home.silent,
            ),
            self._keeper.keep_for_ever(),
            prune_for_ever(self._db, self._settings),
            self._home.hear_for_ever(),
            self._home.announce_for_ever(),
            announce_for_ever(
                self._db,
                self._announced,
                seconds=self._settings.agent_seconds,
                unheard=self._runs.judge_later,
            ),
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
        consolidate = functools.partial(
            consolidate_for_ever,
            self._db,
            self._hints,
            idle_seconds=idle_seconds,
            every=every,
            rules=self._rules,
        )
        if self._batches is None:
            return [consolidate()]
        batching = Batching(
            self._db, self._batches, self._tariff, self._rules, every=LOOK_SWEEPS * every
        )
        return [consolidate(may_batch=batching.may), batching.look_for_ever()]


def _tell_end_of(services: Iterable[asyncio.Future[Any]]) -> BaseException | None:
    """Tell the log that one of these has ended; what it raised."""
    error = next((one.exception() for one in services), None)
    log.error("a service of the worker ended", exc_info=error)
    return error
