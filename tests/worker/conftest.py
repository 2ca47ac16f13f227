"""Tests of the worker: on the loop that the worker has, with hosts in this process."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import pytest
import uvloop
from redis.asyncio import Redis
from structlog.testing import capture_logs

from shared.redis_pool import connect_redis
from shared.store.database import Database
from tests.worker.hosts import Hosts


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    """What was logged; shown beside a test that fails."""
    with capture_logs() as entries:
        yield entries
    for entry in entries:
        print(entry)


@pytest.fixture
async def hosts(
    postgres_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Hosts]:
    """Workers in this process; those that were started are drained.

    What they could not hand over would be theirs for as long as a lease lasts, so they may take
    longer for it than in production.
    """
    monkeypatch.setattr("worker.rota.HAND_OVER_SECONDS", 10.0)
    made = Hosts(postgres_url, redis_url)
    yield made
    await made.drain()


@pytest.fixture
async def db(hosts: Hosts) -> AsyncIterator[Database]:
    database = Database.from_settings(hosts.settings)
    yield database
    await database.close()


@pytest.fixture
async def redis(hosts: Hosts) -> AsyncIterator[Redis]:
    client = connect_redis(hosts.settings)
    yield client
    await client.aclose()
