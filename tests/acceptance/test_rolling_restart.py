"""Every gateway and worker is restarted in turn while players go on, as an upgrade does it."""

import asyncio
import signal

import httpx
import psycopg

from deploy.local.fleet import Fleet
from tests.acceptance.conftest import LONG_LEASE
from tests.acceptance.player import Player, ended
from tests.clients import http_client

PLAYERS = 8
SLOW = '[[script: {"chunks": ["one ", "two ", "three "], "ttft": 0.1, "duration": 0.6}]]'


class Crowd:
    """Players who act one action after the other, each at the gateway that is its turn."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.over = False

    async def play(self, player: Player) -> list[str]:
        """Act until it is over; the tasks that were accepted."""
        tasks: list[str] = []
        while not self.over:
            key = f"{player.id}-{len(tasks)}"
            tasks.append(await self._act(player, key))
            await player.until_ended(tasks[-1])
        return tasks

    async def _act(self, player: Player, key: str) -> str:
        """Send an action until some gateway has it."""
        turn = 0
        while True:
            turn += 1
            gateways = self._fleet.gateways
            url = gateways[(hash(key) + turn) % len(gateways)].url
            try:
                answer = await player.http.post(
                    f"{url}/v1/sessions/{player.id}/actions",
                    json={"type": "say", "text": SLOW, "client_action_id": key},
                )
            except httpx.TransportError:
                await asyncio.sleep(0.02)  # it is away for a moment
                continue
            if answer.status_code in {200, 202}:
                return str(answer.json()["task_id"])
            assert answer.status_code == 503, answer.text


async def test_a_rolling_restart_loses_and_doubles_nothing(fleet: Fleet, postgres_url: str) -> None:
    fleet.env["FIRESIDE_LEASE_SECONDS"] = LONG_LEASE  # only who is stopped gives a task away
    for add in (fleet.add_gateway, fleet.add_gateway, fleet.add_worker, fleet.add_worker):
        await asyncio.to_thread(add)
    async with http_client(fleet.url, timeout=60) as http:
        players = await asyncio.gather(
            *(Player.begin(http, agent="companion") for _ in range(PLAYERS))
        )
        crowd = Crowd(fleet)
        playing = asyncio.gather(*(crowd.play(player) for player in players))
        for child in (*fleet.gateways, *fleet.workers):
            await asyncio.to_thread(child.stop)
            assert child.returncode in {0, -signal.SIGTERM}  # uvicorn ends by the signal it got
            await asyncio.to_thread(child.start)
        crowd.over = True
        tasks = await playing

    for player, of in zip(players, tasks, strict=True):
        assert len(of) == len(set(of)) > 2
        assert [event["seq"] for event in player.events] == list(range(1, len(player.events) + 1))
        ends = {
            task: [end["type"] for end in found] for task, found in ended(player.events).items()
        }
        assert ends == {task: ["task_completed"] for task in (player.opening, *of)}
    with psycopg.connect(postgres_url) as connection:
        said = "select count(*) from messages where message ->> 'role' = 'user'"
        attempts = "select max(attempts) from tasks"  # without those that were handed over
        found = [connection.execute(query).fetchone() for query in (said, attempts)]
    assert found == [(sum(map(len, tasks)),), (1,)]  # no attempt was lost
