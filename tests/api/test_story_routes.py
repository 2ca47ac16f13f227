"""The story routes of the original design, over HTTP and WebSocket."""

from typing import Any
from uuid import UUID

from sqlalchemy import text

from shared.settings import Settings
from shared.store.database import Database
from tests.api.clients import Client
from tests.api.conftest import serving
from tests.api.worker import FakeWorker
from tests.clients import http_client

RESULT = {
    "text": "You go in.",
    "messages": [1],
    "decision": {"choice": "c1"},
    "state": {"scene": "cave"},
    "choices": [],
}
SHOWN = {
    "response": "You go in.",
    "decision": {"choice": "c1"},
    "updated_state": {"scene": "cave"},
}


async def tell(client: Client, name: str, user_input: str = "Go in") -> dict[str, Any]:
    response = await client.http.post(
        "/api/story/action", json={"session_id": name, "user_input": user_input}
    )
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    assert answer["status"] == "processing"
    return answer


async def status_of(client: Client, task_id: str) -> dict[str, Any]:
    response = await client.http.get(f"/api/story/status/{task_id}")
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def session_of(client: Client, task_id: str) -> str:
    return str((await client.http.get(f"/v1/tasks/{task_id}")).json()["session_id"])


async def test_an_unknown_name_makes_a_session_of_the_default_story(client: Client) -> None:
    first = await tell(client, "my-story_1")
    second = await tell(client, "my-story_1")
    session = (await client.http.get("/v1/sessions")).json()["sessions"]
    log = await client.log(session[0]["id"])

    assert len(session) == 1
    assert (session[0]["key"], session[0]["agent"], session[0]["story"]) == (
        "my-story_1",
        "story",
        "cave",
    )
    assert [event["data"]["action"] for event in log] == [
        {"type": "start"},
        {"type": "say", "text": "Go in"},
        {"type": "say", "text": "Go in"},
    ]
    assert [log[1]["task_id"], log[2]["task_id"]] == [first["task_id"], second["task_id"]]


async def test_a_session_goes_by_its_id_or_its_key(client: Client) -> None:
    session = await client.session(agent="story", story="sea", key="sea")
    tasks = [await tell(client, session["id"]), await tell(client, "sea")]

    assert {await session_of(client, task["task_id"]) for task in tasks} == {session["id"]}


async def test_an_id_of_nobody_is_a_name_like_any_other(client: Client) -> None:
    name = str(UUID(int=7))
    task = await tell(client, name)
    session = await session_of(client, task["task_id"])

    assert session != name
    assert (await client.http.get(f"/v1/sessions/{session}")).json()["key"] == name


async def test_the_default_story_is_a_setting(settings: Settings, db: Database) -> None:
    async with (
        serving(settings.model_copy(update={"default_story": "sea"})) as url,
        http_client(url) as http,
    ):
        await tell(Client(http, url), "mine")
        session = (await http.get("/v1/sessions")).json()["sessions"][0]

    assert session["story"] == "sea"


async def test_without_any_story_it_says_so(client: Client, db: Database) -> None:
    await db.run(text("delete from catalog"))
    response = await client.http.post(
        "/api/story/action", json={"session_id": "mine", "user_input": "Go in"}
    )

    assert (response.status_code, response.json()["code"]) == (503, "unavailable")


async def test_each_status_of_a_task(client: Client, worker: FakeWorker, db: Database) -> None:
    session = await client.session(agent="story", key="mine")
    seen = [await status_of(client, session["task_id"])]
    claim = await worker.start(session["id"])
    seen.append(await status_of(client, session["task_id"]))
    await db.run(text("update sessions set lease_until = clock_timestamp()"))
    seen.append(await status_of(client, session["task_id"]))
    claim = await worker.start(session["id"])
    seen.append(await status_of(client, session["task_id"]))
    await worker.end(claim, result=RESULT)
    seen.append(await status_of(client, session["task_id"]))
    for end in ("failed", "dead", "cancelled"):
        task = await tell(client, "mine")
        await worker.end(await worker.start(session["id"]), end)
        seen.append(await status_of(client, task["task_id"]))

    assert [(one["status"], one["result"]) for one in seen] == [
        ("PENDING", None),
        ("STARTED", None),
        ("RETRY", None),
        ("STARTED", None),
        ("SUCCESS", SHOWN),
        ("FAILURE", None),
        ("FAILURE", None),
        ("REVOKED", None),
    ]


async def test_the_socket_has_the_result_under_both_names(
    client: Client, worker: FakeWorker
) -> None:
    session = await client.session(agent="story", key="mine")
    async with (
        client.socket("mine", after=0, path="/ws/story/") as by_key,
        client.socket(session["id"], after=0, path="/ws/story/") as by_id,
        client.socket(session["id"], after=0) as plain,
    ):
        claim = await worker.start(session["id"])
        await worker.end(claim, result=RESULT)
        ends = [(await one.until_end())[-1] for one in (by_key, by_id, plain)]

    assert ends[0] == ends[1]
    assert ends[0]["data"]["result"] == RESULT | SHOWN
    assert ends[2]["data"]["result"] == RESULT
    assert ends[0] | {"data": None} == ends[2] | {"data": None}


async def test_the_socket_of_an_unknown_name_closes_with_4404(client: Client) -> None:
    for name in ("unknown", "a.b", str(UUID(int=7)), "x" * 5000, "%00", "mine%0A"):
        async with client.socket(name, path="/ws/story/") as socket:
            assert await socket.closed() == 4404, name


async def test_the_same_key_of_a_request_is_the_same_task(client: Client) -> None:
    body = {"session_id": "mine", "user_input": "Go in"}
    key = {"Idempotency-Key": "once"}
    answers = [await client.http.post("/api/story/action", json=body, headers=key) for _ in "ab"]
    other = await client.http.post(
        "/api/story/action", json=body | {"user_input": "Go out"}, headers=key
    )

    assert answers[0].json() == answers[1].json()
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")


async def test_nonsense_is_refused(client: Client) -> None:
    good = {"session_id": "mine", "user_input": "Go in"}
    bodies: list[tuple[Any, int]] = [
        ({}, 422),
        ({"session_id": "mine"}, 422),
        ({"user_input": "Go in"}, 422),
        (good | {"session_id": ""}, 422),
        (good | {"session_id": "a b"}, 422),
        (good | {"session_id": "../x"}, 422),
        (good | {"session_id": "x" * 65}, 422),
        (good | {"session_id": "mine\n"}, 422),
        (good | {"session_id": 5}, 422),
        (good | {"user_input": ""}, 422),
        (good | {"user_input": "  "}, 422),
        (good | {"user_input": "\0"}, 422),
        (good | {"user_input": 5}, 422),
        (good | {"user_input": "x" * 16_001}, 413),
        ([], 422),
    ]
    for body, status in bodies:
        response = await client.http.post("/api/story/action", json=body)
        assert response.status_code == status, body
    for task in ("x", str(UUID(int=7)), "%00"):
        response = await client.http.get(f"/api/story/status/{task}")
        assert (response.status_code, response.json()["code"]) == (404, "not_found")
    assert (await client.http.get("/v1/sessions")).json()["sessions"] == []
