"""Hints that nobody should have sent, to a real worker: none of them does anything."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from redis.asyncio import Redis

from deploy.local.fleet import Fleet
from deploy.models.control import ScriptedModel
from shared.encoding import dumps
from shared.queue import envelope
from tests.acceptance.conftest import end_at_once
from tests.acceptance.player import Player, ended
from tests.clients import http_client
from tests.nursery import BornFleet
from tests.waiting import PATIENCE, until

QUEUE = "fireside"
SLOW = '[[script: {"chunks": ["one ", "two ", "three "], "duration": 0.5}]]'


def hint(session: str) -> bytes:
    return dumps(envelope(UUID(session), QUEUE))


async def is_empty(redis: Redis) -> bool:
    return int(await redis.llen(QUEUE)) == 0


@pytest.fixture
def patient(
    tmp_path: Path, stories: Path, postgres_url: str, redis_url: str, scripted_model: ScriptedModel
) -> Iterator[Fleet]:
    """A gateway and two workers that no busy machine makes lose a lease."""
    with BornFleet(
        tmp_path,
        postgres=postgres_url,
        redis=redis_url,
        model=scripted_model.url,
        model_path="direct",
        story_folders=str(stories),
        lease_seconds="60",
    ) as fleet:
        fleet.add_gateway()
        fleet.add_worker()
        fleet.add_worker()
        yield fleet
        end_at_once(fleet)


async def test_forged_doubled_and_malformed_hints_change_nothing(
    patient: Fleet, postgres_url: str, redis_url: str
) -> None:
    async with http_client(patient.url, timeout=60) as http:
        await forge(patient, http, postgres_url, redis_url)


async def forge(fleet: Fleet, http: httpx.AsyncClient, postgres_url: str, redis_url: str) -> None:
    player = await Player.begin(http, agent="companion")
    gone = await Player.begin(http, agent="companion")
    async with asyncio.timeout(PATIENCE):
        await player.until_ended(player.opening)
        await gone.until_ended(gone.opening)
    waiting = (await gone.act({"type": "say", "text": SLOW}))["task_id"]
    assert (await http.delete(f"/v1/sessions/{gone.id}")).status_code == 204

    malformed = json.loads(hint(player.id))
    malformed["body"] = "%%%"
    async with Redis.from_url(redis_url) as redis, asyncio.timeout(3 * PATIENCE):
        tasks = []
        for number in range(5):
            tasks.append((await player.act({"type": "say", "text": SLOW}))["task_id"])
            await redis.lpush(
                QUEUE,
                *[hint(player.id)] * 20,
                *(hint(str(uuid4())) for _ in range(20)),
                *[hint(gone.id)] * 5,
                dumps(malformed),
                b"{",
                b"",
            )
            await asyncio.sleep(0.1 * number)
        await player.until_ended(*tasks)
        # What lies in the queue is all taken, and none of it started anything.
        await until(lambda: is_empty(redis))

    assert all(worker.alive for worker in fleet.workers)
    assert [event["seq"] for event in player.events] == list(range(1, len(player.events) + 1))
    assert {task: [event["type"] for event in of] for task, of in ended(player.events).items()} == {
        task: ["task_completed"] for task in [player.opening, *tasks]
    }
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        query = "select count(*), coalesce(max(claims), 0) from tasks where session_id = %s"
        rows = await (await connection.execute(query, [player.id])).fetchone()
        left = await (await connection.execute(query, [gone.id])).fetchone()
    assert rows == (6, 1), "a hint too many never is a second attempt"
    assert left == (0, 0)
    assert (await http.get(f"/v1/tasks/{waiting}")).status_code == 404
