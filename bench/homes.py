"""`python -m bench.homes`: how often a session's task comes to the worker that holds the session.

Real gateways and workers, companions and a scripted model that answers at once. Sessions say
something in turn, once with homes and once without (their list is emptied all the time), as the
workers' own figures count it. Then a worker is killed, stopped by SIGTERM, and frozen, while
sessions whose home it is go on: the longest time from an action to its answer says what that costs
them. One JSON row goes to `--out`.
"""

import argparse
import asyncio
import contextlib
import re
import signal
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvloop
from redis.asyncio import Redis

from bench.programs import own_folder, tell
from deploy.local.fleet import Fleet, Worker
from deploy.local.model import ScriptedModelProcess
from deploy.local.ports import free_port
from deploy.local.postgres import EmbeddedPostgres
from deploy.local.valkey import EmbeddedValkey
from deploy.models.control import ScriptedModel
from shared.ending import end_all
from shared.migrate import migrate

_LOOKUPS = re.compile(
    r'^fireside_agent_cache_lookups_total\{result="(\w+)"\} ([\d.]+)', re.MULTILINE
)
_HOMES = "fireside:homes:fireside"


@dataclass
class Town:
    """A fleet whose workers show their figures."""

    fleet: Fleet
    http: httpx.AsyncClient
    redis: Redis
    figures: dict[Worker, str]

    async def add_worker(self) -> Worker:
        """Start one more worker, with a page of figures."""
        where = f"127.0.0.1:{free_port()}"
        self.fleet.env = {**self.fleet.env, "FIRESIDE_WORKER_METRICS": where}
        worker = await asyncio.to_thread(self.fleet.add_worker)
        self.figures[worker] = f"http://{where}/metrics"
        return worker

    async def lookups(self) -> Counter[str]:
        """What all live workers have counted."""
        found: Counter[str] = Counter()
        for url in self.figures.values():
            page = (await self.http.get(url)).text
            found.update({name: int(float(value)) for name, value in _LOOKUPS.findall(page)})
        return found

    async def sessions(self, count: int) -> list[str]:
        """New sessions that have been greeted."""
        made = []
        for _ in range(count):
            answer = (await self.http.post("/v1/sessions", json={"agent": "companion"})).json()
            await self._ended(answer["task_id"])
            made.append(str(answer["id"]))
        return made

    async def say(self, session: str) -> float:
        """Say something; the seconds until it was answered."""
        began = time.perf_counter()
        body = {"type": "say", "text": "hello"}
        answer = await self.http.post(f"/v1/sessions/{session}/actions", json=body)
        await self._ended(answer.json()["task_id"])
        return time.perf_counter() - began

    async def _ended(self, task: str) -> None:
        while (await self.http.get(f"/v1/tasks/{task}?wait=25")).json()["finished_at"] is None:
            pass

    async def say_all(self, sessions: Sequence[str], turns: int) -> list[float]:
        """All sessions at once, each so many times."""

        async def one(session: str) -> list[float]:
            return [await self.say(session) for _ in range(turns)]

        return [took for all_took in await asyncio.gather(*map(one, sessions)) for took in all_took]


@contextlib.asynccontextmanager
async def nobody_home(redis: Redis) -> AsyncIterator[None]:
    """Empty the list of homes all the time: hints go over the common queue."""

    async def empty() -> None:
        while True:
            await redis.delete(_HOMES)
            await asyncio.sleep(0.005)

    emptying = asyncio.create_task(empty())
    try:
        yield
    finally:
        await end_all([emptying])


async def hit_rates(town: Town, sessions: Sequence[str], turns: int, rounds: int) -> dict[str, Any]:
    """The part of tasks that read no transcript, and the time of a task, with homes and without."""
    times: dict[str, list[float]] = {"homes": [], "queue": []}
    counts: dict[str, Counter[str]] = {"homes": Counter(), "queue": Counter()}
    for number in range(rounds):
        for name in sorted(times, reverse=number % 2 == 1):
            async with nobody_home(town.redis) if name == "queue" else contextlib.nullcontext():
                before = await town.lookups()
                times[name] += await town.say_all(sessions, turns)
                counts[name] += await town.lookups() - before
    return {
        name: {
            "hit_rate": round(counts[name]["hit"] / counts[name].total(), 3),
            "counts": dict(counts[name]),
            "p50_ms": round(statistics.median(took) * 1e3, 1),
            "p99_ms": round(sorted(took)[int(len(took) * 0.99)] * 1e3, 1),
            "max_ms": round(max(took) * 1e3, 1),
        }
        for name, took in times.items()
    }


async def losses(town: Town, sessions: Sequence[str]) -> dict[str, Any]:
    """The longest answer right after a worker went, in milliseconds, and a second later."""
    found: dict[str, Any] = {}
    ends: dict[str, Callable[[Worker], object]] = {
        "killed": lambda worker: _signal(worker, signal.SIGKILL),
        "stopped": lambda worker: _signal(worker, signal.SIGTERM),
        "frozen": lambda worker: _signal(worker, signal.SIGSTOP),
    }
    for name, end in ends.items():
        worker = await town.add_worker()
        await asyncio.sleep(1.0)
        await town.say_all(sessions, 2)
        end(worker)
        took = await town.say_all(sessions, 1)
        await asyncio.sleep(1.5)
        later = await town.say_all(sessions, 1)
        _signal(worker, signal.SIGKILL)
        del town.figures[worker]
        found[name] = {
            "p50_ms": round(statistics.median(took) * 1e3, 1),
            "max_ms": round(max(took) * 1e3, 1),
            "later_max_ms": round(max(later) * 1e3, 1),
        }
    return found


def _signal(worker: Worker, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        worker.signal(number)


async def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The row."""
    with (
        EmbeddedPostgres(folder / "postgres", database="fireside") as postgres,
        EmbeddedValkey(folder / "valkey") as valkey,
        ScriptedModelProcess(log=folder / "model.log") as model,
    ):
        migrate(postgres.url)
        ScriptedModel(model.url).script({"reply": {"chunks": ["tok "] * 5}})
        with Fleet(
            folder,
            postgres=postgres.url,
            redis=valkey.url,
            model=model.url,
            model_path="direct",
            max_queued_per_user="10000",
        ) as fleet:
            await asyncio.to_thread(fleet.add_gateway)
            async with (
                httpx.AsyncClient(base_url=fleet.url, timeout=60) as http,
                Redis.from_url(valkey.url) as redis,
            ):
                town = Town(fleet, http, redis, {})
                for _ in range(options.workers):
                    await town.add_worker()
                await asyncio.sleep(1.0)
                sessions = await town.sessions(options.sessions)
                row = {"workers": options.workers, "sessions": options.sessions}
                row |= await hit_rates(town, sessions, options.turns, options.rounds)
                row |= await losses(town, sessions)
    return row


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m bench.homes", description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sessions", type=int, default=24)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with own_folder() as folder:
        row = uvloop.run(run(options, folder))
    tell(row, options.out)


if __name__ == "__main__":
    main()
