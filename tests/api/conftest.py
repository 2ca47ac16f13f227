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
from tests.ports import promised_port
from tests.waiting import PATIENCE

CATALOG = (
    CatalogEntry("agent", "companion", "A companion", "Listens."),
    CatalogEntry("agent", "story", "A narrator", "Tells.", {"options": {"type": "object"}}),
    CatalogEntry("story", "cave", "The cave", "Dark.", {"agent": "story", "hash": "hash-of-cave"}),
    CatalogEntry("story", "sea", "The sea", "Wet.", {"agent": "story", "hash": "hash-of-sea"}),
)


COMPARING = pytest.mark.parametrize("poll_seconds", [0.3])
"""For tests of what no publication tells: the gateway finds it by comparing with the log."""

BOUNDS = (
    "api.health._CHECK_SECONDS",
    "api.metrics._ASK_SECONDS",
    "api.outlet._CLOSE_SECONDS",
    "api.relay._TEXT_SECONDS",
    "api.wire._CLOSE_SECONDS",
    "shared.follow._CONFIRM_SECONDS",
    "shared.pace._ASK_SECONDS",
)
"""For how long a gateway waits for others before it does without them."""


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stands still for a moment changes nothing of what a gateway in this process
    does; a test whose subject is such a bound sets it."""
    for name in BOUNDS:
        monkeypatch.setattr(name, PATIENCE)


@pytest.fixture
def poll_seconds() -> float:
    """How often gateways compare with the log: hardly while a test lasts, so that what clients get
    was pushed, and in the order in which it was."""
    return PATIENCE


@pytest.fixture
def settings(
    postgres_url: str, redis_url: str, poll_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """Access `none`, and everything that waits waits shortly; tests change it by `model_copy`."""
    for name, value in {
        "DATABASE_URL": postgres_url,
        "REDIS_URL": redis_url,
        "FIRESIDE_AUTH": "none",
        "FIRESIDE_DATABASE_POOL": "5",
        "FIRESIDE_POLL_SECONDS": str(poll_seconds),
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
            ws_ping_interval=None,  # a client's pong may wait behind frames that are not read yet
            log_config=None,
            log_level="warning",
            lifespan="on",
            timeout_graceful_shutdown=int(PATIENCE),
        )
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            assert not task.done(), task.exception()
            await asyncio.sleep(0.01)  # uvicorn has no event for it
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


@pytest.fixture
async def url(settings: Settings, db: Database) -> AsyncIterator[str]:
    """The base URL of a gateway with access `none`."""
    async with serving(settings) as base:
        yield base


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with http_client(url) as client:
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
def frail(
    settings: Settings, own_valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """Settings with that Valkey in them; a gateway soon does without it."""
    monkeypatch.setattr("shared.follow._CONFIRM_SECONDS", 2.0)
    return type(settings)(REDIS_URL=own_valkey.url).model_copy(update={"poll_seconds": 0.3})


_PATIENT = f"""
import sys
from functools import partial
from pkgutil import resolve_name
import uvicorn
from api.__main__ import main
uvicorn.Config = partial(uvicorn.Config, ws_ping_interval=None)
for name in {BOUNDS}:
    module, _, bound = name.rpartition(".")
    setattr(resolve_name(module), bound, {PATIENCE})
sys.exit(main())
"""


@pytest.fixture
def start(settings: Settings, db: Database, tmp_path: Path) -> Iterator[Start]:
    """Start a gateway: `api`, `uvicorn`, or `patient`: as `api`, with the bounds of `patience`
    and no pings of the protocol's own."""
    started: list[Gateway] = []

    def begin(how: str = "api", **env: str) -> Gateway:
        port = promised_port()
        commands = {
            "api": [sys.executable, "-m", "api"],
            "patient": [sys.executable, "-c", _PATIENT],
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
