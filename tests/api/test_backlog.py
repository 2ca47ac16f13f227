"""What clients are told when there is too much, and what becomes of priorities."""

import asyncio
import contextlib
import socket as sockets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from structlog.testing import capture_logs

from api.backlog import Backlog
from shared.ending import end_all
from shared.errors import TooManyTasks
from shared.levels import BACKGROUND, FIRST, LEVELS, key_of
from shared.pace import Pace
from shared.records import CatalogEntry
from shared.redis_pool import connect_redis
from shared.settings import Settings
from shared.store import api_keys, catalog, sessions
from shared.store.database import Database
from tests.api.clients import Client
from tests.api.conftest import serving
from tests.api.worker import FakeWorker
from tests.clients import http_client
from tests.shared.sessions import new_session
from tests.shared.tables import dump
from tests.waiting import PATIENCE, until

SAY = {"type": "say", "text": "Hello"}


@asynccontextmanager
async def serving_users(
    settings: Settings, db: Database, *names: str, **changed: object
) -> AsyncIterator[list[Client]]:
    """Clients of a gateway with access control, one per user."""
    guarded = settings.model_copy(update={"auth": "required", **changed})
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serving(guarded))
        clients = []
        for name in names:
            _, key = await api_keys.create(db, name)
            headers = {"Authorization": f"Bearer {key}"}
            http = http_client(url, headers=headers)
            clients.append(Client(await stack.enter_async_context(http), url))
        yield clients


async def refused(response: httpx.Response, position: int) -> None:
    """Check a refusal's body and header."""
    body = response.json()
    assert (response.status_code, body["code"], body["position"]) == (
        429,
        "too_many_tasks",
        position,
    )
    assert 1 <= body["retry_after"] <= 60
    assert response.headers["retry-after"] == str(body["retry_after"])
    assert response.headers["content-type"] == "application/problem+json"


async def test_a_user_with_too_many_open_tasks_is_refused_everywhere(
    settings: Settings, db: Database, worker: FakeWorker
) -> None:
    async with serving_users(settings, db, "ann", "bob", max_queued_per_user=2) as (ann, bob):
        session = await ann.session(key="home")
        path = f"/v1/sessions/{session['id']}/actions"
        once = {"Idempotency-Key": "once"}
        accepted = await ann.http.post(path, json=SAY, headers=once)
        before = await dump(db)

        await refused(await ann.http.post(path, json=SAY), 2)
        await refused(await ann.http.post("/v1/sessions", json={"agent": "story"}), 2)
        for name in ("home", "new"):
            body = {"session_id": name, "user_input": "Hello"}
            await refused(await ann.http.post("/api/story/action", json=body), 2)
        again = await ann.http.post(path, json=SAY, headers=once)
        known = await ann.http.post("/v1/sessions", json={"agent": "companion", "key": "home"})
        assert await dump(db) == before

        assert (again.status_code, again.json()) == (200, accepted.json())
        assert (known.status_code, known.json()["task_id"]) == (200, session["task_id"])
        await bob.session()
        await worker.answer(session["id"])
        assert (await ann.http.post(path, json=SAY)).status_code == 202


async def test_a_socket_is_told_the_same(settings: Settings, db: Database) -> None:
    async with serving_users(settings, db, "ann", max_queued_per_user=1) as (ann,):
        session = await ann.session()
        ticket = (await ann.http.post("/v1/ws-tickets")).json()["ticket"]
        async with ann.socket(session["id"]) as socket:
            await socket.send({"type": "auth", "ticket": ticket})
            await socket.send({"type": "action", "id": "one", "action": SAY})
            (*_, frame) = await socket.until("error")

    assert frame["id"] == "one"
    assert frame["error"] == {
        "code": "too_many_tasks",
        "message": "1 tasks of yours are running or waiting already.",
        "position": 1,
        "retry_after": frame["error"]["retry_after"],
    }


async def test_when_all_have_too_many_everyone_is_refused_but_what_is_known(
    settings: Settings, db: Database
) -> None:
    async with serving_users(settings, db, "ann", "bob", max_queued=2) as (ann, bob):
        session = await ann.session(key="home")
        first = await ann.act(session["id"], client_action_id="once")

        await refused(await bob.http.post("/v1/sessions", json={"agent": "companion"}), 2)
        assert await ann.act(session["id"], client_action_id="once") == first
        assert (await ann.session(key="home"))["task_id"] == session["task_id"]


async def test_what_was_open_before_counts_from_the_start(settings: Settings, db: Database) -> None:
    for user in ("a", "b", "c"):
        await new_session(db, user)
    backlog, redis = Backlog(3, 10), connect_redis(settings)
    assert backlog.most == 10
    await backlog.refresh(db, redis)
    await redis.aclose()

    assert (backlog.open, backlog.most) == (3, 0)
    assert backlog.problem(TooManyTasks(0)).extra["position"] == 3


