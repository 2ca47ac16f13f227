"""Accepting and cancelling actions over HTTP."""

import asyncio
import json
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from shared.levels import CHORE, LEVELS, key_of
from shared.settings import Settings
from shared.store.database import Database
from tests.api.clients import Client
from tests.api.conftest import serving
from tests.api.worker import FakeWorker
from tests.clients import http_client
from tests.shared.tables import dump
from tests.waiting import PATIENCE

JSON_CONTENT = {"Content-Type": "application/json"}


async def test_an_action_is_accepted_as_a_task(client: Client) -> None:
    session = await client.session()
    response = await client.http.post(
        f"/v1/sessions/{session['id']}/actions", json={"type": "say", "text": "Hello"}
    )
    accepted = response.json()
    task = (await client.http.get(response.headers["location"])).json()

    assert response.status_code == 202
    assert accepted == {
        "task_id": task["task_id"],
        "session_id": session["id"],
        "status": "queued",
        "seq": 2,
        "position": 1,
    }
    assert (task["status"], task["result"], task["started_at"]) == ("queued", None, None)


async def test_each_type_of_action_is_kept_as_it_is(client: Client) -> None:
    session = await client.session()
    actions = [
        {"type": "say", "text": "Hällo 🔥"},
        {"type": "say", "text": "x" * 16_000},
        {"type": "say", "text": "🔥" * 16_000},
        {"type": "choose", "choice_id": "Höhle.0.c-1"},
        {"type": "continue"},
        {"type": "continue", "on_busy": "interrupt"},
    ]
    path = f"/v1/sessions/{session['id']}/actions"
    accepted = [(await client.http.post(path, json=action)).json() for action in actions]
    log = (await client.log(session["id"]))[1:]

    assert [event["task_id"] for event in log] == [one["task_id"] for one in accepted]
    assert [event["data"]["action"] for event in log] == [
        {name: value for name, value in action.items() if name != "on_busy"} for action in actions
    ]


@pytest.mark.parametrize("how", ["header", "body", "both"])
async def test_the_same_key_is_the_same_task(client: Client, how: str) -> None:
    session = await client.session()
    headers = {} if how == "body" else {"Idempotency-Key": "once"}
    more = {} if how == "header" else {"client_action_id": "once"}
    path = f"/v1/sessions/{session['id']}/actions"
    body = {"type": "say", "text": "Hello", **more}
    first = await client.http.post(path, json=body, headers=headers)
    second = await client.http.post(path, json=body, headers=headers)
    other = await client.http.post(path, json=body | {"text": "Bye"}, headers=headers)

    assert (first.status_code, second.status_code) == (202, 200)
    assert first.json() == second.json()
    assert first.headers["location"] == second.headers["location"]
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")
    assert len(await client.log(session["id"])) == 2


async def test_two_different_keys_are_one_too_many(client: Client) -> None:
    session = await client.session()
    response = await client.http.post(
        f"/v1/sessions/{session['id']}/actions",
        json={"type": "continue", "client_action_id": "a"},
        headers={"Idempotency-Key": "b"},
    )

    assert response.status_code == 422


async def test_the_same_key_at_once_from_many_is_one_task(client: Client) -> None:
    session = await client.session()
    accepted = await asyncio.gather(
        *(client.act(session["id"], client_action_id="once") for _ in range(20))
    )

    assert len({one["task_id"] for one in accepted}) == 1
    assert len(await client.log(session["id"])) == 2


async def test_a_known_key_tells_how_far_its_task_is(client: Client, worker: FakeWorker) -> None:
    session = await client.session()
    await worker.answer(session["id"])
    await client.act(session["id"], client_action_id="once")
    await worker.answer(session["id"])
    again = await client.act(session["id"], client_action_id="once")

    assert again["status"] == "completed"


