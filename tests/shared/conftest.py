"""A migrated, empty database and an empty Redis for each test."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from shared.migrate import migrate
from shared.redis_pool import connect_redis
from shared.settings import Settings, load_settings
from shared.store.database import Database
from tests.shared.tables import TABLES


@pytest.fixture(scope="session")
def migrated_url(postgres_url: str) -> str:
    migrate(postgres_url)
    return postgres_url


@pytest.fixture
def settings(migrated_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("DATABASE_URL", migrated_url)
    monkeypatch.setenv("REDIS_URL", redis_url)
    return load_settings()


@pytest.fixture
async def db(settings: Settings) -> AsyncIterator[Database]:
    database = Database.from_settings(settings)
    for table in TABLES:
        await database.run(text(f"delete from {table}"))
    yield database
    await database.close()


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    client = connect_redis(settings)
    await client.flushdb()
    yield client
    await client.aclose()
