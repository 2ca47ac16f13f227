"""The worker process: one event loop in a thread, with every session that it holds.

Celery's threads only hand a session over. The loop claims it, runs it, renews all leases with one
statement a second, hears of cancelled tasks, and hands over what is left when the process stops.
"""

import asyncio
import contextlib
import functools
import os
import signal as signals
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog
import uvloop
from redis.exceptions import RedisError

from agent_core import AbortSignal, Model
from shared.errors import FiresideError
from shared.events import CANCEL_CHANNEL, JOIN_CHANNEL, Publisher
from shared.levels import FIRST
from shared.pace import Pace
from shared.queue import Hints
from shared.records import Claim, Written
from shared.redis_pool import connect_redis
from shared.settings import Settings
from shared.store import catalog, leases, turns
from shared.store.database import Database
from shared.sweep import sweep_for_ever
from worker.agents import RegisteredAgent, Resources
from worker.attempt import run_attempt
from worker.postgres_tasks import PostgresTasks
from worker.slots import Slots
from worker.task_log import AttemptLostError, TaskLog

log = structlog.get_logger(__name__)

STUBBORN_SECONDS = 1.0
"""How long a stopping process waits for its loop, when all it had to do there is done."""

_EXCHANGE_SECONDS = 5.0
"""How long a hint waits to be exchanged, should the loop or Redis hang."""

HISTORY_MESSAGES = 200
"""How many messages of a session an attempt starts with at the most."""


@dataclass(slots=True)
class _Held:
    """A session that this process runs; `renewed_at` is this machine's monotonic clock."""

    claim: Claim
    task_log: TaskLog
    signal: AbortSignal
    renewed_at: float
    run: asyncio.Task[Written] | None = None

    def lose(self, reason: str) -> None:
        """Stop the run, unless its end is being written: that write finds out by itself."""
        if not self.task_log.ending:
            self.task_log.lose(reason)

    def stop(self) -> None:
        if self.run is not None:
            self.run.cancel()


