"""`python -m bench.rolling`: every gateway and worker is restarted in turn, under load.

Players send actions to two gateways as behind a balancer: one that does not answer is left for the
other, and an action whose answer was lost is sent again under its key. The row says how long
accepting took before and during the restarts, and whether anything was lost or doubled.
"""

import argparse
import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import uvloop

from bench.load import percentiles
from bench.programs import own_folder, tell
from bench.servers import Server, server
from deploy.local.process import Child

CALM_SECONDS = 10.0


@dataclass
class Players:
    """What all players did; `phase` is under which name accepting is counted now."""

    server: Server
    phase: str = "before"
    over: bool = False
    accept: dict[str, list[float]] = field(default_factory=dict)
    accepted: dict[str, str] = field(default_factory=dict)
    retries: int = 0

    async def post(self, http: aiohttp.ClientSession, path: str, body: Any, first: int) -> Any:
        """The answer of the first gateway that gives one."""
        for turn in range(200):
            gateways = self.server.fleet.gateways
            url = gateways[(first + turn) % len(gateways)].url
            try:
                async with http.post(f"{url}{path}", json=body) as answer:
                    if answer.status < 500:
                        answer.raise_for_status()
                        return await answer.json()
            except (aiohttp.ClientConnectionError, TimeoutError):
                pass
            self.retries += 1
            if turn % len(gateways):
                await asyncio.sleep(0.01)
        raise RuntimeError("no gateway answers")

    async def play(self, http: aiohttp.ClientSession, number: int) -> None:
        """One player: an action, its end, the next one."""
        session = await self.post(http, "/v1/sessions", {"agent": "companion"}, number)
        count = 0
        while not self.over:
            count += 1
            key = f"{number}-{count}"
            body = {"type": "say", "text": f"Question {key}.", "client_action_id": key}
            began, phase = time.perf_counter(), self.phase
            accepted = await self.post(
                http, f"/v1/sessions/{session['id']}/actions", body, number + count
            )
            self.accept.setdefault(phase, []).append(time.perf_counter() - began)
            self.accepted[key] = accepted["task_id"]
            await self._ends(http, accepted["task_id"], number)

    async def _ends(self, http: aiohttp.ClientSession, task_id: str, first: int) -> None:
        turn = 0
        while True:
            turn += 1
            gateways = self.server.fleet.gateways
            url = gateways[(first + turn) % len(gateways)].url
            try:
                async with http.get(f"{url}/v1/tasks/{task_id}?wait=5") as answer:
                    if answer.status == 200 and (await answer.json())["finished_at"]:
                        return
            except (aiohttp.ClientConnectionError, TimeoutError):
                await asyncio.sleep(0.01)


async def rolling(running: Server, players: int) -> dict[str, Any]:
    """The row of one run."""
    running.model.profile(ttft=0.2, chunks=50, duration=1.0, tool=False)
    crowd = Players(running)
    headers = {"Authorization": f"Bearer {running.key}"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, headers=headers, timeout=aiohttp.ClientTimeout(30)
    ) as http:
        playing = [asyncio.create_task(crowd.play(http, number)) for number in range(players)]
        await asyncio.sleep(CALM_SECONDS)
        crowd.phase, began = "during", time.perf_counter()
        children: list[Child] = [*running.fleet.gateways, *running.fleet.workers]
        for child in children:
            await asyncio.to_thread(child.restart)
        seconds = time.perf_counter() - began
        crowd.over = True
        await asyncio.gather(*playing)
    return {
        "players": players,
        "restarts": len(children),
        "restart_s": round(seconds, 1),
        "accepted": len(crowd.accepted),
        "retries": crowd.retries,
        **{f"accept_ms_{phase}": percentiles(times) for phase, times in crowd.accept.items()},
        **_checked(running, crowd.accepted),
    }


def _checked(running: Server, accepted: dict[str, str]) -> dict[str, int]:
    """What the tables say of the accepted actions."""
    with psycopg.connect(running.fleet.env["DATABASE_URL"]) as connection:
        tasks = connection.execute(
            "select client_action_id, id::text, status, claims from tasks "
            "where client_action_id is not null"
        ).fetchall()
        said = connection.execute(
            "select message ->> 'content' from messages where message ->> 'role' = 'user'"
        ).fetchall()
    texts = Counter(row[0] for row in said)
    completed = {key for key, task, status, _ in tasks if status == "completed"}
    return {
        "lost": len(accepted.keys() - completed),
        "doubled": sum(count - 1 for count in texts.values()),
        "other_task": sum(accepted.get(key) != task for key, task, _, _ in tasks),
        "handed_over": sum(claims > 1 for *_, claims in tasks),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.rolling", description=__doc__)
    parser.add_argument("--players", type=int, default=30)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with (
        own_folder() as folder,
        server(folder, workers=2, gateways=2, model_path="direct") as running,
    ):
        row = uvloop.run(rolling(running, options.players))
    tell(row, options.out)


if __name__ == "__main__":
    main()
