"""`python -m bench.load`: players over HTTP and WebSocket against the real processes.

Starts Postgres and Valkey as `make up` does (durable), the scripted model, gateways and workers as
the README says, with API keys on. Each player sends an action, reads the stream to its end, and
sends the next. One JSON row a workload goes to `--out`; times are milliseconds.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from bench.processes import cpu_seconds, pss_megabytes
from deploy.local.fleet import Fleet
from deploy.local.model import ScriptedModelProcess
from deploy.local.postgres import EmbeddedPostgres
from deploy.local.process import Command, run
from deploy.local.server import ROOT
from deploy.local.valkey import EmbeddedValkey
from deploy.models.control import ScriptedModel


@dataclass(frozen=True)
class Workload:
    """Players, actions of each, and the model: seconds to its first token, chunks, seconds."""

    players: int
    actions: int
    ttft: float
    chunks: int
    duration: float


WORKLOADS = {
    "A": Workload(50, 4, 0.2, 50, 1.0),
    "B": Workload(200, 2, 0.2, 50, 1.0),
    "C": Workload(20, 20, 0.0, 50, 0.0),
    "S": Workload(4, 2, 0.2, 50, 1.0),
}


@dataclass
class Times:
    """What players measured, in seconds."""

    accept: list[float] = field(default_factory=list)
    first_delta: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    deltas: int = 0


@dataclass(frozen=True)
class Server:
    """The fleet, a key for it, the model, and the processes by part."""

    fleet: Fleet
    key: str
    model: ScriptedModel
    parts: dict[str, list[int]]

    @property
    def url(self) -> str:
        """Where the first gateway answers."""
        return self.fleet.url


@contextmanager
def server(folder: Path, *, workers: int, model_path: str, gateways: int = 1) -> Iterator[Server]:
    """Start everything; the key's user is `bench`."""
    with ExitStack() as stack:
        postgres = stack.enter_context(EmbeddedPostgres(folder / "postgres", database="fireside"))
        valkey = stack.enter_context(EmbeddedValkey(folder / "valkey"))
        model = stack.enter_context(ScriptedModelProcess(log=folder / "model.log"))
        fleet = stack.enter_context(
            Fleet(
                folder,
                postgres=postgres.url,
                redis=valkey.url,
                model=model.url,
                auth="required",
                model_path=model_path,
            )
        )
        fleet.by_uvicorn = False
        _run(folder, fleet.env, "shared.migrate")
        key = _run(folder, fleet.env, "api.keys", "create", "bench")[-1].split()[-1]
        for _ in range(gateways):
            fleet.add_gateway()
        for _ in range(workers):
            fleet.add_worker()
        yield Server(
            fleet,
            key,
            ScriptedModel(model.url),
            {
                "gateway": [gateway.pid for gateway in fleet.gateways],
                "worker": [worker.pid for worker in fleet.workers],
                "postgres": [postgres.pid],
                "valkey": [valkey.pid],
                "model": [model.pid],
            },
        )


def _run(folder: Path, env: Mapping[str, str], module: str, *arguments: str) -> list[str]:
    argv = [sys.executable, "-m", module, *arguments]
    log = folder / f"{module}.log"
    code, output = run(Command(name=module, argv=argv, env=env, cwd=ROOT, log=log))
    if code != 0:
        raise SystemExit("\n".join(output))
    return output


class Player:
    """One session, with its WebSocket."""

    def __init__(self, http: aiohttp.ClientSession, server: Server) -> None:
        self._http = http
        self._server = server
        self._socket: aiohttp.ClientWebSocketResponse

    async def open(self) -> None:
        async with self._http.post(
            f"{self._server.url}/v1/sessions", json={"agent": "companion"}
        ) as answer:
            answer.raise_for_status()
            session = await answer.json()
        self._id = session["id"]
        async with self._http.post(f"{self._server.url}/v1/ws-tickets") as answer:
            ticket = (await answer.json())["ticket"]
        self._socket = await self._http.ws_connect(
            f"{self._server.url}/ws/sessions/{self._id}?after=0"
        )
        await self._socket.send_json({"type": "auth", "ticket": ticket})
        async for frame in self._frames():
            if frame["type"] == "task_completed" and frame["task_id"] == session["task_id"]:
                return

    async def act(self, text: str, workload: Workload, times: Times) -> None:
        """Send, read the stream to its end, and keep the times over what the model took."""
        began = time.perf_counter()
        async with self._http.post(
            f"{self._server.url}/v1/sessions/{self._id}/actions", json={"type": "say", "text": text}
        ) as answer:
            if answer.status != 202:
                raise RuntimeError(f"{answer.status} {await answer.text()}")
            task = (await answer.json())["task_id"]
        times.accept.append(time.perf_counter() - began)
        first, streamed = None, ""
        async for frame in self._frames():
            if frame.get("task_id") != task:
                continue
            if frame["type"] == "message_update":
                first = first or time.perf_counter()
                if frame["offset"] == len(streamed):
                    streamed += frame["delta"]
                times.deltas += 1
            elif frame["type"] == "message_end" and frame["data"]["message"]["role"] == "assistant":
                first = first or time.perf_counter()
                streamed = frame["data"]["message"]["content"][0]["text"]
            elif frame["type"].startswith("task_") and frame["type"] not in {
                "task_queued",
                "task_started",
            }:
                break
        ended = time.perf_counter()
        if frame["type"] != "task_completed" or streamed != expected(workload):
            raise RuntimeError(f"{frame['type']}: {streamed[:60]!r}")
        assert first is not None
        times.first_delta.append(first - began - workload.ttft)
        times.total.append(ended - began - workload.ttft - workload.duration)

    async def _frames(self) -> Any:
        async for message in self._socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                break
            yield json.loads(message.data)
        raise RuntimeError(f"the socket closed ({self._socket.close_code})")

    async def close(self) -> None:
        await self._socket.close()