class Host:
    """Runs sessions until it is told to stop.

    Args:
        agents: what this worker can run, by name.
        model, api_key: what agents call, and with which key.

    `failure` is what ended its work without being asked to; the process is then told to end.
    """

    def __init__(
        self,
        settings: Settings,
        agents: Mapping[str, RegisteredAgent],
        model: Model,
        api_key: str | None,
    ) -> None:
        self._settings = settings
        self._agents = agents
        self._model = model
        self._api_key = api_key
        self._slots = Slots(settings.max_in_flight)
        self._held: dict[UUID, _Held] = {}
        self._advancing: dict[UUID, asyncio.Task[None]] = {}
        self._beside: set[asyncio.Task[None]] = set()
        self._hinted_again: set[UUID] = set()
        self._closing = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._over = threading.Event()
        self._stop: asyncio.Event
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
        """Hand a session to the loop; blocks while all slots are taken (the backpressure).

        Args:
            level: that of the hint. One that had to wait is exchanged for a better one.
        """
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
        """Take no more sessions; those that run go on."""
        self._closing.set()

    def drain(self) -> None:
        """Let what runs end within the budget, hand over the rest, and stop the loop."""
        self.close()
        if self._loop is not None:
            self._call(self._stop.set)
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
        self._publisher = Publisher(self._redis)
        self._hints = Hints(settings, self._redis)
        self._pace = Pace(self._redis)
        self._resources = Resources(
            self._model,
            self._api_key,
            functools.partial(catalog.compiled_story, self._db),
            tool_seconds=settings.tool_seconds,
        )
        self._store = PostgresTasks(self._db, self._publisher, lease_seconds=settings.lease_seconds)
        services = [
            asyncio.ensure_future(service)
            for service in (
                self._heartbeat(),
                self._stop_overdue(),
                self._hear_clients(),
                self._pace.tell_for_ever(),
                sweep_for_ever(self._db, self._hints, every=settings.sweep_seconds),
                self._stop.wait(),
            )
        ]
        self._ready.set()
        try:
            done, _ = await asyncio.wait(services, return_when=asyncio.FIRST_COMPLETED)
            budget = self._settings.drain_seconds
            if not self._stop.is_set():
                error = next((one.exception() for one in done), None)
                log.error("a service of the worker ended", exc_info=error)
                self._fail(error)
                budget = 0.0  # without its heartbeat a worker would only lose what it runs
            await self._hand_over(budget)
        finally:
            for service in services:
                service.cancel()
            await asyncio.gather(*services, return_exceptions=True)
            await self._redis.aclose()
            await self._db.close()
            self._over.set()

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
            self._do_beside(self._hint({session_id: level}))

    async def _hint(self, levels: Mapping[UUID, int]) -> None:
        try:
            await self._hints.send(levels, levels)
        except FiresideError as error:
            log.warning("not hinted", error=str(error))  # the sweep does

    def _do_beside(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)
        return task

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
                claim = await leases.claim(
                    self._db,
                    session_id,
                    lease_seconds=self._settings.lease_seconds,
                    history=HISTORY_MESSAGES,
                )
                if claim is not None and self._closing.is_set():
                    await self._release([claim])
                    return
                beside = set()
                if claim is not None and self._slots.scarce:
                    beside.add(self._do_beside(self._withdraw(session_id)))
                more = claim is not None and await self._run(claim, began)
                if claim is not None and self._slots.wanted:
                    if beside:
                        await asyncio.wait(beside)  # or it would take back the hints that follow
                    self._hinted_again.discard(session_id)
                    await self._let_others(session_id)
                    more = False
                more = more or session_id in self._hinted_again
        except FiresideError as error:
            # Nothing is lost: the sweep finds the session again.
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

    async def _run(self, claim: Claim, began: float) -> bool:
        """Run one claimed task; whether the session has more.

        Args:
            began: when the lease was asked for, so that it is never believed to last too long.
        """
        session_id = claim.fence.session_id
        signal = AbortSignal()
        if claim.cancel_requested:
            signal.set()
        task_log = TaskLog(claim, self._store, on_lost=lambda: held.stop())  # noqa: PLW0108 - not yet there
        held = _Held(claim, task_log, signal, began)
        self._held[session_id] = held
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
                )
            )
            await asyncio.wait({held.run})
            await task_log.close()
        finally:
            del self._held[session_id]
        if held.run.cancelled() or isinstance(held.run.exception(), AttemptLostError):
            log.warning(
                "attempt lost",
                task_id=str(claim.task_id),
                attempt=claim.attempt,
                error=str(task_log.lost),
            )
            return False
        self._pace.ended()
        return held.run.result().open_tasks > 0

    async def _heartbeat(self) -> None:
        """Renew every lease, hear of cancels, and stop the runs whose lease is gone."""
        while True:
            await asyncio.sleep(self._settings.heartbeat_seconds)
            fences = [held.claim.fence for held in self._held.values()]
            if fences:
                began = time.monotonic()
                try:
                    pulse = await leases.heartbeat(
                        self._db, fences, lease_seconds=self._settings.lease_seconds
                    )
                except FiresideError as error:
                    log.warning("heartbeat failed", error=str(error))
                else:
                    self._apply(pulse, {fence.session_id: fence for fence in fences}, began)

    def _apply(self, pulse: leases.Pulse, fences: Mapping[UUID, Any], began: float) -> None:
        for session_id, fence in fences.items():
            held = self._held.get(session_id)
            if held is None or held.claim.fence != fence:
                continue
            if session_id not in pulse.held:
                held.lose("the lease is another worker's")
                continue
            held.renewed_at = began
            if session_id in pulse.queued:
                held.task_log.nudge()
            if session_id in pulse.cancelled:
                held.signal.set()

    async def _stop_overdue(self) -> None:
        """Stop the runs whose lease was not renewed in time, also while a heartbeat hangs.

        The database's clock decides who holds a lease; this one only says when to doubt it.
        """
        while True:
            await asyncio.sleep(self._settings.heartbeat_seconds)
            now = time.monotonic()
            for held in list(self._held.values()):
                if now - held.renewed_at > self._settings.lease_seconds:
                    held.lose("the lease could not be renewed in time")

    async def _hear_clients(self) -> None:
        """Hear at once what the next heartbeat would tell: cancels, and actions that may join."""
        while True:
            try:
                async with self._redis.pubsub() as pubsub:
                    await pubsub.subscribe(
                        **{CANCEL_CHANNEL: self._cancel, JOIN_CHANNEL: self._nudge}
                    )
                    async for _ in pubsub.listen():
                        pass  # each message goes to its channel's handler
            except (RedisError, OSError) as error:
                log.warning("channels of clients' wishes lost", error=str(error))
            await asyncio.sleep(1.0)

    def _nudge(self, message: Mapping[str, Any]) -> None:
        try:
            held = self._held.get(UUID(message["data"].decode()))
        except ValueError:
            return  # anyone may publish
        if held is not None:
            held.task_log.nudge()

    def _cancel(self, message: Mapping[str, Any]) -> None:
        session, _, task = message["data"].decode(errors="replace").partition(":")
        for held in self._held.values():
            if (str(held.claim.fence.session_id), str(held.claim.task_id)) == (session, task):
                held.signal.set()

    async def _hand_over(self, budget: float) -> None:
        """Wait for what runs, up to `budget` seconds; then give the leases back to others."""
        if self._advancing:
            log.info("draining", sessions=len(self._advancing))
            await asyncio.wait(self._advancing.values(), timeout=budget)
        left = list(self._held.values())
        await asyncio.gather(*(self._give_up(held) for held in left))
        if self._advancing:
            await asyncio.wait(self._advancing.values())
        if left:
            log.info("handing over", sessions=len(left))
            await self._release([held.claim for held in left])

    async def _give_up(self, held: _Held) -> None:
        """Stop a run; what it has finished is kept for the next attempt."""
        with contextlib.suppress(AttemptLostError):
            await held.task_log.flush()
        held.lose("handed over: this worker stops")

    async def _release(self, claims: Sequence[Claim]) -> None:
        """Give leases back and tell others; where that fails they run out, or the sweep tells."""
        try:
            released = await asyncio.gather(
                *(leases.release(self._db, claim.fence) for claim in claims)
            )
            await self._hints.send(
                claim.fence.session_id for claim, done in zip(claims, released, strict=True) if done
            )
        except FiresideError as error:
            log.warning("not all was handed over", error=str(error))