async def test_reject_is_refused_while_a_task_is_open(client: Client, worker: FakeWorker) -> None:
    session = await client.session()
    path = f"/v1/sessions/{session['id']}/actions"
    body = {"type": "continue", "on_busy": "reject"}
    busy = await client.http.post(path, json=body)
    await worker.answer(session["id"])
    free = await client.http.post(path, json=body)

    assert (busy.status_code, busy.json()["code"]) == (409, "session_busy")
    assert free.status_code == 202


async def test_interrupt_asks_the_running_task_to_end(
    client: Client, worker: FakeWorker, settings: Settings
) -> None:
    session = await client.session()
    claim = await worker.start(session["id"])
    async with Redis.from_url(settings.redis_url.get_secret_value()) as redis:
        pubsub = redis.pubsub(ignore_subscribe_messages=False)
        await pubsub.subscribe("fireside:cancel")
        assert await pubsub.get_message(timeout=PATIENCE) is not None
        waiting = await client.act(session["id"])
        first = await client.act(session["id"], on_busy="interrupt")
        told = await pubsub.get_message(ignore_subscribe_messages=True, timeout=PATIENCE)
        await pubsub.aclose()  # type: ignore[no-untyped-call] # redis-py leaves it so
    await worker.end(claim, "cancelled")
    following = await worker.claim(session["id"])

    assert told is not None
    assert told["data"] == f"{session['id']}:{claim.task_id}".encode()
    assert str(following.task_id) == first["task_id"] != waiting["task_id"]


async def test_every_accepted_action_is_hinted(
    client: Client, settings: Settings, db: Database
) -> None:
    url = settings.redis_url.get_secret_value()
    async with Redis.from_url(url, socket_timeout=None) as redis:
        lists = [key_of("fireside", level) for level in range(LEVELS)]
        await redis.delete(*lists)
        session = await client.session()
        await client.act(session["id"])
        hints = [await redis.blpop(lists, timeout=int(PATIENCE)) for _ in range(2)]

    assert all(hints)


async def test_a_queued_task_is_cancelled_at_once(client: Client) -> None:
    session = await client.session()
    accepted = await client.act(session["id"])
    path = f"/v1/tasks/{accepted['task_id']}"
    answers = [await client.http.post(f"{path}/cancel") for _ in range(2)]
    task = (await client.http.get(path)).json()
    log = await client.log(session["id"])

    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json() == {"task_id": accepted["task_id"], "session_id": session["id"]}
    assert task["status"] == "cancelled"
    assert [event["type"] for event in log] == ["task_queued", "task_queued", "task_cancelled"]


async def test_a_running_task_is_asked_to_end(client: Client, worker: FakeWorker) -> None:
    session = await client.session()
    claim = await worker.start(session["id"])
    response = await client.http.post(f"/v1/tasks/{claim.task_id}/cancel")
    still = (await client.http.get(f"/v1/tasks/{claim.task_id}")).json()
    await worker.end(claim, "cancelled")
    ended = await client.http.post(f"/v1/tasks/{claim.task_id}/cancel")

    assert (response.status_code, still["status"], ended.status_code) == (202, "running", 202)


async def test_cancel_by_the_clients_id_works_before_and_after(client: Client) -> None:
    session = await client.session()
    path = f"/v1/sessions/{session['id']}/cancel"
    early = await client.http.post(path, json={"client_action_id": "early"})
    arrived = await client.act(session["id"], client_action_id="early")
    accepted = await client.act(session["id"], client_action_id="late")
    late = await client.http.post(path, json={"client_action_id": "late"})
    task = (await client.http.get(f"/v1/tasks/{accepted['task_id']}")).json()

    assert (early.status_code, early.json()["task_id"]) == (202, None)
    assert arrived["status"] == "cancelled"
    assert (late.status_code, late.json()["task_id"]) == (202, accepted["task_id"])
    assert task["status"] == "cancelled"


