"""`python -m bench.sockets`: what idle sockets weigh in one gateway process, and cost a second.

Each socket follows a session of its own. The client offers to compress frames, as browsers do, so
a gateway that takes the offer pays for it here.
"""

import argparse
import asyncio
import json
import resource
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from bench.clients import Fireside
from bench.processes import cpu_seconds, pss_megabytes
from bench.programs import own_folder
from bench.seeding import Seeded, seed
from bench.servers import USER, Server, server

AT_ONCE = 50
"""Sockets that are opened at the same time."""

SETTLING_SECONDS = 3.0
IDLE_SECONDS = 10.0


class ManyFollowed(Fireside):
    """Follows sessions; what is offered to the server is what browsers offer."""

    compress = 15


def row(folder: Path, count: int, seconds: float = IDLE_SECONDS) -> dict[str, Any]:
    """Open so many sockets on one gateway; what they weigh once they are quiet.

    Args:
        seconds: for how long their CPU is measured.
    """
    _allow_files(count)
    limits = {"max_sockets": str(count + AT_ONCE), "max_sockets_per_user": str(count + AT_ONCE)}
    with server(folder, workers=0, model_path="direct", settings=limits) as running:
        seeded = seed(running.postgres_url, USER, sessions=count, history=2)
        return uvloop.run(_idle_sockets(running, seeded, seconds))


def _allow_files(count: int) -> None:
    """Let this process and those that it starts have so many connections, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(max(soft, count + 1000), hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _idle_sockets(running: Server, seeded: Seeded, idle: float) -> dict[str, Any]:
    gateway = running.parts["gateway"]
    async with connections(running) as http:
        client = ManyFollowed(running.url, http)
        for one in seeded.ids[:AT_ONCE]:  # so that what is made once is not counted
            await client.close(await client.follow(one, seeded.head))
        await asyncio.sleep(SETTLING_SECONDS)
        running.stalls.watch()
        before = pss_megabytes(gateway)
        began = time.perf_counter()
        opened = []
        for start in range(0, len(seeded.ids), AT_ONCE):
            some = seeded.ids[start : start + AT_ONCE]
            opened += await asyncio.gather(*(client.follow(one, seeded.head) for one in some))
        seconds = time.perf_counter() - began
        await asyncio.sleep(SETTLING_SECONDS)
        after, cpu = pss_megabytes(gateway), cpu_seconds(gateway)
        await asyncio.sleep(idle)
        cpu = (cpu_seconds(gateway) - cpu) / idle
        alive = sum(not one.socket.closed for one in opened)
        stall = running.stalls.worst(gateway)
    return {
        "kind": "idle sockets",
        "what": "idle sockets of one gateway process",
        "count": alive,
        "total_mb": round(after),
        "empty_mb": round(before),
        "each_kb": round((after - before) / len(opened) * 1e3, 1),
        "opened_s": round(len(opened) / seconds, 1),
        "idle_cpu_ms_s": round(cpu * 1e3, 1),
        "longest_stall_ms": None if stall is None else stall.late,
        "at": time.strftime("%F %T"),
    }


@asynccontextmanager
async def connections(running: Server) -> AsyncIterator[aiohttp.ClientSession]:
    """As many connections to the server as are wanted, with its key."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        connector=connector, headers=running.headers, timeout=timeout
    ) as http:
        yield http


def main(argv: Sequence[str] | None = None) -> int:
    """Measure once, and print the row; 1 where sockets did not stay open."""
    parser = argparse.ArgumentParser(prog="python -m bench.sockets", description=__doc__)
    parser.add_argument("--count", type=int, default=5000, help="sockets (5000)")
    parser.add_argument("--idle", type=float, default=IDLE_SECONDS, help="seconds of CPU (10)")
    options = parser.parse_args(argv)
    if options.count < 1 or options.idle <= 0:
        parser.error("--count must be at least 1, --idle above 0")
    with own_folder() as folder:
        found = row(folder, options.count, options.idle)
    print(json.dumps(found))
    return int(found["count"] < options.count)


if __name__ == "__main__":
    sys.exit(main())
