"""Everything of a user over HTTP: exported whole, and erased while a task runs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from redis.asyncio import Redis

from deploy.local.valkey import EmbeddedValkey
from shared.errors import LeaseLost
from shared.events import KEYS_CHANNEL
from shared.records import NewEvent
from shared.redis_pool import connect_redis
from shared.settings import Settings
from shared.store import api_keys
from shared.store.database import Database
from tests.api.clients import Client
from tests.api.conftest import serving
from tests.api.worker import FakeWorker
from tests.clients import http_client
from tests.shared.traces import keys_with, tables_with
from tests.waiting import until, within

CANARY = "canary-word"


async def test_an_export_is_one_document(client: Client, worker: FakeWorker) -> None:
    empty = (await client.http.get("/v1/me/export")).json()
    session = await client.session(title=CANARY)
    await worker.answer(session["id"], f"Hello, {CANARY}")
    for n in range(60):
        await client.act(session["id"], text=f"{n} " + "x" * 15_000)

    response = await client.http.get("/v1/me/export")

    found = response.json()
    assert (empty["tables"], empty["complete"]) == ({}, True)
    assert (found["user_id"], found["complete"]) == ("local", True)
    assert response.headers["content-disposition"].startswith("attachment")
    assert [one["title"] for one in found["tables"]["sessions"]] == [CANARY]
    assert [one["soul"] for one in found["tables"]["souls"]] == [""]
    assert [one["message"]["content"] for one in found["tables"]["messages"]] == [
        f"Hello, {CANARY}"
    ]
    assert [one["seq"] for one in found["tables"]["tasks"]] == list(range(1, 62))
    log = await client.log(session["id"])
    assert [one["seq"] for one in found["tables"]["events"]] == [one["seq"] for one in log]


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    client = connect_redis(settings)
    yield client
    await client.aclose()


async def test_an_erased_user_is_gone_whatever_runs(
    settings: Settings, db: Database, worker: FakeWorker, redis: Redis
) -> None:
    key_id, key = await api_keys.create(db, "anna", CANARY)
    _, others_key = await api_keys.create(db, "bert")
    mine, others = ({"Authorization": f"Bearer {one}"} for one in (key, others_key))
    guarded = settings.model_copy(update={"auth": "required", "lease_seconds": 0.5})
    async with serving(guarded) as url, http_client(url) as http:
        theirs = Client(http, url)
        http.headers.update(others)
        kept = await theirs.session(title="kept")
        http.headers.update(mine)
        client = Client(http, url)
        session = await client.session(title=CANARY)
        await worker.answer(session["id"], CANARY)
        await client.act(session["id"], text=CANARY)
        await client.act(session["id"], text=CANARY)
        running = await worker.start(session["id"])
        await worker.stream(running, 0, 0, CANARY)
        await http.post("/v1/ws-tickets")
        words = ["anna", CANARY, session["id"], session["character_id"], key_id]
        words += [running.task_id, session["task_id"]]
        assert {"sessions", "tasks", "events", "messages"} <= await tables_with(db, words)

        async def all_is_there() -> bool:  # text so far, a ticket, hints of 2 levels
            return len(await keys_with(redis, words)) == 5

        await until(all_is_there)

        ticket = (await http.post("/v1/ws-tickets")).json()["ticket"]
        async with client.socket(session["id"], after=0) as socket:
            await socket.send({"type": "auth", "ticket": ticket})
            await socket.until("task_started")
            await socket.until("task_started")
            response = await http.delete("/v1/me")
            code = await within(socket.closed())

        assert response.status_code == 200, response.text
        assert code == 4404
        rows = response.json()["erased"]
        assert (rows["sessions"], rows["tasks"], rows["api_keys"]) == (1, 3, 1)
        assert await tables_with(db, words) == set()
        assert await keys_with(redis, words) == set()
        with pytest.raises(LeaseLost):
            await worker.write(running, NewEvent("agent_start", {}))
        http.headers.update(others)
        assert (await http.get(f"/v1/sessions/{kept['id']}")).status_code == 200
        assert (await http.delete("/v1/me")).json()["erased"]["sessions"] == 1


@asynccontextmanager
async def two_gateways(
    settings: Settings, key: str
) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """A client of each of two gateways that both know the key."""
    guarded = settings.model_copy(update={"auth": "required", "lease_seconds": 0.5})
    headers = {"Authorization": f"Bearer {key}"}
    async with (
        serving(guarded) as one,
        serving(guarded) as two,
        http_client(one, headers=headers) as here,
        http_client(two, headers=headers) as there,
    ):
        await Client(here, one).session(title=CANARY)
        assert (await there.get("/v1/sessions")).status_code == 200
        yield here, there


async def test_a_gateway_that_knows_an_erased_key_makes_nothing_by_it(
    settings: Settings, db: Database, redis: Redis
) -> None:
    _, key = await api_keys.create(db, "anna", CANARY)
    async with two_gateways(settings, key) as (here, there):
        await until(lambda: _both_listen(redis))

        erased = await here.delete("/v1/me")

        assert erased.status_code == 200, erased.text
        for http in (here, there):
            for path, body in {
                "/v1/sessions": {"agent": "companion"},
                "/v1/characters": {"agent": "companion", "name": "Ash"},
                "/api/story/action": {"session_id": "mine", "user_input": "hello"},
            }.items():
                made = await http.post(path, json=body)
                assert (made.status_code, made.json()["code"]) == (401, "unauthorized")
        assert (await here.get("/v1/sessions")).status_code == 401
        await until(lambda: _is_refused(there))
        assert await tables_with(db, ["anna", CANARY]) == set()


async def _both_listen(redis: Redis) -> bool:
    ((_, count),) = await redis.pubsub_numsub(KEYS_CHANNEL)
    return int(count) == 2


async def _is_refused(http: httpx.AsyncClient) -> bool:
    return (await http.get("/v1/sessions")).status_code == 401


async def test_by_a_key_that_is_gone_nothing_is_made_where_no_notice_comes(
    frail: Settings, own_valkey: EmbeddedValkey, db: Database
) -> None:
    _, key = await api_keys.create(db, "anna", CANARY)
    async with two_gateways(frail, key) as (here, there):
        await asyncio.to_thread(own_valkey.kill)

        erased = await here.delete("/v1/me")

        assert (erased.status_code, erased.json()["erased"]["sessions"]) == (202, 1)
        made = await there.post("/v1/sessions", json={"agent": "companion"})
        assert (made.status_code, made.json()["code"]) == (401, "unauthorized")
        assert await tables_with(db, ["anna", CANARY]) == set()