NO_ACTIONS: list[tuple[Any, int]] = [
    ({}, 422),
    ({"type": "sing"}, 422),
    ({"type": "start"}, 422),
    ({"type": None}, 422),
    ({"type": ["say"]}, 422),
    ({"type": "undo"}, 422),
    ({"text": "Hello"}, 422),
    ({"type": "say"}, 422),
    ({"type": "say", "text": ""}, 422),
    ({"type": "say", "text": " \t\n\u2003"}, 422),
    ({"type": "say", "text": 5}, 422),
    ({"type": "say", "text": None}, 422),
    ({"type": "say", "text": ["Hello"]}, 422),
    ({"type": "say", "text": "a\0b"}, 422),
    ({"type": "say", "text": "a\ud800b"}, 422),
    ({"type": "say", "text": "x" * 16_001}, 413),
    ({"type": "say", "text": "x", "tone": "loud"}, 422),
    ({"type": "say", "text": "x", "on_busy": "hop"}, 422),
    ({"type": "say", "text": "x", "on_busy": None}, 422),
    ({"type": "say", "text": "x", "on_busy": {}}, 422),
    ({"type": "say", "text": "x", "client_action_id": ""}, 422),
    ({"type": "say", "text": "x", "client_action_id": "a b"}, 422),
    ({"type": "say", "text": "x", "client_action_id": "x" * 201}, 422),
    ({"type": "say", "text": "x", "client_action_id": 5}, 422),
    ({"type": "choose"}, 422),
    ({"type": "choose", "choice_id": ""}, 422),
    ({"type": "choose", "choice_id": 1}, 422),
    ({"type": "choose", "choice_id": {"id": 1}}, 422),
    ({"type": "choose", "choice_id": "x" * 501}, 422),
    ({"type": "choose", "choice_id": "\0"}, 422),
    ({"type": "continue", "text": "x"}, 422),
    ([], 422),
    ("text", 422),
    (None, 422),
]


async def test_nonsense_is_no_action(client: Client) -> None:
    session = await client.session()
    codes = {413: "payload_too_large", 422: "invalid_request"}
    for body, status in NO_ACTIONS:
        response = await client.http.post(
            f"/v1/sessions/{session['id']}/actions", content=json.dumps(body), headers=JSON_CONTENT
        )
        assert (response.status_code, response.json()["code"]) == (status, codes[status]), body
        assert response.headers["content-type"] == "application/problem+json"
    assert len(await client.log(session["id"])) == 1


BAD_REQUESTS: list[tuple[bytes, dict[str, str], int, str]] = [
    (b"{", {}, 400, "invalid_json"),
    (b'{"type":"say","text":"\xff"}', {}, 400, "invalid_json"),
    (b"[" * 100_000, {}, 400, "invalid_json"),
    (b"", {}, 422, "invalid_request"),
    (b'{"type":"continue"}', {"Content-Type": "text/plain"}, 422, "invalid_request"),
    (
        b"type=continue",
        {"Content-Type": "application/x-www-form-urlencoded"},
        422,
        "invalid_request",
    ),
    (b'{"type":"continue"}', {"Idempotency-Key": "x" * 201}, 422, "invalid_request"),
    (b'{"type":"continue"}', {"Idempotency-Key": "a b"}, 422, "invalid_request"),
    (b'{"type":"continue"}', {"Idempotency-Key": ""}, 422, "invalid_request"),
    (b" " * (256 * 1024) + b"{}", {}, 413, "payload_too_large"),
]


async def test_a_bad_body_or_key_is_refused(client: Client) -> None:
    session = await client.session()
    for content, headers, status, code in BAD_REQUESTS:
        response = await client.http.post(
            f"/v1/sessions/{session['id']}/actions",
            content=content,
            headers=JSON_CONTENT | headers,
        )
        assert (response.status_code, response.json()["code"]) == (status, code), content[:50]
        assert response.headers["content-type"] == "application/problem+json"


