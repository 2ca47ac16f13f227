"""Health, readiness, metrics, the pages, and what every answer carries."""

import asyncio
import re
import socket
from datetime import UTC, datetime
from uuid import uuid4

import httpx
import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import text
from structlog.testing import capture_logs

from api.announcer import Announcer
from deploy.local.errors import StartFailedError
from deploy.local.valkey import EmbeddedValkey
from shared.ending import end_all
from shared.events import Publisher
from shared.queue import Hints
from shared.records import Event
from shared.redis_pool import connect_redis
from shared.settings import Settings
from shared.store.database import Database
from tests.api.clients import Client
from tests.api.conftest import serving
from tests.api.processes import Start
from tests.ports import promised_port
from tests.waiting import until


async def test_a_gateway_that_can_serve_says_so(client: Client) -> None:
    assert (await client.http.get("/healthz")).json() == {"status": "ok"}
    assert (await client.http.get("/readyz")).json() == {
        "status": "ok",
        "checks": {"postgres": "ok", "redis": "ok", "background": "ok"},
    }


async def test_an_old_schema_is_not_ready(client: Client, db: Database) -> None:
    await db.run(text("update alembic_version set version_num = '0000'"))
    response = await client.http.get("/readyz")

    assert response.status_code == 503
    assert response.json()["code"] == "unavailable"
    assert response.json()["checks"]["postgres"] == "schema out of date"


async def test_what_keeps_it_from_being_ready_is_told_once_and_its_end(
    client: Client, db: Database
) -> None:
    async def ask() -> int:
        return (await client.http.get("/readyz")).status_code

    with capture_logs() as logs:
        await db.run(text("update alembic_version set version_num = '0000'"))
        unfit = [await ask() for _ in range(3)]
        await db.run(text("update alembic_version set version_num = '9999'"))
        fit = [await ask() for _ in range(2)]

    kind = "not ready: postgres"
    told = [one["event"] for one in logs if kind in (one["event"], one.get("after"))]
    assert (unfit, fit) == ([503] * 3, [200] * 2)
    assert told == [kind, "works again"]


async def test_what_runs_beside_is_begun_again_where_the_schema_comes_later(
    client: Client, db: Database
) -> None:
    async def background() -> str:
        return str((await client.http.get("/readyz")).json()["checks"]["background"])

    async def is_told() -> bool:
        return await background() == "ended: budgets"

    async def is_over() -> bool:
        return await background() == "ok"

    with capture_logs() as logs:
        await db.run(text("alter table budgets rename to not_yet"))
        await until(is_told)
        await db.run(text("alter table not_yet rename to budgets"))
        await until(is_over)

    told = {one["task"] for one in logs if one["event"] == "background task ended"}
    assert told == {"budgets"}


async def test_what_waited_behind_an_announcement_that_failed_is_sent(
    settings: Settings, db: Database
) -> None:
    redis = connect_redis(settings)
    announcer = Announcer(Hints(settings, redis), Publisher(redis))
    now = datetime.now(UTC)
    announcer.tell(uuid4(), [Event(1, "task_queued", None, now, {"action": object()})])
    for _ in range(300):
        announcer.tell(uuid4(), hint=True)
    with pytest.raises(TypeError):
        await announcer.send_for_ever()
    assert announcer.waiting

    again = asyncio.create_task(announcer.send_for_ever())
    await until(lambda: not announcer.waiting)
    await end_all([again])
    await redis.aclose()


async def test_announcements_that_are_dropped_are_told_once(settings: Settings) -> None:
    nowhere = {"redis_url": SecretStr(f"redis://127.0.0.1:{promised_port()}/0")}
    redis = connect_redis(settings.model_copy(update=nowhere))
    announcer = Announcer(Hints(settings, redis), Publisher(redis))
    with capture_logs() as logs:
        for _ in range(3):
            announcer.tell(uuid4(), joins=True)
            await announcer.send_the_rest(10)
    await redis.aclose()

    assert announcer.waiting == 0
    assert [one["event"] for one in logs] == ["announcements dropped"]


async def test_a_newer_schema_is_served(client: Client, db: Database) -> None:
    await db.run(text("update alembic_version set version_num = '9999'"))

    assert (await client.http.get("/readyz")).status_code == 200


async def test_a_newer_schema_is_told_at_the_start(settings: Settings, db: Database) -> None:
    await db.run(text("update alembic_version set version_num = '9999'"))
    with capture_logs() as logs:
        async with serving(settings):
            pass

    told = [one for one in logs if one["event"] == "the schema is newer than this release"]
    assert [(one["schema"], one["log_level"]) for one in told] == [("9999", "warning")]


