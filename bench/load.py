"""One workload on one target: players in a closed loop, and what it cost the target's processes.

The row that comes out has the fields of the neutral bench that the peers' figures come from; times
are milliseconds [p50, p95, p99], sizes MB. Beside those: `app_split` (CPU by part of the
application), `longest_stall_ms` of each part's event loop, and what reached Postgres and Redis.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import psycopg
import redis

from bench.clients import Client, TurnFailedError
from bench.probe.sitecustomize import REST
from bench.processes import busy_seconds, cpu_seconds, pss_megabytes, rss_megabytes, tree
from bench.stalls import Stalls
from bench.targets import Running, Target
from bench.workloads import ONE_TURN, Workload, warm_up
from deploy.local.model import ScriptedModelProcess
from deploy.models.control import ScriptedModel

STALL_FIGURES = ("longest_stall_ms", "longest_stall_cpu_ms", "longest_gc_ms")

TRAILING_SECONDS = 1.5
"""Writes that trail behind a workload's end count as well."""

VECTOR_SECONDS = 120.0
"""How long is waited for the vectors of what was said; they trail behind the turns and count."""

_WITHOUT_VECTOR = "select from memories where vector is null limit 1"

SEEN_REQUESTS = 512
"""How many requests the scripted model remembers."""


class NotReadyError(Exception):
    """A target was started, but no turn works."""


@dataclass
class Times:
    """What players measured, in seconds."""

    accept: list[float] = field(default_factory=list)
    first_delta: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    deltas: int = 0


@dataclass
class Sizes:
    """The largest of what was seen while a workload ran, in MB, and the model's requests."""

    rss: float = 0.0
    app_rss: float = 0.0
    pss: float = 0.0
    in_flight: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Counts:
    """What a target has used so far: CPU seconds by part, and what its servers count."""

    cpu: Mapping[str, float]
    driver: float
    machine: float
    transactions: int
    log_bytes: int
    commands: int
    publishes: int


async def take_turn(client: Client, session: Any, text: str, load: Workload, times: Times) -> None:
    """One turn of a player; raises TurnFailedError where the text is not the model's."""
    began = time.perf_counter()
    accepted = first = None
    pieces = []
    async for piece in client.act(session, text):
        if piece is None:
            accepted = time.perf_counter()
        else:
            first = first or time.perf_counter()
            pieces.append(piece)
    ended = time.perf_counter()
    said = "".join(pieces)
    if said != load.expected or accepted is None or first is None:
        raise TurnFailedError(f"the text differs: {len(said)} characters, {said[:60]!r}")
    times.accept.append(accepted - began)
    times.first_delta.append(first - began - load.ttft)
    times.total.append(ended - began - load.reply_seconds)
    times.deltas += len(pieces)


async def play(
    client: Client, sessions: Sequence[Any], load: Workload, *, limit: float
) -> tuple[Times, float]:
    """All players' turns; what they measured, and the seconds it took.

    Args:
        limit: seconds that one turn may take.
    """
    times = Times()
    spread = load.reply_seconds if load.spread is None else load.spread

    async def player(number: int, session: Any) -> None:
        await asyncio.sleep(number / len(sessions) * spread)
        for turn in range(load.turns):
            try:
                async with asyncio.timeout(limit):
                    text = f"Question {turn} of player {number}."
                    await take_turn(client, session, text, load, times)
            except Exception as error:  # noqa: BLE001 - whatever a target does is a figure of its row
                times.errors.append(f"{type(error).__name__}: {error}"[:300])

    began = time.perf_counter()
    await asyncio.gather(*(player(*one) for one in enumerate(sessions)))
    return times, time.perf_counter() - began


