"""What an idle socket weighs in a gateway, and a task in flight in a worker."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from bench.clients import Fireside
from bench.processes import cpu_seconds, pss_megabytes
from bench.seeding import Seeded, seed
from bench.servers import USER, Server, server
from deploy.models.control import ScriptedModel

AT_ONCE = 50
"""Sockets that are opened, and actions that are sent, at the same time."""

SETTLING_SECONDS = 3.0
IDLE_SECONDS = 10.0
PATIENCE = 60.0

ROOM = {"AIOHTTP_CONNECTOR_LIMIT": "100000", "AIOHTTP_CONNECTOR_LIMIT_PER_HOST": "100000"}
"""By itself litellm keeps no more than 500 connections to one host; further calls wait."""


def rows(folder: Path, sockets: int, in_flight: int) -> Iterator[dict[str, Any]]:
    """A row for the sockets, and one for the tasks on each way to the model; 0 leaves them out."""
    if sockets:
        limits = {"max_sockets": str(sockets + 10), "max_sockets_per_user": str(sockets + 10)}
        place = _folder(folder, "sockets")
        with server(place, workers=0, model_path="direct", settings=limits) as running:
            seeded = seed(running.postgres_url, USER, sessions=sockets, history=2)
            yield uvloop.run(_idle_sockets(running, seeded))
    if not in_flight:
        return
    patient = {
        "max_in_flight": str(in_flight),
        "model_first_token_seconds": str(20 * PATIENCE),
        "task_seconds": str(20 * PATIENCE),
        "lease_seconds": str(PATIENCE),  # a worker that opens calls must not lose others meanwhile
    }
    for model_path in ("direct", "litellm"):
        place = _folder(folder, model_path)
        with server(place, workers=1, model_path=model_path, settings=patient, env=ROOM) as running:
            seeded = seed(running.postgres_url, USER, sessions=in_flight, history=2)
            yield uvloop.run(_tasks_in_flight(running, seeded, model_path))


def _folder(parent: Path, name: str) -> Path:
    made = parent / name
    made.mkdir()
    made.chmod(0o755)
    return made


async def _idle_sockets(running: Server, seeded: Seeded) -> dict[str, Any]:
    gateway = running.parts["gateway"]
    async with _http(running) as http:
        client = Fireside(running.url, http)
        for one in seeded.ids[:AT_ONCE]:  # so that what is made once is not counted
            await client.close(await client.follow(one, seeded.head))
        await asyncio.sleep(SETTLING_SECONDS)
        before = pss_megabytes(gateway)
        began = time.perf_counter()
        opened = []
        for start in range(0, len(seeded.ids), AT_ONCE):
            some = seeded.ids[start : start + AT_ONCE]
            opened += await asyncio.gather(*(client.follow(one, seeded.head) for one in some))
        seconds = time.perf_counter() - began
        await asyncio.sleep(SETTLING_SECONDS)
        after, cpu = pss_megabytes(gateway), cpu_seconds(gateway)
        await asyncio.sleep(IDLE_SECONDS)
        cpu = (cpu_seconds(gateway) - cpu) / IDLE_SECONDS
        alive = sum(not one.socket.closed for one in opened)
    return {
        "kind": "idle sockets",
        "what": "idle sockets of one gateway process",
        "count": alive,
        "total_mb": round(after),
        "each_kb": round((after - before) / len(opened) * 1e3, 1),
        "opened_s": round(len(opened) / seconds, 1),
        "idle_cpu_ms_s": round(cpu * 1e3, 1),
        "at": time.strftime("%F %T"),
    }


async def _tasks_in_flight(running: Server, seeded: Seeded, model_path: str) -> dict[str, Any]:
    worker, model = running.parts["worker"], running.model
    async with _http(running) as http:
        client = Fireside(running.url, http)
        # One task first: what is loaded at the first call is not the tasks' weight.
        await client.post(*_say(seeded.ids[0]))
        await model.until(completed=1, timeout=60)
        await asyncio.sleep(SETTLING_SECONDS)
        before = pss_megabytes(worker)
        model.script({"reply": {"text": "At last.", "fault": {"kind": "hang"}}})
        await _fill(client, model, seeded.ids)
        await asyncio.sleep(SETTLING_SECONDS)
        after, reached = pss_megabytes(worker), max(1, model.stats().in_flight)
        model.release()
        await model.until(in_flight=0, timeout=2 * PATIENCE)
    return {
        "kind": "in flight",
        "what": f"tasks in flight in one worker process, model path {model_path}",
        "count": reached,
        "total_mb": round(after),
        "each_kb": round((after - before) / reached * 1e3, 1),
        "at": time.strftime("%F %T"),
    }


def _say(session: str) -> tuple[str, dict[str, str]]:
    return f"/v1/sessions/{session}/actions", {"type": "say", "text": "Are you there?"}


async def _fill(client: Fireside, model: ScriptedModel, ids: Sequence[str]) -> None:
    """Have all sessions' tasks wait for the model, or as many as get there in time.

    The next ones are sent when the last ones have called the model: what it costs to open a call
    is another measurement's subject.
    """
    for start in range(0, len(ids), AT_ONCE):
        some = ids[start : start + AT_ONCE]
        await asyncio.gather(*(client.post(*_say(one)) for one in some))
        try:
            await model.until(in_flight=start + len(some), timeout=PATIENCE)
        except TimeoutError:
            return


def _http(running: Server) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    return aiohttp.ClientSession(connector=connector, headers=running.headers, timeout=timeout)
