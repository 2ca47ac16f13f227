"""The WebSocket's frames, both ways, and how it ends."""

import asyncio
import contextlib
import json
import socket as sockets
import weakref
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request

import api.socket
from api.wire import Wire
from shared.records import NewEvent
from shared.settings import Settings
from shared.store.database import Database
from tests.api.clients import Client, Socket, opened, shown_text
from tests.api.conftest import COMPARING, serving
from tests.api.worker import FakeWorker
from tests.waiting import until


def say(text: str = "Hello", **more: Any) -> dict[str, Any]:
    return {"type": "say", "text": text, **more}


@pytest.fixture(params=[Wire, "websockets-sansio"], ids=["wire", "uvicorn"])
async def url(
    request: pytest.FixtureRequest, settings: Settings, db: Database
) -> AsyncIterator[str]:
    """A gateway as each of its two commands serves sockets."""
    async with serving(settings, request.param) as base:
        yield base


# Actions and cancels


async def test_an_action_is_acknowledged_and_becomes_a_task(client: Client) -> None:
    session = await client.session()
    async with client.socket(session["id"]) as socket:
        await socket.send({"type": "action", "id": "a1", "action": say()})
        frames = [await socket.receive(), await socket.receive()]

    ack = next(frame for frame in frames if frame["type"] == "ack")
    queued = next(frame for frame in frames if frame["type"] == "task_queued")
    assert ack == {"type": "ack", "id": "a1", "task_id": queued["task_id"], "status": "queued"}
    assert queued["data"] == {"action": say(), "client_action_id": "a1", "position": 1}