@asynccontextmanager
async def connected(running: Running) -> AsyncIterator[Client]:
    """The target's client, with as many connections as it wants."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=5),
        headers=running.headers,
        timeout=aiohttp.ClientTimeout(total=None),
    ) as http:
        yield running.client(http)


@asynccontextmanager
async def opened(client: Client, count: int) -> AsyncIterator[list[Any]]:
    """So many sessions, closed at the end."""
    sessions = await asyncio.gather(*(client.open(number) for number in range(count)))
    try:
        yield list(sessions)
    finally:
        await asyncio.gather(*(client.close(one) for one in sessions), return_exceptions=True)


def _profile(model: ScriptedModel, load: Workload) -> None:
    model.profile(ttft=load.ttft, chunks=load.chunks, duration=load.duration, tool=False)


async def get_ready(
    running: Running, model: ScriptedModel, sessions: int, *, limit: float = 90
) -> float:
    """Wait until one whole turn works, then warm up; the seconds that the first part took.

    Args:
        sessions: as many as the load will have.

    Raises:
        NotReadyError: no turn worked for `limit` seconds.
    """
    began = time.monotonic()
    _profile(model, ONE_TURN)
    async with connected(running) as client:
        while True:
            if not (errors := await _tried(client)):
                break
            if time.monotonic() - began > limit:
                raise NotReadyError(f"no turn works: {errors[0]}")
            await asyncio.sleep(0.3)
        ready = time.monotonic() - began
        load = warm_up(sessions)
        async with opened(client, load.sessions) as playing:
            await play(client, playing, load, limit=60)
    await _vectors_made(running)
    return ready


async def _vectors_made(running: Running) -> None:
    """Wait until every memory has its vector, where somebody makes them.

    Raises:
        NotReadyError: they were not made within VECTOR_SECONDS.
    """
    if not running.makes_vectors or running.postgres_url is None:
        return
    deadline = time.monotonic() + VECTOR_SECONDS
    connecting = psycopg.AsyncConnection.connect(running.postgres_url, autocommit=True)
    async with await connecting as connection:
        while True:
            left = await (await connection.execute(_WITHOUT_VECTOR)).fetchone()
            if left is None:
                return
            if time.monotonic() > deadline:
                raise NotReadyError("memories without a vector are left")
            await asyncio.sleep(0.3)


async def _tried(client: Client) -> list[str]:
    try:
        async with asyncio.timeout(20), opened(client, 1) as sessions:
            return (await play(client, sessions, ONE_TURN, limit=20))[0].errors
    except Exception as error:  # noqa: BLE001 - a server that is starting may do anything
        return [f"{type(error).__name__}: {error}"[:300]]


async def idle(running: Running, seconds: float) -> dict[str, Any]:
    """What a target costs that nobody uses: CPU milliseconds a second, and MB; `seconds` 0 leaves
    out the CPU."""
    groups = {part: pids for part, pids in parts(running).items() if pids}
    found: dict[str, Any] = {
        "idle_rss_mb": round(sum(rss_megabytes(tree(pid)) for pid in _server_pids(running))),
        "idle_pss_mb": {part: round(pss_megabytes(pids)) for part, pids in groups.items()},
    }
    if not seconds:
        return found
    before = {part: cpu_seconds(pids) for part, pids in groups.items()}
    await asyncio.sleep(seconds)
    used = {part: (cpu_seconds(pids) - before[part]) / seconds for part, pids in groups.items()}
    return {
        "idle_cpu_ms_s": round(sum(used.values()) * 1e3, 1),
        "idle_split": {part: round(share * 1e3, 1) for part, share in used.items()},
        **found,
    }


async def measure(
    target: Target,
    name: str,
    load: Workload,
    running: Running,
    model_process: ScriptedModelProcess,
    *,
    limit: float = 200,
    watched: bool = False,
) -> dict[str, Any]:
    """Run one workload; its row. Whatever the target does wrong is in the row."""
    async with connected(running) as client:
        began = time.perf_counter()
        try:
            async with asyncio.timeout(limit):
                sessions = await asyncio.gather(*(client.open(n) for n in range(load.sessions)))
        except Exception as error:  # noqa: BLE001 - as above
            return failed(target, name, load, f"{type(error).__name__}: {error}"[:300])
        opening = time.perf_counter() - began
        await asyncio.sleep(0.5)
        row = await measured(
            client, sessions, load, running, model_process, limit=limit, watched=watched
        )
        await asyncio.gather(*(client.close(one) for one in sessions), return_exceptions=True)
    return {
        "target": target.name,
        "workload": name,
        "turns": load.sessions * load.turns,
        **row,
        "open_ms_session": round(opening / load.sessions * 1e3, 1),
        "note": target.note,
        "at": time.strftime("%F %T"),
    }


async def measured(
    client: Client,
    sessions: Sequence[Any],
    load: Workload,
    running: Running,
    model_process: ScriptedModelProcess,
    *,
    limit: float = 200,
    watched: bool = False,
) -> dict[str, Any]:
    """What so many turns in each of these sessions gave and cost.

    Args:
        watched: measure how long our loops stall; that costs them CPU of which the row tells, too.
    """
    model = ScriptedModel(model_process.url)
    await asyncio.to_thread(_profile, model, load)
    if running.stalls is not None:
        await _watch_loops(running.stalls, watched=watched)
    before = await _counts(running, model_process)
    began = time.time()
    async with _watched(running, model) as sizes:
        times, wall = await play(client, sessions, load, limit=limit)
    driver, machine = _driver_seconds(), busy_seconds()
    stalls = _stalls(running) if watched else {}
    stats = await asyncio.to_thread(model.stats)
    seen = await asyncio.to_thread(model.requests, min(stats.requests, SEEN_REQUESTS) or 1)
    late = await asyncio.to_thread(_lateness, model, load, began)
    ended = time.monotonic()
    await asyncio.sleep(TRAILING_SECONDS)
    await _vectors_made(running)
    after = await _counts(running, model_process)
    trailing = round(time.monotonic() - ended, 2)
    return {
        **_figures(times, wall),
        **_costs(before, after, driver, machine, max(1, len(times.total)), wall),
        "peak_rss_mb": round(sizes.rss),
        "app_rss_mb": round(sizes.app_rss),
        "peak_pss_mb": round(sizes.pss),
        "conc_peak": stats.peak,
        "conc_mean": round(sum(sizes.in_flight) / max(1, len(sizes.in_flight)), 1),
        "llm_requests": stats.requests,
        "llm_late_ms": late,
        "trailing_s": trailing,
        "roles_seen": sum(_roles(one.body.get("messages")) for one in seen),
        **stalls,
    }


def failed(target: Target, name: str, load: Workload, reason: str) -> dict[str, Any]:
    """The row of a target that could not even begin."""
    turns = load.sessions * load.turns
    return {
        "target": target.name,
        "workload": name,
        "turns": turns,
        "ok": 0,
        "errors": turns,
        "err_sample": [reason],
        "note": target.note,
        "at": time.strftime("%F %T"),
    }


def percentiles(values: Iterable[float]) -> list[float | None]:
    """p50, p95 and p99 in milliseconds; None where nothing was measured."""
    ordered = sorted(values)
    if not ordered:
        return [None, None, None]
    places = [min(len(ordered) - 1, len(ordered) * share // 100) for share in (50, 95, 99)]
    return [round(ordered[place] * 1e3, 1) for place in places]


def _figures(times: Times, wall: float) -> dict[str, Any]:
    done = len(times.total)
    return {
        "ok": done,
        "errors": len(times.errors),
        "wall_s": round(wall, 2),
        "turns_s": round(done / wall, 1),
        "accept_ms": percentiles(times.accept),
        "ttft_over_ms": percentiles(times.first_delta),
        "total_over_ms": percentiles(times.total),
        "deltas_per_turn": round(times.deltas / max(1, done), 1),
        "err_sample": sorted(set(times.errors))[:2],
    }


def _costs(
    before: Counts, after: Counts, driver: float, machine: float, done: int, wall: float
) -> dict[str, Any]:
    """CPU and traffic per turn. The driver's and the machine's CPU end with the last turn."""
    used = {part: after.cpu[part] - before.cpu[part] for part in before.cpu}
    driver -= before.driver
    split = {part: round(seconds / done * 1e3, 2) for part, seconds in used.items()}
    app = {part: ms for part, ms in split.items() if part not in {"llm", "pg", "redis"}}
    stores = {part: split[part] for part in ("pg", "redis") if part in split}
    others = (machine - before.machine - sum(used.values()) - driver) / wall
    return {
        "cpu_ms_turn": round(sum(app.values()) + sum(stores.values()), 2),
        "cpu_split": {
            "llm": split["llm"],
            **stores,
            "app": round(sum(app.values()), 2),
            "driver": round(driver / done * 1e3, 2),
        },
        "app_split": app,
        "pg_transactions_turn": round((after.transactions - before.transactions) / done, 2),
        "pg_wal_kb_turn": round((after.log_bytes - before.log_bytes) / done / 1e3, 2),
        "redis_commands_turn": round((after.commands - before.commands) / done, 2),
        "redis_publishes_turn": round((after.publishes - before.publishes) / done, 2),
        "others_cores": round(max(0.0, others), 2),
    }


def _server_pids(running: Running) -> list[int]:
    return [*running.app_pids, *running.postgres, *running.redis]


def parts(running: Running) -> dict[str, list[int]]:
    """The target's processes by part; `pg` and `redis` are not the application's."""
    return {**running.app, "pg": running.postgres, "redis": running.redis}


def _driver_seconds() -> float:
    times = os.times()
    return times.user + times.system


async def _counts(running: Running, model: ScriptedModelProcess) -> Counts:
    transactions, log_bytes = await asyncio.to_thread(_postgres_counts, running.postgres_url)
    commands, publishes = await asyncio.to_thread(_redis_counts, running.redis_url)
    groups = {**parts(running), "llm": [model.pid]}
    cpu = {part: cpu_seconds(pids) for part, pids in groups.items() if pids}
    return Counts(
        cpu, _driver_seconds(), busy_seconds(), transactions, log_bytes, commands, publishes
    )


def _postgres_counts(url: str | None) -> tuple[int, int]:
    """Transactions that wrote, and bytes of write-ahead log, since the cluster was made.

    The statistics views would lag by seconds behind what backends have done; these do not.
    """
    if url is None:
        return 0, 0
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(
            "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint,"
            " pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint"
        ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def _redis_counts(url: str | None) -> tuple[int, int]:
    """Commands so far, and how many of them published."""
    if url is None:
        return 0, 0
    with redis.Redis.from_url(url) as client:
        commands = sum(one["calls"] for one in client.info("commandstats").values())
        publishes = client.info("commandstats").get("cmdstat_publish", {}).get("calls", 0)
    return int(commands), int(publishes)


async def _watch_loops(stalls: Stalls, *, watched: bool) -> None:
    if watched:
        stalls.watch()
        await asyncio.sleep(2 * REST)
    else:
        stalls.rest()


def _stalls(running: Running) -> dict[str, Any]:
    if running.stalls is None:
        return {}
    # The probe does not see the loop of the process that makes vectors: it is not uvloop's.
    seen = {part: pids for part, pids in running.app.items() if part != "embed"}
    worst = {part: running.stalls.worst(pids) for part, pids in seen.items()}
    found = {part: stall for part, stall in worst.items() if stall is not None}
    figures = ("late", "busy", "collecting")
    return {
        name: {part: getattr(stall, figure) for part, stall in found.items()}
        for name, figure in zip(STALL_FIGURES, figures, strict=True)
    }


def _lateness(model: ScriptedModel, load: Workload, since: float) -> list[float | None]:
    """By how much the model itself was late, where the machine had no time for it."""
    calls = [one for one in model.calls() if one.began >= since and one.ended is not None]
    return percentiles((one.ended or 0.0) - one.began - load.reply_seconds for one in calls)


def _roles(messages: Any) -> int:
    return sum("role" in one for one in messages) if isinstance(messages, list) else 0


@asynccontextmanager
async def _watched(running: Running, model: ScriptedModel) -> AsyncIterator[Sizes]:
    """Look at sizes once a second, in a thread: the players' clocks must not wait for it."""
    sizes = Sizes()
    watching = asyncio.create_task(_watch(running, model, sizes))
    try:
        yield sizes
        await asyncio.to_thread(_weigh, running, sizes)
    finally:
        watching.cancel()


async def _watch(running: Running, model: ScriptedModel, sizes: Sizes) -> None:
    for second in range(10_000):
        await asyncio.sleep(0.5)
        sizes.in_flight.append((await asyncio.to_thread(model.stats)).in_flight)
        if second % 8 == 4:  # PSS costs the measured processes a moment
            await asyncio.to_thread(_weigh, running, sizes)


def _weigh(running: Running, sizes: Sizes) -> None:
    app = sum(rss_megabytes(tree(pid)) for pid in running.app_pids)
    stores = sum(rss_megabytes(tree(pid)) for pid in (*running.postgres, *running.redis))
    sizes.app_rss = max(sizes.app_rss, app)
    sizes.rss = max(sizes.rss, app + stores)
    sizes.pss = max(sizes.pss, pss_megabytes(_server_pids(running)))