async def test_while_the_database_is_brought_in_line_nothing_is_served(
    settings: Settings, db: Database, client: Client
) -> None:
    session = await client.session()
    url = settings.database_url.get_secret_value()
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute("select 1 from sessions for update")  # it can't be lifted
        await db.run(text("update lineage set lifting = true, generation = generation + 1"))
        answers: list[httpx.Response] = []

        async def is_refused() -> bool:
            answers.append(await client.http.get("/v1/sessions"))
            return answers[-1].status_code != 200

        await until(is_refused)
        ready = await client.http.get("/readyz")
        async with client.socket(session["id"]) as socket:
            code = await socket.closed()

    async def is_ready() -> bool:
        return (await client.http.get("/readyz")).status_code == 200

    await until(is_ready)

    assert (answers[-1].status_code, answers[-1].json()["code"]) == (503, "unavailable")
    assert (ready.status_code, ready.json()["checks"]["postgres"]) == (503, "not in line")
    assert code == 1012
    assert (await client.http.get("/v1/sessions")).status_code == 200


async def test_without_redis_it_is_not_ready_but_lives(
    frail: Settings, own_valkey: EmbeddedValkey, client: Client
) -> None:
    async with serving(frail) as url:
        own_valkey.kill()
        ready = await client.http.get(f"{url}/readyz")
        alive = await client.http.get(f"{url}/healthz")
        ticket = await client.http.post(f"{url}/v1/ws-tickets")
        own_valkey.start()

    assert (ready.status_code, ready.json()["checks"]["redis"]) == (503, "unavailable")
    assert alive.status_code == 200
    assert (ticket.status_code, ticket.json()["code"]) == (503, "unavailable")
    assert ticket.headers["retry-after"] == "1"


async def test_without_redis_a_gateway_may_be_given_requests_all_the_same(
    frail: Settings, own_valkey: EmbeddedValkey, client: Client
) -> None:
    session = await client.session()
    async with serving(frail) as url:
        before = await client.http.get(f"{url}/readyz?for=traffic")
        own_valkey.kill()
        gone = await client.http.get(f"{url}/readyz")
        ready = await client.http.get(f"{url}/readyz?for=traffic")
        accepted = await Client(client.http, url).act(session["id"])
        own_valkey.start()

    assert (before.status_code, gone.status_code) == (200, 503)
    assert (ready.status_code, ready.json()) == (
        200,
        {"status": "ok", "checks": {"postgres": "ok", "background": "ok"}},
    )
    assert accepted["status"] == "queued"


async def test_what_keeps_a_gateway_from_accepting_keeps_requests_from_it(
    settings: Settings, client: Client, db: Database
) -> None:
    away = type(settings)(DATABASE_URL="postgresql://nobody:secret@127.0.0.1:1/none")
    async with serving(away) as url:
        without = await client.http.get(f"{url}/readyz?for=traffic")
    await db.run(text("update alembic_version set version_num = '0000'"))
    old = await client.http.get("/readyz?for=traffic")

    for response, shown in ((without, "unavailable"), (old, "schema out of date")):
        assert (response.status_code, response.json()["code"]) == (503, "unavailable")
        assert response.json()["checks"] == {"postgres": shown, "background": "ok"}


async def test_ready_for_something_unknown_is_an_error(client: Client) -> None:
    for asked in ("for=tea", "for="):
        response = await client.http.get(f"/readyz?{asked}")
        assert (response.status_code, response.json()["code"]) == (422, "invalid_request"), asked
        assert [one["field"] for one in response.json()["errors"]] == ["for"]


async def test_without_postgres_every_route_says_so(settings: Settings, client: Client) -> None:
    away = type(settings)(DATABASE_URL="postgresql://nobody:secret@127.0.0.1:1/none")
    async with serving(away) as url:
        answers = [
            await client.http.get(f"{url}/readyz"),
            await client.http.get(f"{url}/v1/sessions"),
            await client.http.post(f"{url}/v1/sessions", json={"agent": "companion"}),
        ]
        session = "00000000-0000-0000-0000-000000000000"
        async with Client(client.http, url).socket(session) as socket:
            code = await socket.closed()

    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert "secret" not in answer.text
    assert code == 1012


async def test_metrics_name_routes_not_paths(client: Client) -> None:
    session = await client.session()
    await client.act(session["id"], client_action_id="a")
    await client.act(session["id"], client_action_id="a")
    await client.http.get("/nothing/here")
    async with client.socket(session["id"], after=0) as socket:
        await socket.receive()
        page = (await client.http.get("/metrics")).text

    assert (
        'fireside_http_requests_total{method="POST",'
        'route="/v1/sessions/{session_id}/actions",status="202"} 1.0' in page
    )
    assert 'route="none",status="404"' in page
    assert 'fireside_actions_accepted_total{fresh="true",type="say"} 1.0' in page
    assert 'fireside_actions_accepted_total{fresh="false",type="say"} 1.0' in page
    assert "fireside_streams_open 1.0" in page
    assert session["id"] not in page