async def test_a_frame_is_gone_once_it_is_answered(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle socket would else hold the last that came: as much as 64 KB."""
    frames: list[weakref.ref[object]] = []

    def decoded(received: str | bytes) -> object:
        frame = decode(received)
        frames.append(weakref.ref(frame))
        return frame

    decode = api.socket._decode
    monkeypatch.setattr(api.socket, "_decode", decoded)
    session = await client.session()
    async with client.socket(session["id"]) as socket:
        await socket.send({"type": "action", "id": "a1", "action": say()})
        await socket.receive()
        await until(lambda: [frame() for frame in frames] == [None])


async def test_the_same_id_is_the_same_task_over_http_too(client: Client) -> None:
    session = await client.session()
    async with client.socket(session["id"]) as socket:
        for _ in range(2):
            await socket.send({"type": "action", "id": "a1", "action": say()})
        acks = [f for f in [await socket.receive() for _ in range(3)] if f["type"] == "ack"]
    again = await client.act(session["id"], client_action_id="a1")

    assert acks[0] == acks[1]
    assert again["task_id"] == acks[0]["task_id"]
    assert len(await client.log(session["id"])) == 2


async def test_a_queued_task_is_cancelled(client: Client) -> None:
    session = await client.session()
    accepted = await client.act(session["id"])
    async with client.socket(session["id"]) as socket:
        await socket.send({"type": "cancel", "task_id": accepted["task_id"]})
        frame = await socket.receive()

    assert (frame["type"], frame["task_id"]) == ("task_cancelled", accepted["task_id"])


async def test_a_cancel_may_come_before_its_action(client: Client) -> None:
    session = await client.session()
    async with client.socket(session["id"]) as socket:
        await socket.send({"type": "cancel", "client_action_id": "a1"})
        await socket.send({"type": "action", "id": "a1", "action": say()})
        frames = [await socket.receive() for _ in range(3)]

    assert sorted(frame["type"] for frame in frames) == ["ack", "task_cancelled", "task_queued"]
    assert next(f["status"] for f in frames if f["type"] == "ack") == "cancelled"


BAD_FRAMES: list[tuple[Any, str, str | None]] = [
    ("no json", "invalid_json", None),
    ("", "invalid_json", None),
    (
        '{"type":"action","id":"a","action":{"type":"say","text":"\\ud800"}}',
        "invalid_json",
        None,
    ),
    ("[" * 5000, "invalid_json", None),
    ("[]", "invalid_request", None),
    ('"text"', "invalid_request", None),
    ("{}", "invalid_request", None),
    ({"type": "sing", "id": "a"}, "invalid_request", "a"),
    ({"type": "action", "id": "a"}, "invalid_request", "a"),
    ({"type": "action", "action": say()}, "invalid_request", None),
    ({"type": "action", "id": "", "action": say()}, "invalid_request", ""),
    ({"type": "action", "id": 5, "action": say()}, "invalid_request", None),
    ({"type": "action", "id": "x" * 201, "action": say()}, "invalid_request", None),
    ({"type": "action", "id": "a\nb", "action": say()}, "invalid_request", "a\nb"),
    ({"type": "action", "id": "a", "action": {"type": "sing"}}, "invalid_request", "a"),
    ({"type": "action", "id": "a", "action": {"type": "start"}}, "invalid_request", "a"),
    ({"type": "action", "id": "a", "action": say("")}, "invalid_request", "a"),
    ({"type": "action", "id": "a", "action": say(" \n ")}, "invalid_request", "a"),
    ({"type": "action", "id": "a", "action": say("a\0b")}, "invalid_request", "a"),
    ({"type": "action", "id": "a", "action": say("x" * 16_001)}, "payload_too_large", "a"),
    ({"type": "action", "id": "a", "action": say(on_busy="hop")}, "invalid_request", "a"),
    ({"type": "action", "id": "a", "action": say(on_busy="reject")}, "session_busy", "a"),
    ({"type": "action", "id": "a", "action": say(volume=11)}, "invalid_request", "a"),
    (
        {"type": "action", "id": "a", "action": say(client_action_id="b")},
        "invalid_request",
        "a",
    ),
    ({"type": "action", "id": "a", "action": {"type": "choose"}}, "invalid_request", "a"),
    (
        {"type": "action", "id": "a", "action": {"type": "choose", "choice_id": 5}},
        "invalid_request",
        "a",
    ),
    ({"type": "cancel"}, "invalid_request", None),
    ({"type": "cancel", "task_id": "x"}, "invalid_request", None),
    ({"type": "cancel", "task_id": str(uuid4())}, "not_found", None),
    (
        {"type": "cancel", "task_id": str(uuid4()), "client_action_id": "a"},
        "invalid_request",
        None,
    ),
]


async def test_a_bad_frame_is_refused_and_harms_nothing(client: Client) -> None:
    session = await client.session()
    async with client.socket(session["id"]) as socket:
        for frame, code, action_id in BAD_FRAMES:
            await socket.connection.send(frame if isinstance(frame, str) else json.dumps(frame))
            refused = await socket.receive()
            assert (refused["error"]["code"], refused.get("id")) == (code, action_id), frame
        await socket.send({"type": "action", "id": "good", "action": say()})
        after = [await socket.receive(), await socket.receive()]

    assert {frame["type"] for frame in after} == {"ack", "task_queued"}
    assert after[0].get("seq", 2) == after[1].get("seq", 2) == 2


async def test_a_reused_id_for_another_action_is_a_conflict(client: Client) -> None:
    session = await client.session()
    await client.act(session["id"], client_action_id="a1")
    async with client.socket(session["id"]) as socket:
        await socket.send({"type": "action", "id": "a1", "action": say("Something else")})
        frame = await socket.receive()

    assert (frame["error"]["code"], frame["id"]) == ("idempotency_conflict", "a1")


async def test_binary_frames_are_refused(client: Client) -> None:
    session = await client.session()
    async with client.socket(session["id"]) as socket:
        await socket.connection.send(b'{"type":"pong"}')
        frame = await socket.receive()

    assert frame["error"]["code"] == "invalid_request"


async def test_empty_pieces_of_a_message_are_not_kept(
    settings: Settings, db: Database, client: Client
) -> None:
    wires: list[Wire] = []

    class Seen(Wire):
        def handle_connect(self, event: Request) -> None:
            super().handle_connect(event)
            wires.append(self)

    async def pieces(connection: ClientConnection) -> AsyncIterator[str]:
        yield '{"type": '
        for _ in range(1000):
            yield ""
        await (await connection.ping())
        held.append(len(wires[0].frames))
        yield '"cancel"}'

    session, held = await client.session(), list[int]()
    address = f"/ws/sessions/{session['id']}"
    async with (
        serving(settings, Seen) as url,
        opened(url.replace("http", "ws", 1) + address) as connection,
    ):
        await connection.send(pieces(connection))
        answer = await Socket(connection).receive()

    assert held == [1]
    assert answer["error"]["message"] == "Give either task_id or client_action_id."


async def test_text_that_is_not_utf_8_ends_the_connection(client: Client) -> None:
    session = await client.session()
    async with client.socket(session["id"]) as socket:
        await socket.connection.send(b"\xff\xfe", text=True)
        assert await socket.closed() == 1007


async def test_pongs_and_late_auth_frames_are_ignored(client: Client) -> None:
    session = await client.session()
    async with client.socket(session["id"]) as socket:
        await socket.send({"type": "pong"})
        await socket.send({"type": "auth", "ticket": "none is needed"})
        await socket.send({"type": "cancel"})
        frame = await socket.receive()

    assert frame["type"] == "error"


async def test_a_frame_that_is_too_big_closes_with_1009(client: Client) -> None:
    session = await client.session()
    async with client.socket(session["id"]) as socket:
        await socket.connection.send("x" * (64 * 1024 + 1))
        assert await socket.closed() == 1009
    async with client.socket(session["id"]) as socket:
        await socket.connection.send("x" * (64 * 1024))
        assert (await socket.receive())["error"]["code"] == "invalid_json"

    assert len(await client.log(session["id"])) == 1


# Joining


async def test_without_after_only_what_comes_from_now_on(
    client: Client, worker: FakeWorker
) -> None:
    session = await client.session()
    await worker.answer(session["id"])
    async with client.socket(session["id"]) as socket:
        await socket.joined()
        await client.act(session["id"])
        assert (await socket.receive())["seq"] == 6


async def test_a_number_from_the_future_means_now(client: Client) -> None:
    session = await client.session()
    async with client.socket(session["id"], after=10**12) as socket:
        await socket.joined()
        await client.act(session["id"])
        assert (await socket.receive())["seq"] == 2


async def test_an_after_that_is_no_number_is_refused(client: Client) -> None:
    session = await client.session()
    for after in ("-1", "x", "", "1.5", "9" * 17, "%D9%A1"):
        async with client.socket(f"{session['id']}?after={after}") as socket:
            assert await socket.closed() == 1008, after


async def test_an_unknown_session_closes_with_4404(client: Client) -> None:
    for name in (str(uuid4()), "no-uuid", "%00"):
        async with client.socket(name) as socket:
            assert await socket.closed() == 4404, name


async def test_events_that_are_gone_are_told_as_a_gap(
    client: Client, worker: FakeWorker, db: Database
) -> None:
    session = await client.session()
    await worker.answer(session["id"])
    await db.run(text("delete from events where seq <= 3"))
    await db.run(text("update sessions set first_event = 4"))
    async with client.socket(session["id"], after=1) as socket:
        frames = await socket.until_end()

    assert frames[0] == {"type": "gap", "from": 2, "to": 3}
    assert [frame["seq"] for frame in frames[1:]] == [4, 5]


async def test_a_gap_without_anything_after_it_is_told_too(
    client: Client, worker: FakeWorker, db: Database
) -> None:
    session = await client.session()
    await worker.answer(session["id"])
    await db.run(text("delete from events"))
    await db.run(text("update sessions set first_event = 6"))
    async with client.socket(session["id"], after=0) as socket:
        first = await socket.receive()
        await client.act(session["id"])
        second = await socket.receive()

    assert first == {"type": "gap", "from": 1, "to": 5}
    assert second["seq"] == 6


async def test_who_joins_while_text_streams_gets_the_text_so_far(
    client: Client, worker: FakeWorker
) -> None:
    session = await client.session()
    claim = await worker.start(session["id"])
    await worker.stream(claim, 0, 0, "Once upön ")
    await worker.stream(claim, 0, 10, "a time")
    async with (
        client.socket(session["id"]) as from_now_on,
        client.socket(session["id"], after=0) as from_the_start,
    ):
        joined = [await from_now_on.receive()]
        whole = [await from_the_start.receive() for _ in range(3)]
        await worker.stream(claim, 0, 16, " there was")
        joined.append(await from_now_on.receive())
        whole.append(await from_the_start.receive())

    delta = {
        "type": "message_update",
        "task_id": str(claim.task_id),
        "attempt": 1,
        "message": 0,
    }
    expected = [
        delta | {"offset": 0, "delta": "Once upön a time"},
        delta | {"offset": 16, "delta": " there was"},
    ]
    assert joined == expected
    assert [frame["type"] for frame in whole[:2]] == ["task_queued", "task_started"]
    assert whole[2:] == expected


async def test_a_finished_message_is_not_streamed_again(client: Client, worker: FakeWorker) -> None:
    session = await client.session()
    claim = await worker.start(session["id"])
    await worker.stream(claim, 0, 0, "Let me look.")
    await worker.write(claim, NewEvent("message_end", {"message": {}}))
    async with client.socket(session["id"], after=3) as socket:
        await worker.write(claim, NewEvent("turn_end", {}))
        assert (await socket.receive())["type"] == "turn_end"


async def test_deltas_of_an_attempt_that_was_given_up_are_dropped(
    client: Client, worker: FakeWorker, db: Database
) -> None:
    session = await client.session()
    async with client.socket(session["id"], after=1) as socket:
        await socket.joined()
        lost = await worker.start(session["id"])
        await worker.stream(lost, 0, 0, "Half of a ")
        await db.run(text("update sessions set lease_until = clock_timestamp()"))
        taken_over = await worker.start(session["id"])
        await worker.stream(lost, 0, 10, "sentence")
        await worker.stream(taken_over, 0, 0, "A whole")
        frames = [await socket.receive() for _ in range(4)]
    async with client.socket(session["id"]) as socket:
        await socket.joined()
        await worker.stream(lost, 0, 18, " from the grave")
        await worker.stream(taken_over, 0, 7, " one")
        await worker.write(taken_over, NewEvent("agent_end", {}))
        late = [*socket.early, *await socket.until("agent_end")]

    assert [(f["type"], f.get("delta")) for f in frames] == [
        ("task_started", None),
        ("message_update", "Half of a "),
        ("task_restarted", None),
        ("message_update", "A whole"),
    ]
    assert shown_text(late) == "A whole one"


# Following


@COMPARING
async def test_what_was_never_published_comes_from_the_log(
    client: Client, worker: FakeWorker
) -> None:
    session = await client.session()
    async with client.socket(session["id"], after=0) as socket:
        assert (await socket.receive())["seq"] == 1
        claim = await worker.claim(session["id"])
        await worker.write(claim, NewEvent("task_started", {"attempt": 1}), publish=False)
        await worker.end(claim, "failed", error={"code": "x", "message": "y"}, publish=False)
        frames = await socket.until_end()

    assert [frame["seq"] for frame in frames] == [2, 3]


async def test_a_lost_publication_is_noticed_by_the_next_one(
    client: Client, worker: FakeWorker
) -> None:
    session = await client.session()
    async with client.socket(session["id"], after=0) as socket:
        claim = await worker.claim(session["id"])
        await worker.write(claim, NewEvent("task_started", {"attempt": 1}), publish=False)
        await worker.write(claim, NewEvent("agent_start", {}))
        frames = await socket.until("agent_start")

    assert [frame["seq"] for frame in frames] == [1, 2, 3]


async def test_a_hole_within_one_publication_is_filled_from_the_log(
    client: Client, worker: FakeWorker
) -> None:
    session = await client.session()
    async with client.socket(session["id"], after=1) as socket:
        await socket.joined()
        claim = await worker.start(session["id"])
        turns = [NewEvent("turn_start", {"number": number}) for number in range(3)]
        first, _, third = await worker.write(claim, *turns, publish=False)
        await worker.publisher.events_of_many([(claim.fence.session_id, [first, third])])
        await worker.end(claim, "cancelled")
        frames = await socket.until_end()

    assert [frame["seq"] for frame in frames] == [2, 3, 4, 5, 6]


async def test_sockets_that_go_leave_no_task(client: Client, worker: FakeWorker) -> None:
    session = await client.session()
    async with client.socket(session["id"], after=0) as staying:
        # What runs beside the sockets has begun as well: reading from Redis is a task.
        assert (await staying.receive())["seq"] == 1
        before = len(asyncio.all_tasks())
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(20):
                socket = await stack.enter_async_context(client.socket(session["id"], after=0))
                assert (await socket.receive())["seq"] == 1
            await worker.answer(session["id"])
            assert len(asyncio.all_tasks()) > before

        await until(lambda: len(asyncio.all_tasks()) <= before)


async def test_what_was_published_but_never_committed_is_not_passed_on(
    client: Client, worker: FakeWorker, settings: Settings
) -> None:
    session = await client.session()
    name = f"fireside:session:{session['id']}"
    async with client.socket(session["id"], after=0) as socket:
        await socket.receive()
        redis = worker.publisher._redis
        await redis.publish(name, b'9:x:1 {"seq":9,"type":"task_completed"}')
        await redis.publish(name, b"no line at all\n\xff\n1:2:3:4 {}\n-:y:-1 z")
        claim = await worker.start(session["id"])
        await worker.end(claim, "cancelled")
        frames = await socket.until_end()

    assert [frame["seq"] for frame in frames] == [2, 3]


async def test_an_idle_socket_gets_pings(settings: Settings, db: Database, client: Client) -> None:
    session = await client.session()
    async with (
        serving(settings.model_copy(update={"ping_seconds": 0.05})) as url,
        Client(client.http, url).socket(session["id"]) as socket,
    ):
        assert [await socket.receive() for _ in range(2)] == [{"type": "ping"}] * 2


async def test_a_session_that_is_deleted_closes_its_sockets(client: Client) -> None:
    session = await client.session()
    async with client.socket(session["id"]) as socket:
        response = await client.http.delete(f"/v1/sessions/{session['id']}")
        assert response.status_code == 204
        assert await socket.closed() == 4404


@COMPARING
async def test_a_session_deleted_elsewhere_closes_its_sockets(client: Client, db: Database) -> None:
    session = await client.session()
    async with client.socket(session["id"]) as socket:
        await db.run(text("delete from sessions"))
        assert await socket.closed() == 4404


async def test_too_many_sockets_close_with_4429(
    settings: Settings, db: Database, client: Client
) -> None:
    session = await client.session()
    few = settings.model_copy(update={"max_sockets": 2, "max_sockets_per_user": 1})
    async with serving(few) as url:
        other = Client(client.http, url)
        async with (
            other.socket(session["id"]),
            other.socket(session["id"]),
            other.socket(session["id"]) as third,
        ):
            assert await third.closed() == 4429
        while not await _is_served(other, session["id"]):
            pass  # the server hears a moment later that the two have gone


async def _is_served(client: Client, session_id: str) -> bool:
    async with client.socket(session_id, after=0) as socket:
        with contextlib.suppress(ConnectionClosed):
            return bool(await socket.receive())
    return False


async def test_a_client_that_reads_nothing_is_closed_with_4408(
    settings: Settings, db: Database, client: Client, worker: FakeWorker
) -> None:
    session = await client.session()
    claim = await worker.start(session["id"])
    big = {"message": {"role": "tool", "content": "x" * 200_000}}
    for _ in range(40):
        await worker.write(claim, NewEvent("message_end", big))
    async with serving(settings.model_copy(update={"send_seconds": 0.3})) as url:
        port = int(url.rpartition(":")[2])
        with sockets.socket() as raw:
            raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 8192)
            raw.connect(("127.0.0.1", port))
            address = f"ws://127.0.0.1:{port}/ws/sessions/{session['id']}?after=0"
            async with opened(address, sock=raw, max_queue=1) as connection:
                while 'sockets_closed_total{code="4408"} 1.0' not in await metrics(client, url):
                    pass  # each look is a request, so that the loop goes on
                code = await Socket(connection).closed()

    assert code == 4408


async def test_a_redis_that_stands_still_closes_with_1012(
    settings: Settings, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.socket._AUTH_SECONDS", 0.5)
    with sockets.create_server(("127.0.0.1", 0)) as silent:
        redis = SecretStr(f"redis://127.0.0.1:{silent.getsockname()[1]}?socket_timeout=1")
        still = settings.model_copy(update={"redis_url": redis, "auth": "required"})
        async with (
            serving(still) as url,
            opened(f"{url.replace('http', 'ws', 1)}/ws/sessions/{uuid4()}") as connection,
        ):
            socket = Socket(connection)
            await socket.send({"type": "auth", "ticket": "any"})
            assert await socket.closed() == 1012


async def metrics(client: Client, url: str) -> str:
    return (await client.http.get(f"{url}/metrics")).text


async def test_a_stop_closes_sockets_with_1012(
    settings: Settings, db: Database, client: Client
) -> None:
    session = await client.session()
    async with serving(settings) as url:
        context = Client(client.http, url).socket(session["id"])
        socket = await context.__aenter__()
    assert await socket.closed() == 1012
    await context.__aexit__(None, None, None)
