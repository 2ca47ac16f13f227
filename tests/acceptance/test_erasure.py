"""A user who leaves: gone on every gateway, whether Redis is there or not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from redis.asyncio import Redis
from sqlalchemy import text

from deploy.local.valkey import EmbeddedValkey
from shared.records import CatalogEntry
from shared.store import api_keys, catalog
from shared.store.database import Database
from tests.acceptance.player import Player
from tests.clients import http_client
from tests.nursery import BornFleet
from tests.shared.traces import keys_with, tables_with
from tests.waiting import PATIENCE, until


@asynccontextmanager
async def calling(url: str, key: str) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {key}"}
    async with http_client(url, headers=headers, timeout=60) as http:
        yield http


async def test_an_erasure_that_redis_missed_ends_by_itself(
    tmp_path: Path, postgres_url: str, db: Database
) -> None:
    _, key = await api_keys.create(db, "anna")
    await catalog.announce(db, [CatalogEntry("agent", "companion", "A companion", "Listens.")])
    with (
        EmbeddedValkey(tmp_path / "valkey") as valkey,
        BornFleet(
            tmp_path, postgres=postgres_url, redis=valkey.url, model="", auth="required"
        ) as fleet,
    ):
        for _ in range(2):
            await asyncio.to_thread(fleet.add_gateway)
        here, there = (calling(gateway.url, key) for gateway in fleet.gateways)
        async with here as one, there as other, Redis.from_url(valkey.url) as redis:
            player = await Player.begin(one, agent="companion")  # no worker takes its hint
            assert (await other.get("/v1/sessions")).status_code == 200
            words = [player.id, player.opening]
            await until(lambda: _names(redis, words))
            await asyncio.to_thread(valkey.kill)

            erased = await one.delete("/v1/me")

            assert (erased.status_code, erased.json()["erased"]["sessions"]) == (202, 1)
            for http in (one, other):
                made = await http.post("/v1/sessions", json={"agent": "companion"})
                assert (made.status_code, made.json()["code"]) == (401, "unauthorized")
            assert await tables_with(db, ["anna"]) == set()
            await asyncio.to_thread(valkey.start)
            await redis.connection_pool.disconnect()
            assert await _names(redis, words)
            # As if the half minute had passed that the one who answered may take.
            await db.run(text("update erasures set clear_at = clock_timestamp()"))
            # Each gateway looks every ten seconds, and may find Redis still away the first time.
            await until(lambda: _is_forgotten(db, redis, words), 2 * PATIENCE)
            assert (await one.delete("/v1/me")).status_code == 401


async def _names(redis: Redis, words: list[str]) -> bool:
    return bool(await keys_with(redis, words))


async def _is_forgotten(db: Database, redis: Redis, words: list[str]) -> bool:
    return not (await tables_with(db, words) or await keys_with(redis, words))
