"""A gateway on a free port for each test, on a database and a Redis of the test's own."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from api.app import create_app
from api.socket import MAX_FRAME
from api.wire import Wire
from deploy.local.ports import free_port
from deploy.local.process import Command
from deploy.local.server import ROOT
from deploy.local.valkey import EmbeddedValkey
from shared.records import CatalogEntry
from shared.settings import Settings, load_settings
from shared.store import catalog
from shared.store.database import Database
from tests.api.clients import Client
from tests.api.processes import Gateway, Start
from tests.api.worker import FakeWorker
from tests.clients import http_client

CATALOG = (
    CatalogEntry("agent", "companion", "A companion", "Listens."),
    CatalogEntry("agent", "story", "A narrator", "Tells.", {"options": {"type": "object"}}),
    CatalogEntry("story", "cave", "The cave", "Dark.", {"agent": "story", "hash": "hash-of-cave"}),
    CatalogEntry("story", "sea", "The sea", "Wet.", {"agent": "story", "hash": "hash-of-sea"}),
)


@pytest.fixture
def settings(postgres_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Access `none`, and everything that waits waits shortly; tests change it by `model_copy`."""
    for name, value in {
        "DATABASE_URL": postgres_url,
        "REDIS_URL": redis_url,
        "FIRESIDE_AUTH": "none",
        "FIRESIDE_DATABASE_POOL": "5",
        "FIRESIDE_POLL_SECONDS": "0.3",
        "FIRESIDE_SWEEP_SECONDS": "60",
        "FIRESIDE_DRAIN_SECONDS": "5",
    }.items():
        monkeypatch.setenv(name, value)
    return load_settings()


@pytest.fixture
async def db(settings: Settings) -> AsyncIterator[Database]:
    database = Database.from_settings(settings)
    await catalog.announce(database, CATALOG)
    yield database
    await database.close()


@asynccontextmanager
async def serving(settings: Settings, ws: Any = Wire) -> AsyncIterator[str]:
    """A gateway in this process; its base URL.

    Args:
        ws: what serves its WebSockets: as our own command has it, or uvicorn's.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            create_app(settings),
            ws=ws,
            ws_max_size=MAX_FRAME,
            ws_per_message_deflate=False,
            log_config=None,
            log_level="warning",
            lifespan="on",
            timeout_graceful_shutdown=5,
        )
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            assert not task.done(), task.exception()
            await asyncio.sleep(0.01)  # uvicorn has no event for it
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await task


@pytest.fixture
async def url(settings: Settings, db: Database) -> AsyncIterator[str]:
    """The base URL of a gateway with access `none`."""
    async with serving(settings) as base:
        yield base


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with http_client(url, timeout=40) as client:
        yield client


@pytest.fixture
def client(http: httpx.AsyncClient, url: str) -> Client:
    return Client(http, url)


@pytest.fixture
async def worker(settings: Settings, db: Database) -> AsyncIterator[FakeWorker]:
    async with FakeWorker.connected(settings, db) as one:
        yield one


@pytest.fixture
def own_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    """A Valkey that a test may kill."""
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey"), durable=False) as server:
        yield server


@pytest.fixture
def frail(settings: Settings, own_valkey: EmbeddedValkey) -> Settings:
    """Settings with that Valkey in them."""
    return type(settings)(REDIS_URL=own_valkey.url)


@pytest.fixture
def start(settings: Settings, db: Database, tmp_path: Path) -> Iterator[Start]:
    """Start a gateway: `api`, or `uvicorn`."""
    started: list[Gateway] = []

    def begin(how: str = "api", **env: str) -> Gateway:
        port = free_port()
        commands = {
            "api": [sys.executable, "-m", "api"],
            "uvicorn": [sys.executable, "-m", "uvicorn", "api.app:app", "--port", str(port)],
        }
        command = Command(
            name="gateway",
            argv=commands[how],
            env={**os.environ, "PORT": str(port), **env},
            cwd=ROOT,
            log=tmp_path / f"gateway-{port}.log",
        )
        gateway = Gateway(port, command)
        started.append(gateway)
        return gateway.start()

    yield begin
    for gateway in started:
        gateway.stop()
