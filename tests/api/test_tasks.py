"""Tasks, and waiting for their end."""

import asyncio
from time import monotonic
from uuid import UUID, uuid4

from sqlalchemy import text

from api.gateway import Gateway
from api.tasks import wait_for_end
from shared.records import NewEvent
from shared.settings import Settings
from shared.store.database import Database
from tests.api.clients import Client
from tests.api.conftest import COMPARING
from tests.api.worker import FakeWorker
from tests.shared.sessions import ME, new_session


async def test_a_task_tells_all_it_gave(client: Client, worker: FakeWorker) -> None:
    session = await client.session()
    await worker.answer(session["id"], "Welcome!")
    task = (await client.http.get(f"/v1/tasks/{session['task_id']}")).json()

    times = [task.pop(name) for name in ("created_at", "started_at", "finished_at")]
    assert task == {
        "task_id": session["task_id"],
        "session_id": session["id"],
        "status": "completed",
        "result": {
            "text": "Welcome!",
            "messages": [1],
            "decision": None,
            "state": {},
            "choices": [],
        },
        "error": None,
        "usage": None,
    }
    assert times == sorted(times)


async def test_a_failed_task_tells_why(client: Client, worker: FakeWorker) -> None:
    session = await client.session()
    claim = await worker.start(session["id"])
    await worker.end(claim, "failed", error={"code": "model_failed", "message": "No answer"})
    task = (await client.http.get(f"/v1/tasks/{session['task_id']}")).json()

    assert (task["status"], task["result"]) == ("failed", None)
    assert task["error"] == {"code": "model_failed", "message": "No answer"}


async def test_a_long_poll_ends_with_its_task(client: Client, worker: FakeWorker) -> None:
    session = await client.session()
    began = monotonic()
    waiting = [
        asyncio.create_task(client.http.get(f"/v1/tasks/{session['task_id']}?wait=30"))
        for _ in range(3)
    ]
    claim = await worker.start(session["id"])
    await worker.write(claim, NewEvent("agent_start", {}))
    await worker.end(claim)
    answers = [(await one).json() for one in waiting]
    known = await client.http.get(f"/v1/tasks/{session['task_id']}?wait=30")

    assert [answer["status"] for answer in answers] == ["completed"] * 3
    assert known.json() == answers[0]
    assert monotonic() - began < 20


@COMPARING
async def test_a_long_poll_sees_an_end_that_was_not_published(
    client: Client, worker: FakeWorker
) -> None:
    session = await client.session()
    waiting = asyncio.create_task(client.http.get(f"/v1/tasks/{session['task_id']}?wait=30"))
    claim = await worker.start(session["id"])
    await worker.end(claim, publish=False)

    assert (await waiting).json()["status"] == "completed"


async def test_a_long_poll_gives_up_after_its_time(client: Client, worker: FakeWorker) -> None:
    session = await client.session()
    await client.act(session["id"])
    claim = await worker.start(session["id"])
    began = monotonic()
    waiting = asyncio.create_task(client.http.get(f"/v1/tasks/{session['task_id']}?wait=0.6"))
    await worker.write(claim, NewEvent("agent_start", {}))
    answer = (await waiting).json()

    assert answer["status"] == "running"
    assert 0.5 < monotonic() - began < 20


async def test_a_long_poll_has_bounds(client: Client) -> None:
    session = await client.session()
    for wait in ("-1", "31", "x", "nan", "inf", ""):
        response = await client.http.get(f"/v1/tasks/{session['task_id']}?wait={wait}")
        assert response.status_code == 422, wait
    unknown = await client.http.get(f"/v1/tasks/{uuid4()}?wait=5")

    assert unknown.status_code == 404


async def test_a_long_poll_whose_time_is_up_costs_no_connection(
    settings: Settings, db: Database
) -> None:
    session = await new_session(db)
    gateway = Gateway.from_settings(settings.model_copy(update={"database_pool": 1}))
    process = text("select pg_backend_pid()")
    async with gateway.running(), gateway.follower.follow(session):
        task = await opening_task(db, session)
        before = await gateway.db.row(process)
        for thousandth in range(1, 40):
            seconds = thousandth / 10_000
            assert (await wait_for_end(gateway, ME, task, seconds)).status == "queued"
        assert await gateway.db.row(process) == before


async def opening_task(db: Database, session: UUID) -> UUID:
    row = await db.row(text("select id from tasks where session_id = :id"), {"id": session})
    assert row is not None
    return UUID(str(row.id))


async def test_a_long_poll_ends_in_time_however_much_is_told(
    client: Client, worker: FakeWorker
) -> None:
    session = await client.session()
    claim = await worker.start(session["id"])
    path = f"/v1/tasks/{session['task_id']}"
    waiting = asyncio.create_task(client.http.get(path, params={"wait": 0.5}))
    while not waiting.done():
        await worker.write(claim, NewEvent("agent_start", {}))
    assert (await waiting).json()["status"] == "running"
