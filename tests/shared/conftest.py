"""The store and Redis as both sides open them, each empty at the start of a test."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from redis.asyncio import Redis

from deploy.local.postgres import EmbeddedPostgres
from shared.redis_pool import connect_redis
from shared.settings import Settings, load_settings
from shared.store import connection
from shared.store.database import Database
from tests.shared.tables import empty
from tests.wire import Wire

_WIDE = "; ".join(f"set {name} = '2min'" for name in ("lock_timeout", "statement_timeout"))


@pytest.fixture(autouse=True)
def _wide_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests hold transactions and locks on purpose: on a busy machine for longer than the store's
    own limits of a few seconds allow."""
    monkeypatch.setattr(connection, "_ON_CONNECT", f"{connection._ON_CONNECT}; {_WIDE}")
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 120.0)


@pytest.fixture
async def db(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    """A pool on the test's database, for which a hundred callers at once wait long."""
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    database = Database.from_settings(load_settings(), wait_seconds=120.0)
    yield database
    await database.close()


@pytest.fixture(scope="session")
def store_url(postgres_server: EmbeddedPostgres, database_template: str) -> Iterator[str]:
    """One database for all these tests: to empty it is ten times quicker than to make another."""
    yield postgres_server.create_database("store", template=database_template)
    postgres_server.drop_database("store")


@pytest.fixture
def postgres_url(store_url: str) -> str:
    """The URL of an empty database."""
    empty(store_url)
    return store_url


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
async def watcher(postgres_url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A connection beside the pool, to look at it from the server's side."""
    looking = await psycopg.AsyncConnection.connect(postgres_url, autocommit=True)
    yield looking
    await looking.close()


@pytest.fixture
async def cut_db(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    """A pool over the line that can be cut."""
    monkeypatch.setenv("DATABASE_URL", wire.url)
    database = Database.from_settings(load_settings())
    yield database
    await database.close()
