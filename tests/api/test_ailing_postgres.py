"""The gateway before a Postgres that ails: 503 while it lasts, nothing lost, and back by itself."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, suppress
from typing import Any

import httpx
import psycopg
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from deploy.local.postgres import NOT_DURABLE, EmbeddedPostgres
from shared.migrate import migrate
from shared.settings import Settings
from shared.store import catalog
from shared.store.database import Database
from tests.ailing import frozen, full_disk, read_only
from tests.api.clients import Client
from tests.api.conftest import CATALOG, serving
from tests.clients import http_client
from tests.waiting import until


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    with capture_logs() as entries:
        yield entries


def not_available(answer: httpx.Response) -> bool:
    if answer.status_code != 503:
        return False
    assert answer.json()["code"] == "unavailable"
    return True


async def refused(client: Client, session: str, task: str, key: str) -> None:
    """Whatever writes is refused as `unavailable`."""
    http = client.http
    say = {"type": "say", "text": "Hello"}
    answers = await asyncio.gather(
        http.post("/v1/sessions", json={"agent": "companion", "key": key}),
        http.post(f"/v1/sessions/{session}/actions", json=say, headers={"Idempotency-Key": key}),
        http.post(f"/v1/sessions/{session}/cancel", json={"client_action_id": key}),
        http.post(f"/v1/tasks/{task}/cancel"),
    )
    assert [one.url.path for one in answers if not not_available(one)] == []
    assert {one.headers["retry-after"] for one in answers} == {"1"}


async def accepted(client: Client, session: str, key: str) -> None:
    """The same requests once more; each takes effect once."""
    http = client.http
    made = await http.post("/v1/sessions", json={"agent": "companion", "key": key})
    assert made.status_code in {200, 201}, made.text
    say = {"type": "say", "text": "Hello"}
    headers = {"Idempotency-Key": key}
    path = f"/v1/sessions/{session}/actions"
    first = await http.post(path, json=say, headers=headers)
    again = await http.post(path, json=say, headers=headers)
    # An answer that was lost may have been a yes.
    assert (first.status_code, again.status_code) in {(202, 200), (200, 200)}, first.text
    assert first.json()["task_id"] == again.json()["task_id"]
    queued = [e for e in await client.log(session) if e["type"] == "task_queued"]
    assert len(queued) == 2
    await ready(client, 200)


async def ready(client: Client, status: int) -> httpx.Response:
    """What readiness says once it says so."""
    answers: list[httpx.Response] = []

    async def says_so() -> bool:
        answers.append(await client.http.get("/readyz"))
        return answers[-1].status_code == status

    await until(says_so)
    return answers[-1]


async def test_a_read_only_postgres(
    client: Client, postgres_server: EmbeddedPostgres, logs: list[Any]
) -> None:
    session = await client.session()
    key = uuid.uuid4().hex
    with read_only(postgres_server):
        answer = await ready(client, 503)
        assert answer.json()["checks"] == {
            "postgres": "unavailable",
            "redis": "ok",
            "background": "ok",
        }
        await refused(client, session["id"], session["task_id"], key)
        # Whoever only reads is served.
        assert (await client.http.get(f"/v1/sessions/{session['id']}")).status_code == 200
        assert [e["seq"] for e in await client.log(session["id"])] == [1]
    await ready(client, 200)

    await accepted(client, session["id"], key)
    told = {entry["error"] for entry in logs if entry["event"] == "not available"}
    assert told
    assert all("read-only" in one for one in told)


async def test_a_full_disk(client: Client, settings: Settings, logs: list[Any]) -> None:
    session = await client.session()
    key = uuid.uuid4().hex
    with full_disk(settings.database_url.get_secret_value()):
        await refused(client, session["id"], session["task_id"], key)

    assert [e["seq"] for e in await client.log(session["id"])] == [1]
    await accepted(client, session["id"], key)
    assert any("No space left" in str(entry.get("error")) for entry in logs)


async def test_a_postgres_that_stands_still_for_a_moment(
    client: Client, postgres_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Far less than a request waits for an answer, which so is not here yet.
    monkeypatch.setattr("api.health._CHECK_SECONDS", 0.5)
    session = await client.session()
    with frozen(postgres_server):
        acting = asyncio.create_task(client.act(session["id"], client_action_id="a"))
        answer = await client.http.get("/readyz")
        assert not_available(answer)
        assert answer.json()["checks"]["postgres"] == "no answer in time"
        assert not acting.done()

    assert (await acting)["status"] == "queued"
    await ready(client, 200)


async def test_a_postgres_that_stands_still_for_long(
    client: Client, postgres_server: EmbeddedPostgres, logs: list[Any]
) -> None:
    session = await client.session()
    key = uuid.uuid4().hex
    began = asyncio.get_running_loop().time()
    with frozen(postgres_server):
        await refused(client, session["id"], session["task_id"], key)
        took = asyncio.get_running_loop().time() - began
    await ready(client, 200)

    assert took < 30
    assert any("no answer in 12 s" in str(entry.get("error")) for entry in logs)
    await accepted(client, session["id"], key)


class _Crowd(AbstractContextManager["_Crowd"]):
    """Strangers that hold every connection that a server has, those of our own included."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._held: list[psycopg.Connection[Any]] = []

    def __enter__(self) -> "_Crowd":
        self._hold_what_is_left()
        self._end("application_name = 'fireside'")
        self._hold_what_is_left()
        return self

    def _end(self, whose: str) -> None:
        """End connections; returns once they no longer count."""
        self._held[0].execute(
            "select pg_terminate_backend(pid, 30000) from pg_stat_activity"
            f" where backend_type = 'client backend' and pid <> pg_backend_pid() and {whose}"
        )

    def _hold_what_is_left(self) -> None:
        with suppress(psycopg.OperationalError):
            while True:
                self._held.append(psycopg.connect(self._url, autocommit=True))

    def __exit__(self, *_: object) -> None:
        self._end("application_name <> 'fireside'")
        for one in self._held:
            one.close()


@pytest.fixture(scope="module")
def small_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server with few connections."""
    folder = tmp_path_factory.mktemp("small") / "postgres"
    few = {"max_connections": "12", "max_wal_senders": "0", "superuser_reserved_connections": "0"}
    with EmbeddedPostgres(folder, settings={**NOT_DURABLE, **few}) as server:
        migrate(server.url)
        yield server


@pytest.fixture
async def crowded(settings: Settings, small_postgres: EmbeddedPostgres) -> AsyncIterator[Client]:
    """A client of a gateway on that server, which has no connection yet but one."""
    url = SecretStr(small_postgres.url)
    changed = settings.model_copy(update={"database_url": url, "sweep_seconds": 60.0})
    db = Database.from_settings(changed)
    await catalog.announce(db, CATALOG)
    await db.close()
    async with serving(changed) as base, http_client(base) as http:
        yield Client(http, base)


async def test_a_postgres_without_connections(
    crowded: Client, small_postgres: EmbeddedPostgres, logs: list[Any]
) -> None:
    with _Crowd(small_postgres.url):
        answers = await asyncio.gather(
            *(crowded.http.post("/v1/sessions", json={"agent": "companion"}) for _ in range(10))
        )
    refusals = [one for one in answers if not_available(one)]
    made = await crowded.session()

    assert refusals
    assert all(one.status_code in {201, 503} for one in answers)
    assert any("too many clients" in str(entry.get("error")) for entry in logs)
    await accepted(crowded, made["id"], uuid.uuid4().hex)
