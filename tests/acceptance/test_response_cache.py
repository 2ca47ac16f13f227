"""Two players in the same scene with the same words: one call of the referee, and no trace left."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from deploy.local.fleet import Fleet
from deploy.models.control import ScriptedModel
from shared.redis_pool import connect_redis
from shared.settings import load_settings
from shared.store import api_keys
from shared.store.database import Database
from tests.acceptance.conftest import LONG_LEASE
from tests.acceptance.player import Frame, Player
from tests.ports import promised_port

WORDS = "I stand quite still, and keep my eyes on him"
REFEREE = {"match": {"system": "You are the referee"}}
RULING = json.dumps({"choice": 1, "confidence": 0.9, "check": None, "reason": "waiting"})
USAGE = {"prompt_tokens": 100, "completion_tokens": 10}


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    settings = load_settings().model_copy(update={"redis_url": SecretStr(redis_url)})
    client = connect_redis(settings)
    yield client
    await client.aclose()


@pytest.fixture
async def players(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Player]]:
    """Two users, each in a story of their own."""
    fleet.env |= {
        "FIRESIDE_AUTH": "required",
        "FIRESIDE_CONSOLIDATE_SECONDS": "0",
        "FIRESIDE_LEASE_SECONDS": LONG_LEASE,  # a second attempt would ask the models again
        "FIRESIDE_WORKER_METRICS": f"127.0.0.1:{promised_port()}",
    }
    fleet.add_gateway()
    fleet.add_worker()
    monkeypatch.setenv("DATABASE_URL", fleet.env["DATABASE_URL"])
    db = Database.from_settings(load_settings())
    keys = [(await api_keys.create(db, user))[1] for user in ("anna", "bert")]
    await db.close()
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                httpx.AsyncClient(
                    base_url=fleet.url, headers={"Authorization": f"Bearer {key}"}, timeout=60
                )
            )
            for key in keys
        ]
        yield [await Player.begin(one, agent="story", story="gate") for one in clients]


async def said(player: Player) -> Frame:
    """The decision on the words, by polling: sockets want tickets here."""
    task = (await player.act({"type": "say", "text": WORDS}))["task_id"]
    answer = (await player.http.get(f"/v1/tasks/{task}", params={"wait": 30})).json()
    assert answer["status"] == "completed", answer
    decision: Frame = answer["result"]["decision"]
    return decision


async def calls_by_purpose(player: Player) -> dict[str, int]:
    usage = (await player.http.get("/v1/usage", params={"by": "purpose"})).json()
    return {one["purpose"]: one["calls"] for one in usage["rows"]}


async def lookups(fleet: Fleet) -> set[str]:
    """What the worker has counted of the referee's calls."""
    async with httpx.AsyncClient() as http:
        shown = (await http.get(f"http://{fleet.env['FIRESIDE_WORKER_METRICS']}/metrics")).text
    prefix = 'fireside_response_cache_lookups_total{purpose="referee",'
    return {line.removeprefix(prefix) for line in shown.splitlines() if line.startswith(prefix)}


async def test_two_players_cost_one_ruling_and_leave_nothing(
    fleet: Fleet, players: list[Player], scripted_model: ScriptedModel, redis: Redis
) -> None:
    scripted_model.script(
        REFEREE | {"reply": {"text": RULING, "usage": USAGE}},
        {"reply": {"text": "He yawns.", "usage": USAGE}},
    )

    decisions = [await said(player) for player in players]

    assert [one["choice"]["text"] for one in decisions] == ["Wait and watch."] * 2
    assert [one["referee"]["by"] for one in decisions] == ["model"] * 2
    tokens = [[call["tokens"] for call in one["calls"]] for one in decisions]
    assert tokens == [[110, 110], [0, 110]]
    assert len(scripted_model.requests()) == 3, "a referee's call and two narrators'"
    assert await lookups(fleet) == {'result="hit"} 1.0', 'result="miss"} 1.0'}
    assert [await calls_by_purpose(player) for player in players] == [
        {"narrator": 1, "referee": 1},
        {"narrator": 1},
    ]

    assert len(await redis.keys("fireside:answer:*")) == 1
    for player in players:
        assert (await player.http.delete("/v1/me")).status_code == 200
    assert await redis.keys("fireside:answer*") == []
