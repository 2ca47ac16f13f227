"""The faults of a plan, struck at real processes; what ends by itself is started again."""

import asyncio
import contextlib
import signal
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import psycopg
import redis.asyncio

from deploy.local.process import Child, describe
from tests.chaos.history import History, Strike
from tests.chaos.plan import Fault, Plan
from tests.chaos.players import Progress
from tests.chaos.stage import Stage

POLL = 0.05
START_SECONDS = 60.0
AGAIN_SECONDS = 1.0
DISTURBED = 2
"""How many workers may be down or frozen at once, a blackout apart."""

_WAITING = """
    select id::text, epoch, hint_at from sessions
    where open_tasks > 0 and (lease_until is null or lease_until < clock_timestamp())
        and (ready_at is null or ready_at < clock_timestamp()) and not quarantined
"""
_STILL_WAITING = """
    select count(*) from sessions s
    join unnest(%s::uuid[], %s::bigint[], %s::timestamptz[]) as w(id, epoch, hint_at)
        on s.id = w.id and s.epoch = w.epoch and s.hint_at = w.hint_at
    where s.open_tasks > 0
"""
_HINT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Crash:
    """A process that ended though nobody struck it, with the last it said."""

    target: str
    at: float
    how: str
    said: str


@dataclass(slots=True)
class Storm:
    """Strikes a stage as a plan says.

    `hinted` has for each loss of Redis' data how many sessions waited and the seconds until the
    last of them was hinted again or taken up.
    """

    stage: Stage
    plan: Plan
    history: History
    progress: Progress
    crashes: list[Crash] = field(default_factory=list)
    hinted: list[tuple[int, float]] = field(default_factory=list)
    _held: dict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
    _disturbed: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(DISTURBED))
    _struck: int = 0
    _probes: list[asyncio.Task[None]] = field(default_factory=list)

    async def wait_ready(self) -> None:
        """Wait until the whole fleet serves."""
        await asyncio.gather(*(serves(child) for child in self.stage.processes.values()))

    async def rage(self) -> None:
        """Strike every fault; returns when the last target serves again."""
        await asyncio.gather(*(self._lane(lane) for lane in self.plan.lanes.values()))
        self.progress.advance(1.0)
        await asyncio.gather(*self._probes)

    async def guard(self) -> None:
        """Start again what ended by itself, as a supervisor would, until cancelled."""
        while True:
            for name, child in self.stage.processes.items():
                if not child.alive and not self._held[name].locked():
                    async with self._held[name]:
                        how = describe(child.returncode)
                        said = last_words(child.output())
                        self.crashes.append(Crash(name, time.time(), how, said))
                        await serves(child)
            await asyncio.sleep(0.2)

    async def _lane(self, faults: Sequence[Fault]) -> None:
        for fault in faults:
            await asyncio.sleep(fault.gap)
            self._struck += 1
            self.progress.advance(self._struck / self.plan.faults)
            await self._strike(fault)

    async def _strike(self, fault: Fault) -> None:
        match fault.kind:
            case "kill" | "freeze" | "term":
                async with self._disturbed, self._held[fault.target]:
                    await self._strike_process(fault)
            case "gateway_kill" | "gateway_freeze" | "gateway_term":
                async with self._held[fault.target]:
                    await self._strike_process(fault)
            case "wipe" | "redis_restart":
                async with self._held["redis"]:
                    await self._strike_redis(fault)
            case "blackout":
                await self._black_out(fault)
            case "postgres_stop":
                await self._stop_postgres(fault)
            case _:
                raise ValueError(fault.kind)

    async def _strike_process(self, fault: Fault) -> None:
        child = self.stage.processes[fault.target]
        at = time.time()
        match fault.kind.removeprefix("gateway_"):
            case "kill":
                child.kill()
            case "freeze":
                child.signal(signal.SIGSTOP)
                await asyncio.sleep(fault.hold)
                child.signal(signal.SIGCONT)
            case "term":
                child.signal(signal.SIGTERM)
                await _ends(child, 15.0)
                child.kill()
        await serves(child)
        self._note(fault.kind, fault.target, at)

    async def _strike_redis(self, fault: Fault) -> None:
        at = time.time()
        if fault.kind == "wipe":
            await self._wipe()
        else:
            self.stage.redis.kill()
            await asyncio.sleep(fault.hold)
            await serves(self.stage.redis)
        self._note(fault.kind, "redis", at)
        self._watch_hints()

    async def _wipe(self) -> None:
        async with redis.asyncio.Redis.from_url(self.stage.redis.url) as client:
            await client.flushall()

    async def _black_out(self, fault: Fault) -> None:
        """No worker takes anything, hints pile up, and then they are gone."""
        names = self.stage.workers
        children = [self.stage.processes[name] for name in names]
        async with contextlib.AsyncExitStack() as held:
            for name in [*names, "redis"]:
                await held.enter_async_context(self._held[name])
            at = time.time()
            for child in children:
                child.signal(signal.SIGSTOP)
            try:
                await asyncio.sleep(fault.hold)
                wiped = time.time()
                await self._wipe()
                self._note("wipe", "redis", wiped)
                self._watch_hints()
            finally:
                for child in children:
                    child.signal(signal.SIGCONT)
            for name in names:
                self._note("blackout", name, at)

    async def _stop_postgres(self, fault: Fault) -> None:
        at = time.time()
        postgres = self.stage.postgres
        postgres.signal(signal.SIGQUIT)  # what `pg_ctl stop -m immediate` sends
        if not await _ends(postgres, 10.0):
            postgres.kill()
        await asyncio.sleep(fault.hold)
        await serves(postgres)
        self._note(fault.kind, "postgres", at)

    def _note(self, kind: str, target: str, at: float) -> None:
        self.history.strikes.append(Strike(kind, target, at, time.time()))

    def _watch_hints(self) -> None:
        self._probes.append(asyncio.create_task(self._wait_for_hints(time.time())))

    async def _wait_for_hints(self, since: float) -> None:
        """Note when the sessions that wait now were hinted again; nothing if Postgres goes away."""
        with contextlib.suppress(psycopg.Error):
            async with await psycopg.AsyncConnection.connect(
                self.stage.postgres.url, autocommit=True, connect_timeout=3
            ) as connection:
                rows = await (await connection.execute(_WAITING)).fetchall()
                waiting = [list(column) for column in zip(*rows, strict=True)]
                left = len(rows)
                while left and time.time() < since + _HINT_SECONDS:
                    await asyncio.sleep(2 * POLL)
                    row = await (await connection.execute(_STILL_WAITING, waiting)).fetchone()
                    left = row[0] if row else 0
                self.hinted.append((len(rows), round(time.time() - since, 2) if rows else 0.0))


def last_words(lines: Sequence[str]) -> str:
    """What a process said from its first error on, and at its end: the cause may stand well before
    what followed from it."""
    first = next((no for no, line in enumerate(lines) if "[error" in line), len(lines))
    chosen = [no for no in range(len(lines)) if first <= no < first + 60 or no >= len(lines) - 3]
    return " | ".join(lines[no] for no in chosen)


async def serves(child: Child) -> None:
    """Have a child run and serve: started again as often as it ends instead of starting.

    Raises:
        TimeoutError: it does not serve in time.
    """
    async with asyncio.timeout(START_SECONDS):
        tries = 0
        while True:
            if not child.alive:
                # As supervisors do, not again at once: it may wait for Postgres.
                await asyncio.sleep(AGAIN_SECONDS if tries else 0)
                tries += 1
                # From the loop's thread, which is the main one: so it dies with us.
                child.spawn()
            if await asyncio.to_thread(child.probe):
                return
            await asyncio.sleep(POLL)


async def _ends(child: Child, seconds: float) -> bool:
    """Wait for a child's end without blocking the loop; False if it still runs."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while child.alive:  # noqa: ASYNC110 - a process does not set events
                await asyncio.sleep(POLL)
    return not child.alive