async def test_without_access_control_all_is_one_users(client: Client, settings: Settings) -> None:
    async with serving(settings.model_copy(update={"max_queued_per_user": 1})) as url:
        other = Client(client.http, url)
        session = await other.session()
        assert (await other.act(session["id"]))["position"] == 1


@pytest.mark.parametrize(
    ("ended", "position", "low", "high"),
    [(0, 3, 60, 60), (300, 3, 1, 1), (4, 3, 7, 10), (4, 1, 22, 30), (1, 1, 60, 60)],
)
async def test_who_is_refused_is_told_when_a_task_of_theirs_may_end(
    settings: Settings, db: Database, ended: int, position: int, low: int, high: int
) -> None:
    for user in ("a", "b", "c"):
        await new_session(db, user)
    redis = connect_redis(settings)
    pace = Pace(redis)
    for _ in range(ended):
        pace.ended()
    await pace.tell()
    backlog = Backlog(100, 10)
    await backlog.refresh(db, redis)
    await redis.aclose()

    assert low <= backlog.problem(TooManyTasks(position)).extra["retry_after"] <= high


async def test_without_redis_a_guess_is_told(db: Database) -> None:
    backlog = Backlog(100, 10)
    with sockets.socket() as held:  # and nobody listens
        held.bind(("127.0.0.1", 0))
        away = Redis(host="127.0.0.1", port=held.getsockname()[1])
        await backlog.refresh(db, away)
        await away.aclose()

    assert backlog.problem(TooManyTasks(1)).extra["retry_after"] == 5


@asynccontextmanager
async def refreshed(backlog: Backlog, db: Database, redis: Redis) -> AsyncIterator[None]:
    """A backlog that counts as often as it may."""
    counting = asyncio.create_task(backlog.refresh_for_ever(db, redis, every=0.05))
    try:
        yield
    finally:
        await end_all([counting])
        with contextlib.suppress(OSError):
            await redis.aclose()


async def test_a_redis_that_stands_still_keeps_nobody_out(
    db: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.pace._ASK_SECONDS", 0.2)
    ids = [await new_session(db, user) for user in ("a", "b", "c")]
    backlog = Backlog(3, 10)
    with sockets.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        redis = connect_redis(settings.model_copy(update={"redis_url": SecretStr(url)}))
        async with refreshed(backlog, db, redis):
            await until(lambda: backlog.most == 0)
            for user, one in zip(("a", "b", "c"), ids, strict=True):
                await sessions.delete(db, user, one)
            await until(lambda: backlog.most == 10)


async def test_after_a_count_that_failed_comes_the_next_one_soon(
    db: Database, settings: Settings
) -> None:
    for user in ("a", "b", "c"):
        await new_session(db, user)
    backlog = Backlog(3, 10)
    narrow = settings.model_copy(update={"database_pool": 1})
    small = Database.from_settings(narrow, wait_seconds=2)
    async with refreshed(backlog, small, connect_redis(settings)):
        with capture_logs() as logs:
            async with small.raw():
                await until(lambda: any(one["event"] == "open tasks not counted" for one in logs))
        await until(lambda: backlog.most == 0)
    await small.close()


# -- priorities ---------------------------------------------------------------------------------


async def test_a_session_is_of_the_priority_that_it_asks_for_or_its_agent_says(
    client: Client, db: Database
) -> None:
    await catalog.announce(
        db, [CatalogEntry("agent", "digest", "Digest", details={"priority": "background"})]
    )
    made: list[dict[str, Any]] = [
        await client.session(),
        await client.session(priority="background"),
        await client.session(agent="digest"),
        await client.session(agent="digest", priority="interactive"),
    ]
    shown = [(await client.http.get(f"/v1/sessions/{one['id']}")).json() for one in made]

    wanted = ["interactive", "background", "background", "interactive"]
    assert [one["priority"] for one in made] == [one["priority"] for one in shown] == wanted


@pytest.mark.parametrize("priority", ["urgent", "", 0, 1, True, []])
async def test_another_priority_is_refused(client: Client, priority: object) -> None:
    body = {"agent": "companion", "priority": priority}
    response = await client.http.post("/v1/sessions", json=body)

    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")


async def test_hints_wait_on_the_level_of_their_session(client: Client, settings: Settings) -> None:
    await client.session(priority="background")
    for _ in range(3):
        await client.session()
    redis = Redis.from_url(settings.redis_url.get_secret_value(), socket_timeout=None)
    for level in (FIRST, 1, 2, BACKGROUND):
        assert await redis.brpop([key_of(settings.queue, level)], timeout=int(PATIENCE)) is not None
    keys = [key_of(settings.queue, level) for level in range(LEVELS)]
    assert await redis.exists(*keys) == 0
    await redis.aclose()
