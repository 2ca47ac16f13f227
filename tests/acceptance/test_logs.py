"""Logs hold nothing of users but opaque ids: canary words are put wherever users put words, and
looked for in all that real processes write."""

import json
from collections.abc import AsyncIterator

import httpx
import pytest
from websockets.asyncio.client import connect

from deploy.local.fleet import Fleet
from deploy.models.control import ScriptedModel
from shared.settings import load_settings
from shared.store import api_keys
from shared.store.database import Database
from tests.acceptance.player import Player
from tests.clients import http_client
from tests.waiting import until

CANARY = "Xanthippe-canary"
USER = f"{CANARY}@home.example"


@pytest.fixture(params=["info", "debug"])
async def anna(
    request: pytest.FixtureRequest, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a fleet with access control, whose user has a telling id."""
    fleet.env |= {
        "FIRESIDE_AUTH": "required",
        "FIRESIDE_LOG_LEVEL": request.param,
        "FIRESIDE_AGENT_MODULES": "worker.companion,worker.story,tests.acceptance.leaky_agent",
        "FIRESIDE_CONSOLIDATE_SECONDS": "0.1",
        "FIRESIDE_MODEL_RETRIES": "0",
    }
    fleet.add_gateway()
    fleet.add_worker()
    monkeypatch.setenv("DATABASE_URL", fleet.env["DATABASE_URL"])
    db = Database.from_settings(load_settings())
    _, key = await api_keys.create(db, USER, CANARY)
    await db.close()
    headers = {"Authorization": f"Bearer {key}"}
    async with http_client(fleet.url, headers=headers, timeout=60) as client:
        yield client


async def ended(http: httpx.AsyncClient, task_id: str) -> str:
    answer = await http.get(f"/v1/tasks/{task_id}", params={"wait": 30})
    return str(answer.json()["status"])


async def talk(http: httpx.AsyncClient, agent: str, *words: str, **body: object) -> list[str]:
    """A session in which this is said; how the tasks ended."""
    player = await Player.begin(
        http,
        agent=agent,
        title=CANARY,
        metadata={"user_name": CANARY, "timezone": CANARY, "language": CANARY},
        **body,
    )
    tasks = [await player.act({"type": "say", "text": one}) for one in words]
    return [await ended(http, one) for one in [player.opening, *(t["task_id"] for t in tasks)]]


async def test_logs_hold_no_word_of_users(
    fleet: Fleet, anna: httpx.AsyncClient, scripted_model: ScriptedModel
) -> None:
    character = (
        await anna.post(
            "/v1/characters",
            json={"agent": "companion", "name": CANARY, "soul": f"greeting: {CANARY}"},
        )
    ).json()
    of_character = {"character_id": character["id"]}
    found = [{"kind": "fact", "text": f"is {CANARY}", "sources": [2], "quote": CANARY}]
    scripted_model.script(
        {
            "match": {"system": "long-term memory"},
            "reply": {"text": json.dumps({"findings": found})},
        },
        {
            "match": {"user": "tool"},
            "turns": [
                {
                    "tool_calls": [
                        {"name": "update_soul", "arguments": {"section": CANARY, "text": "a\n# b"}}
                    ]
                },
                {"tool_calls": [{"name": CANARY, "arguments": {"words": CANARY}}]},
                {"tool_calls": [{"name": "update_soul", "arguments": f'{{"{CANARY}'}]},
                {"text": CANARY},
            ],
        },
        {
            "match": {"user": "error"},
            "reply": {"fault": {"kind": "error_event", "message": CANARY}},
        },
        {"match": {"user": "garbage"}, "reply": {"fault": {"kind": "garbage"}, "text": CANARY}},
        {"reply": {"text": f"Hello, {CANARY}"}},
    )

    said = [f"{how} {CANARY}" for how in ("I am", "tool", "error", "garbage")]
    statuses = await talk(anna, "companion", *said, **of_character)
    assert statuses == ["completed", "completed", "completed", "failed", "failed"]
    assert await talk(anna, "leaky", CANARY) == ["completed", "failed"]
    assert await talk(anna, "story", f"Walk through, {CANARY}", story="gate") == ["completed"] * 2

    await learned(anna)
    fact = (await anna.get("/v1/memories", params={"kind": "fact"})).json()["memories"][0]
    await anna.post("/v1/memories/search", json={"text": CANARY})
    await anna.patch(f"/v1/memories/{fact['id']}", json={"text": CANARY})
    for path, body in (
        ("/v1/sessions", {"agent": CANARY}),
        ("/v1/sessions", {"agent": "companion", "key": f"{CANARY} !"}),
        ("/v1/characters", {"agent": "companion", "name": CANARY, CANARY: 1}),
        ("/v1/memories/search", {"text": CANARY, "kinds": [CANARY]}),
        ("/api/story/action", {"session_id": f"{CANARY} !", "user_input": CANARY}),
    ):
        assert (await anna.post(path, json=body)).status_code == 422
    json_type = {"Content-Type": "application/json"}
    broken = await anna.post("/v1/sessions", content=CANARY, headers=json_type)
    assert broken.status_code == 400
    await bad_frames(anna)
    assert (await anna.get("/v1/me/export")).text.count(CANARY) > 20
    assert (await anna.delete("/v1/me")).status_code in {200, 202}  # Redis may take its time

    logs = stopped(fleet)
    assert [line for log in logs for line in log if CANARY.lower() in line.lower()] == []
    assert any("agent failed" in line for line in logs[0])


def stopped(fleet: Fleet) -> list[list[str]]:
    """All lines that the processes have written; the worker's come first."""
    children = [*fleet.workers, *fleet.gateways]
    for child in children:
        child.stop()
    return [child.command.log.read_text(errors="replace").splitlines() for child in children]


async def learned(http: httpx.AsyncClient) -> None:
    """Wait until something was learned."""

    async def knows_a_fact() -> bool:
        found = await http.get("/v1/memories", params={"kind": "fact"})
        return bool(found.json()["memories"])

    await until(knows_a_fact)


async def bad_frames(http: httpx.AsyncClient) -> None:
    """Open a WebSocket, and send what no client should."""
    session = (await http.get("/v1/sessions", params={"limit": 1})).json()["sessions"][0]
    ticket = (await http.post("/v1/ws-tickets")).json()["ticket"]
    url = str(http.base_url).replace("http", "ws", 1).rstrip("/")
    async with connect(f"{url}/ws/sessions/{session['id']}") as socket:
        await socket.send(json.dumps({"type": "auth", "ticket": ticket}))
        for frame in (CANARY, json.dumps({"type": CANARY}), json.dumps({"type": "action"})):
            await socket.send(frame)
            assert json.loads(await socket.recv())["type"] == "error"