def expected(workload: Workload) -> str:
    """What the scripted model streams."""
    return "".join(f"tok{number} " for number in range(workload.chunks))


async def play(server: Server, workload: Workload) -> dict[str, Any]:
    """Run one workload; the row that is written."""
    server.model.profile(
        ttft=workload.ttft, chunks=workload.chunks, duration=workload.duration, tool=False
    )
    times = Times()
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"Authorization": f"Bearer {server.key}"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as http:
        players = [Player(http, server) for _ in range(workload.players)]
        await asyncio.gather(*(player.open() for player in players))
        await asyncio.sleep(1)
        before = {part: cpu_seconds(pids) for part, pids in server.parts.items()}
        began = time.perf_counter()
        await asyncio.gather(
            *(_play(number, player, workload, times) for number, player in enumerate(players))
        )
        wall = time.perf_counter() - began
        memory = {part: round(pss_megabytes(pids)) for part, pids in server.parts.items()}
        await asyncio.sleep(1.5)  # writes that trail behind count as well
        after = {part: cpu_seconds(pids) for part, pids in server.parts.items()}
        await asyncio.gather(*(player.close() for player in players))
    done = max(1, len(times.total))
    split = {part: round((after[part] - before[part]) / done * 1e3, 2) for part in after}
    return {
        "tasks": workload.players * workload.actions,
        "ok": len(times.total),
        "errors": len(times.errors),
        "wall_s": round(wall, 2),
        "tasks_s": round(done / wall, 1),
        "accept_ms": percentiles(times.accept),
        "first_delta_over_ms": percentiles(times.first_delta),
        "total_over_ms": percentiles(times.total),
        "cpu_ms_task": round(sum(ms for part, ms in split.items() if part != "model"), 2),
        "cpu_split": split,
        "pss_mb": memory,
        "deltas_per_task": round(times.deltas / done, 1),
        "error_sample": sorted(set(times.errors))[:2],
    }


async def _play(number: int, player: Player, workload: Workload, times: Times) -> None:
    # Starts are spread over one reply, so that players are in all of its phases.
    await asyncio.sleep(number / workload.players * (workload.ttft + workload.duration))
    for action in range(workload.actions):
        try:
            async with asyncio.timeout(60):
                await player.act(f"Question {action} of player {number}.", workload, times)
        except (RuntimeError, TimeoutError, aiohttp.ClientError) as error:
            times.errors.append(f"{type(error).__name__} {error}"[:200])
            return


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99 in milliseconds."""
    ordered = sorted(values)
    return {
        f"p{share}": round(ordered[min(len(ordered) - 1, len(ordered) * share // 100)] * 1e3, 1)
        for share in (50, 95, 99)
        if ordered
    }


async def bench(options: argparse.Namespace, folder: Path) -> None:
    with server(folder, workers=options.workers, model_path=options.model_path) as running:
        await play(running, Workload(16, 3, 0, 50, 0))  # warms up
        for _ in range(options.repeat):
            for name in options.workloads.split(","):
                row = {
                    "target": "fireside",
                    "workload": name,
                    "workers": options.workers,
                    "model_path": options.model_path,
                    **await play(running, WORKLOADS[name]),
                    "at": time.strftime("%F %T"),
                }
                print(json.dumps(row))
                if options.out is not None:
                    with options.out.open("a") as out:
                        out.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    parser.add_argument("workloads", nargs="?", default="A,C", help="of A, B, C, S (A,C)")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--model-path", choices=["litellm", "direct"], default="litellm")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        uvloop.run(bench(options, Path(folder)))


if __name__ == "__main__":
    main()
