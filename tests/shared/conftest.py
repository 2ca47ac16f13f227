"""The store and Redis as both sides open them, each empty at the start of a test."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from shared.redis_pool import connect_redis
from shared.settings import Settings, load_settings
from shared.store.database import Database


@pytest.fixture
def settings(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with the test's Redis."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    return load_settings()


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    client = connect_redis(settings)
    yield client
    await client.aclose()


@pytest.fixture
async def db(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    """A pool on the test's database."""
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    database = Database.from_settings(load_settings())
    yield database
    await database.close()