async def test_metrics_tell_of_dead_tasks_and_of_the_quarantine(
    client: Client, db: Database, settings: Settings
) -> None:
    for _ in range(3):
        await client.session()
    await db.run(text("update sessions set quarantined = true"))
    await db.run(
        text("update tasks set status = 'dead' where id = (select min(id::text)::uuid from tasks)")
    )
    await db.run(text("update tasks set created_at = created_at - interval '10 minutes'"))
    page = (await client.http.get("/metrics")).text
    away = type(settings)(DATABASE_URL="postgresql://nobody:secret@127.0.0.1:1/none")
    async with serving(away) as url:
        without = (await client.http.get(f"{url}/metrics")).text

    assert "fireside_tasks_dead 1.0" in page
    assert "fireside_tasks_waiting 2.0" in page
    (oldest,) = re.findall(r"^fireside_tasks_waiting_oldest_seconds (\S+)$", page, re.MULTILINE)
    assert float(oldest) >= 600
    assert "fireside_tasks_waiting NaN" in without
    assert "fireside_sessions_quarantined 3.0" in page
    assert "fireside_tasks_dead NaN" in without


async def test_metrics_have_an_address_of_their_own(
    settings: Settings, client: Client, db: Database
) -> None:
    await client.session()
    await db.run(text("update sessions set quarantined = true"))
    where = f"127.0.0.1:{promised_port()}"
    async with serving(settings.model_copy(update={"gateway_metrics": where})) as url:
        await client.http.get(f"{url}/healthz")
        page = await client.http.get(f"http://{where}/metrics", headers={"Host": "web-1:9464"})
    with pytest.raises(httpx.ConnectError):
        await client.http.get(f"http://{where}/metrics")

    assert page.status_code == 200
    assert (
        'fireside_http_requests_total{method="GET",route="/healthz",status="200"} 1.0' in page.text
    )
    assert "fireside_sessions_quarantined 1.0" in page.text
    assert "process_resident_memory_bytes " in page.text


@pytest.mark.parametrize("how", ["api", "uvicorn"])
def test_a_gateway_that_can_not_show_its_metrics_there_does_not_start(
    start: Start, how: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(StartFailedError) as failed:
            start(how, FIRESIDE_GATEWAY_METRICS=where)

    assert failed.value.log is not None
    assert "FIRESIDE_GATEWAY_METRICS: " in failed.value.log.read_text()


async def test_every_answer_has_safe_headers(client: Client) -> None:
    for path in ("/healthz", "/v1/sessions", "/nothing", "/docs", "/metrics"):
        headers = (await client.http.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff", path
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert (await client.http.get("/v1/sessions")).headers["cache-control"] == "no-store"


async def test_the_docs_allow_only_their_own_script(client: Client) -> None:
    response = await client.http.get("/docs")
    policy = response.headers["content-security-policy"]

    assert response.text.count("<script>") == policy.count("'sha256-") == 1
    assert "unsafe-inline" not in re.sub(r"style-src[^;]*", "", policy)


async def test_a_method_that_is_not_there_is_told_which_are(client: Client) -> None:
    session = (await client.session())["id"]
    told = [
        (await client.http.request(method, path)).headers["allow"]
        for method, path in (
            ("PUT", "/v1/sessions"),
            ("PUT", f"/v1/sessions/{session}"),
            ("PUT", "/v1/ws-tickets"),
            ("POST", "/healthz"),
        )
    ]

    assert told == ["GET, POST", "DELETE, GET", "POST", "GET, HEAD"]


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz"])
async def test_heads_of_what_is_looked_at_from_outside(client: Client, path: str) -> None:
    head, whole = await client.http.head(path), await client.http.get(path)

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == whole.headers["content-length"]


async def test_what_is_not_there_is_a_problem(client: Client) -> None:
    for method, path, status, code in (
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/nothing", 404, "not_found"),
        ("POST", "/v1/sessions/", 404, "not_found"),
        ("GET", "/static/../api/app.py", 404, "not_found"),
        ("GET", "/static/%2e%2e/app.py", 404, "not_found"),
        ("PUT", "/v1/sessions", 405, "method_not_allowed"),
        ("DELETE", "/v1/ws-tickets", 405, "method_not_allowed"),
        ("GET", "/ws/sessions/x", 404, "not_found"),
    ):
        response = await client.http.request(method, path)
        assert (response.status_code, response.json()["code"]) == (status, code), path
        assert response.headers["content-type"] == "application/problem+json"
        assert set(response.json()) >= {"type", "title", "status", "detail"}