async def test_a_body_in_chunks_has_the_same_limit(client: Client) -> None:
    session = await client.session()
    sent = 0

    async def chunks() -> Any:
        nonlocal sent
        for _ in range(100):
            yield b" " * 16_384
            sent += 1

    response = await client.http.post(
        f"/v1/sessions/{session['id']}/actions",
        content=chunks(),
        headers={"Content-Type": "application/json"},
    )

    assert (response.status_code, response.json()["code"]) == (413, "payload_too_large")


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_a_body_in_chunks_has_it_where_none_is_read(client: Client, accept: str) -> None:
    session = await client.session()

    async def chunks() -> Any:
        for _ in range(100):
            yield b" " * 16_384

    response = await client.http.request(
        "GET",
        f"/v1/sessions/{session['id']}/events",
        content=chunks(),
        headers={"Accept": accept},
    )

    assert (response.status_code, response.json()["code"]) == (413, "payload_too_large")


async def test_a_body_in_chunks_comes_whole(client: Client) -> None:
    session = await client.session()

    async def chunks() -> Any:
        for piece in (b'{"type":', b'"say","text":', b'"Hi"}'):
            yield piece

    response = await client.http.post(
        f"/v1/sessions/{session['id']}/actions",
        content=chunks(),
        headers={"Content-Type": "application/json"},
    )

    assert response.status_code == 202


async def test_a_cancel_needs_an_id(client: Client) -> None:
    session = await client.session()
    bodies: list[Any] = [{}, {"client_action_id": 5}, {"client_action_id": ""}, [], None]
    for body in bodies:
        response = await client.http.post(f"/v1/sessions/{session['id']}/cancel", json=body)
        assert response.status_code == 422, body


async def test_what_does_not_exist_takes_no_actions(client: Client) -> None:
    answers = [
        await client.http.post(f"/v1/sessions/{uuid4()}/actions", json={"type": "continue"}),
        await client.http.post(f"/v1/sessions/{uuid4()}/cancel", json={"client_action_id": "a"}),
        await client.http.post(f"/v1/tasks/{uuid4()}/cancel"),
        await client.http.post("/v1/tasks/x/cancel"),
        await client.http.post("/v1/sessions/x/actions", json={"type": "continue"}),
    ]

    assert [answer.status_code for answer in answers] == [404] * 5


@pytest.mark.parametrize(
    ("on_busy", "most"), [("enqueue", 2), ("enqueue", 9), ("reject", 9), ("interrupt", 9)]
)
async def test_the_servers_own_sessions_are_nobodys_to_act_on(
    settings: Settings, db: Database, on_busy: str, most: int
) -> None:
    few = settings.model_copy(update={"max_queued": most})
    async with serving(few) as url, http_client(url) as http:
        client = Client(http, url)
        await client.session()
        made = await client.session()
        chore = {"session": made["id"], "priority": CHORE}
        await db.run(text("update sessions set priority = :priority where id = :session"), chore)
        await db.run(
            text(
                "update tasks set priority = :priority, client_action_id = 'known'"
                " where session_id = :session"
            ),
            chore,
        )
        before = await dump(db)
        path = f"/v1/sessions/{made['id']}"
        say = {"type": "say", "text": "Hi", "on_busy": on_busy}
        answers = [
            await http.get(path),
            await http.get(f"/v1/tasks/{made['task_id']}"),
            await http.get(f"/api/story/status/{made['task_id']}"),
            await http.post(f"{path}/actions", json=say),
            await http.post(f"{path}/actions", json=say | {"client_action_id": "known"}),
            await http.post(f"{path}/cancel", json={"client_action_id": "known"}),
            await http.post(f"{path}/cancel", json={"client_action_id": "early"}),
            await http.post(f"/v1/tasks/{made['task_id']}/cancel"),
            await http.delete(path),
        ]
        after = await dump(db)

    assert [one.status_code for one in answers] == [404] * len(answers)
    assert after == before
