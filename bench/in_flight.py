"""`python -m bench.in_flight`: what tasks weigh that wait for the model in one worker process, and
how its loop bears them.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from bench.clients import Fireside
from bench.processes import cpu_seconds, pss_megabytes
from bench.programs import own_folder, tell
from bench.seeding import Seeded, seed
from bench.servers import USER, Server, server
from bench.sockets import connections
from deploy.models.control import ScriptedModel

AT_ONCE = 20
"""Actions that are sent at the same time."""

SETTLING_SECONDS = 3.0
PATIENCE = 60.0


def row(folder: Path, count: int, model_path: str) -> dict[str, Any]:
    """Have so many sessions' tasks wait for the model at once, then let all of them go."""
    settings = {
        "max_in_flight": str(count),
        "model_first_token_seconds": str(20 * PATIENCE),
        "task_seconds": str(20 * PATIENCE),
    }
    with server(folder, workers=1, model_path=model_path, settings=settings) as running:
        seeded = seed(running.postgres_url, USER, sessions=count, history=2)
        return uvloop.run(_tasks_in_flight(running, seeded, model_path))


async def _tasks_in_flight(running: Server, seeded: Seeded, model_path: str) -> dict[str, Any]:
    worker, model = running.parts["worker"], running.model
    async with connections(running) as http:
        client = Fireside(running.url, http)
        # One task first: what is loaded at the first call is not the tasks' weight.
        await client.post(*_say(seeded.ids[0]))
        await model.until(completed=1, timeout=60)
        await asyncio.sleep(SETTLING_SECONDS)
        running.stalls.watch()
        before = pss_megabytes(worker)
        calls = model.stats().requests
        model.script({"reply": {"text": "At last.", "fault": {"kind": "hang"}}})
        began = time.perf_counter()
        await _fill(client, model, seeded.ids)
        filled = time.perf_counter() - began
        opening = running.stalls.worst(worker)
        await asyncio.sleep(SETTLING_SECONDS)
        after, reached = pss_megabytes(worker), model.stats().in_flight
        cpu = cpu_seconds(worker)
        await asyncio.sleep(SETTLING_SECONDS)
        waiting = (cpu_seconds(worker) - cpu) / SETTLING_SECONDS
        running.stalls.watch()
        model.release()
        await model.until(in_flight=0, timeout=2 * PATIENCE)
        ending = running.stalls.worst(worker)
        calls = model.stats().requests - calls
    return {
        "kind": "in flight",
        "what": f"tasks in flight in one worker process, model path {model_path}",
        "model_path": model_path,
        "count": reached,
        "total_mb": round(after),
        "empty_mb": round(before),
        "each_kb": round((after - before) / max(1, reached) * 1e3, 1),
        "opened_s": round(reached / filled, 1),
        "idle_cpu_ms_s": round(waiting * 1e3, 1),
        "longest_stall_ms": max(one.late for one in (opening, ending) if one is not None),
        "repeated_calls": calls - reached,
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.in_flight", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="tasks at once")
    parser.add_argument("--model-path", choices=["direct", "litellm"], default="direct")
    parser.add_argument("--out", type=Path, help="a file for the row")
    options = parser.parse_args()
    with own_folder() as folder:
        tell(row(folder, options.count, options.model_path), options.out)


if __name__ == "__main__":
    main()
