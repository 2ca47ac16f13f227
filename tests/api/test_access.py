"""Who may do what: keys, tokens, tickets, origins, loopback, and other people's things."""

import asyncio
import contextlib
import json
import math
import socket as sockets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from api import identity
from api.app import create_app
from api.jwks import SigningKeys
from shared.redis_pool import connect_redis
from shared.settings import Settings
from shared.store import api_keys
from shared.store.database import Database
from tests.api.clients import Client, Socket, opened
from tests.api.conftest import serving
from tests.api.tokens import AUDIENCE, ISSUER, Issuer
from tests.clients import http_client
from tests.waiting import within

ISSUER_OF_TESTS = Issuer()


@pytest.fixture
def guarded(settings: Settings, tmp_path: Path) -> Settings:
    """Settings with access control and an issuer whose keys are in a file."""
    keys = tmp_path / "jwks.json"
    keys.write_text(ISSUER_OF_TESTS.jwks())
    return settings.model_copy(
        update={
            "auth": "required",
            "jwt_jwks": str(keys),
            "jwt_issuer": ISSUER,
            "jwt_audience": AUDIENCE,
            "allowed_origins": ["https://play.example"],
        }
    )


@pytest.fixture
async def base(guarded: Settings, db: Database) -> AsyncIterator[str]:
    async with serving(guarded) as url:
        yield url


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@asynccontextmanager
async def client_of(base: str, token: str) -> AsyncIterator[Client]:
    async with http_client(base, headers=bearer(token)) as http:
        yield Client(http, base)


@pytest.fixture
async def ann(base: str, db: Database) -> AsyncIterator[Client]:
    _, key = await api_keys.create(db, "ann")
    async with client_of(base, key) as client:
        yield client


@pytest.fixture
async def bob(base: str, db: Database) -> AsyncIterator[Client]:
    _, key = await api_keys.create(db, "bob")
    async with client_of(base, key) as client:
        yield client


@asynccontextmanager
async def socket_of(
    client: Client, session_id: str, ticket: str | None = None, **options: Any
) -> AsyncIterator[Socket]:
    """A WebSocket that has shown its ticket, a new one unless one is given."""
    if ticket is None:
        ticket = (await client.http.post("/v1/ws-tickets")).json()["ticket"]
    async with opened(
        f"{client.url.replace('http', 'ws', 1)}/ws/sessions/{session_id}", **options
    ) as connection:
        socket = Socket(connection)
        with contextlib.suppress(ConnectionClosed):
            await socket.send({"type": "auth", "ticket": ticket})
        yield socket


# Keys and tokens


NO_TOKENS = [
    {},
    {"Authorization": ""},
    {"Authorization": "Bearer"},
    {"Authorization": "Basic YW5uOng="},
    {"Authorization": "Bearer fs_" + "x" * 43},
    {"Authorization": "Bearer no-token"},
    {"Authorization": "Bearer a.b.c"},
    {"Authorization": "Bearer " + "x" * 5000},
    {"X-User": "ann"},
]


async def test_without_a_good_token_nothing_is_told(base: str) -> None:
    async with http_client(base) as http:
        for path in ("/v1/agents", "/v1/sessions", "/api/story/status/x", "/v1/x", "/v1/"):
            for headers in NO_TOKENS:
                response = await http.get(path, headers=headers)
                assert response.status_code == 401, (path, headers)
                assert response.json()["code"] == "unauthorized"
                assert response.headers["www-authenticate"] == "Bearer"


async def test_headers_that_contradict_each_other_are_refused(
    base: str, ann: Client, bob: Client
) -> None:
    session = await ann.session()
    path = f"/v1/sessions/{session['id']}/actions"
    mine, others = (dict(one.http.headers)["authorization"] for one in (ann, bob))
    twice = [
        ("Authorization", mine, others),
        ("Idempotency-Key", "once", "twice"),
        ("Last-Event-ID", "1", "2"),
        ("Origin", base, "https://evil.example"),
        ("Content-Type", "application/json", "text/plain"),
    ]
    async with http_client(base) as http:
        for name, first, second in twice:
            known = {"authorization": mine, "content-type": "application/json"}
            known.pop(name.lower(), None)
            headers = [*known.items(), (name, first), (name.lower(), second)]
            response = await http.post(path, content=b'{"type":"continue"}', headers=headers)
            problem = response.json()

            assert (response.status_code, problem["code"]) == (422, "invalid_request"), name
            assert problem["detail"] == f"{name.lower()}: is given twice, and differs"
        same = await http.post(
            path,
            content=b'{"type":"continue"}',
            headers=[
                ("Authorization", mine),
                ("Content-Type", "application/json"),
                ("Idempotency-Key", "once"),
                ("Idempotency-Key", "once"),
            ],
        )

    assert same.status_code == 202
    assert [one["type"] for one in await ann.log(session["id"])] == ["task_queued"] * 2


async def test_a_request_to_two_hosts_is_refused(url: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    writer.write(b"GET /v1/agents HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n")
    writer.write(b"Connection: close\r\n\r\n")
    answer = await within(reader.read())
    writer.close()
    await writer.wait_closed()

    assert answer.startswith(b"HTTP/1.1 422 ")


async def test_the_token_is_checked_before_the_body_is_read(base: str) -> None:
    async with http_client(base) as http:
        response = await http.post("/v1/sessions", content=b"{no json")

    assert response.status_code == 401


async def test_a_key_works_until_it_is_revoked(
    guarded: Settings, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "_KNOWN_SECONDS", 600.0)
    # A gateway forgets what it knows once it hears of Redis, which may be at any time.
    monkeypatch.setattr(identity.Identity, "forget_keys", lambda _: None)
    key_id, key = await api_keys.create(db, "ann", "laptop")
    async with serving(guarded) as base, client_of(base, key) as client:
        assert (await client.http.get("/v1/sessions")).status_code == 200
        assert not await api_keys.revoke(db, "bob", key_id)
        assert await api_keys.revoke(db, "ann", key_id)
        assert not await api_keys.revoke(db, "ann", key_id)
        # Known keys are remembered for a moment, also after they were taken back.
        assert (await client.http.get("/v1/sessions")).status_code == 200
        _, other = await api_keys.create(db, "ann")
        revoked = await api_keys.page(db, "ann")
        await api_keys.revoke(db, "ann", revoked[1].id)
        async with client_of(base, other) as another:
            assert (await another.http.get("/v1/sessions")).status_code == 401


async def test_what_a_key_has_opened_ends_when_it_is_revoked(
    guarded: Settings, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.gateway.ASK_SECONDS", 0.2)
    key_id, key = await api_keys.create(db, "ann")
    _, other = await api_keys.create(db, "ann")
    async with (
        serving(guarded) as base,
        client_of(base, key) as client,
        client_of(base, other) as another,
        client_of(base, ISSUER_OF_TESTS.token(sub="ann")) as by_token,
    ):
        session = (await client.session())["id"]
        path, accept = f"/v1/sessions/{session}/events", {"accept": "text/event-stream"}
        async with (
            socket_of(client, session) as socket,
            socket_of(another, session) as second,
            socket_of(by_token, session) as third,
            client.http.stream("GET", path, headers=accept) as stream,
        ):
            for one in (socket, second, third):
                await one.joined()
            assert await api_keys.revoke(db, "ann", key_id)

            assert await within(socket.closed()) == 4401
            assert "task_queued" in await within(read_all(stream))
            for one in (second, third):
                await one.joined()


async def test_what_a_jwt_has_opened_ends_when_it_runs_out(
    guarded: Settings, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Skew is for tokens that come from other clocks; here it only makes the test wait.
    monkeypatch.setattr("api.identity._CLOCK_SKEW_SECONDS", 0)
    exp = int(time.time()) + 4
    async with (
        serving(guarded) as base,
        client_of(base, ISSUER_OF_TESTS.token(exp=exp)) as short,
        client_of(base, ISSUER_OF_TESTS.token()) as long,
    ):
        session = (await short.session())["id"]
        path, accept = f"/v1/sessions/{session}/events", {"accept": "text/event-stream"}
        async with (
            socket_of(short, session) as socket,
            socket_of(long, session) as other,
            short.http.stream("GET", path, headers=accept) as stream,
        ):
            await socket.joined()

            assert await within(socket.closed()) == 4401
            assert "task_queued" in await within(read_all(stream))
            assert time.time() >= exp
            await other.joined()


async def read_all(stream: httpx.Response) -> str:
    """A stream's text, once it has ended."""
    return (await stream.aread()).decode()


@pytest.mark.parametrize("kid", ["ec", "rsa"])
async def test_a_good_jwt_has_its_sub_as_user(base: str, kid: str) -> None:
    async with client_of(base, ISSUER_OF_TESTS.token(kid=kid, sub="auth0|ann")) as client:
        made = await client.session()
    async with client_of(base, ISSUER_OF_TESTS.token(sub="auth0|ann")) as client:
        assert (await client.http.get(f"/v1/sessions/{made['id']}")).status_code == 200
    async with client_of(base, ISSUER_OF_TESTS.token(sub="auth0|bob")) as client:
        assert (await client.http.get(f"/v1/sessions/{made['id']}")).status_code == 404


BAD_TOKENS: dict[str, Callable[[], str]] = {
    "expired": lambda: ISSUER_OF_TESTS.token(exp=int(time.time()) - 60),
    "without exp": lambda: ISSUER_OF_TESTS.token(exp=None),
    "exp is no number": lambda: ISSUER_OF_TESTS.token(exp="soon"),
    "exp is a list": lambda: ISSUER_OF_TESTS.token(exp=[]),
    "exp is before all time": lambda: ISSUER_OF_TESTS.token(exp=-(10**400)),
    "exp is below zero": lambda: ISSUER_OF_TESTS.token(exp=-1.5),
    "exp is endless": lambda: ISSUER_OF_TESTS.token(exp=math.inf),
    "exp is not a number": lambda: ISSUER_OF_TESTS.token(exp=math.nan),
    "not yet": lambda: ISSUER_OF_TESTS.token(nbf=int(time.time()) + 60),
    "wrong issuer": lambda: ISSUER_OF_TESTS.token(iss="https://other.example"),
    "without issuer": lambda: ISSUER_OF_TESTS.token(iss=None),
    "wrong audience": lambda: ISSUER_OF_TESTS.token(aud="other"),
    "without audience": lambda: ISSUER_OF_TESTS.token(aud=None),
    "without sub": lambda: ISSUER_OF_TESTS.token(sub=None),
    "empty sub": lambda: ISSUER_OF_TESTS.token(sub=""),
    "sub with NUL": lambda: ISSUER_OF_TESTS.token(sub="ann\0"),
    "sub with a line": lambda: ISSUER_OF_TESTS.token(sub="ann\n"),
    "long sub": lambda: ISSUER_OF_TESTS.token(sub="x" * 129),
    "sub is a list": lambda: ISSUER_OF_TESTS.token(sub=["ann"]),
    "unknown key": lambda: ISSUER_OF_TESTS.token(kid="other"),
    "no key id": lambda: ISSUER_OF_TESTS.token(kid=None),
    "another issuer's key": lambda: Issuer().token(),
    "algorithm none": ISSUER_OF_TESTS.unsigned,
    "public key as secret": ISSUER_OF_TESTS.signed_with_the_public_key,
    "algorithm not on the list": lambda: ISSUER_OF_TESTS.token(kid="rsa", alg="PS256"),
    "key of another kind": ISSUER_OF_TESTS.signed_with_one_key_but_naming_the_other,
    "changed": lambda: ISSUER_OF_TESTS.token()[:-4] + "AAAA",
    "cut": lambda: ISSUER_OF_TESTS.token().rpartition(".")[0],
}


async def test_a_bad_jwt_is_refused(base: str) -> None:
    for name, token in BAD_TOKENS.items():
        async with client_of(base, token()) as client:
            response = await client.http.get("/v1/sessions")
        assert response.status_code == 401, name


@pytest.mark.parametrize(
    "exp",
    [1e300, 10**20, 10**400, 2**33 + 0.5],
    ids=["a large float", "far away", "no float", "a part of a second"],
)
async def test_an_odd_time_at_which_a_jwt_runs_out_is_borne(base: str, exp: float) -> None:
    async with client_of(base, ISSUER_OF_TESTS.token(exp=exp)) as client:
        session = (await client.session())["id"]
        path, accept = f"/v1/sessions/{session}/events", {"accept": "text/event-stream"}
        async with (
            socket_of(client, session) as socket,
            client.http.stream("GET", path, headers=accept) as stream,
        ):
            await socket.joined()
            lines = stream.aiter_lines()
            while not (line := await within(anext(lines))).startswith("data:"):
                pass

    assert "task_queued" in line


async def test_without_an_issuer_no_jwt_counts(settings: Settings, db: Database) -> None:
    async with (
        serving(settings.model_copy(update={"auth": "required"})) as base,
        client_of(base, ISSUER_OF_TESTS.token()) as client,
    ):
        assert (await client.http.get("/v1/sessions")).status_code == 401


class KeyServer:
    """Serves a JWK set over HTTP."""

    def __init__(self) -> None:
        self.content = ""
        self.requests = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks"

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.requests += 1
        status = "200 OK" if self.content else "500 Oops"
        body = self.content.encode()
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()


async def test_keys_from_a_url_are_read_once_and_again_for_an_unknown_key(
    guarded: Settings, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "SigningKeys", partial(SigningKeys, retry_seconds=600))
    keys = KeyServer()
    keys.content = json.dumps({"keys": [json.loads(ISSUER_OF_TESTS.jwks())["keys"][1]]})
    async with keys.running() as url, serving(guarded.model_copy(update={"jwt_jwks": url})) as base:
        for _ in range(3):
            async with client_of(base, ISSUER_OF_TESTS.token()) as client:
                assert (await client.http.get("/v1/sessions")).status_code == 200
        asked_for_good_ones = keys.requests
        for _ in range(5):
            async with client_of(base, ISSUER_OF_TESTS.token(kid="rsa")) as client:
                assert (await client.http.get("/v1/sessions")).status_code == 401

    assert asked_for_good_ones == 1
    assert keys.requests == 1  # not asked again within the first seconds


async def test_an_issuer_that_is_away_is_no_refusal(guarded: Settings, db: Database) -> None:
    keys = KeyServer()
    async with (
        keys.running() as url,
        serving(guarded.model_copy(update={"jwt_jwks": url})) as base,
        client_of(base, ISSUER_OF_TESTS.token()) as client,
    ):
        response = await client.http.get("/v1/sessions")

    assert response.status_code == 503
    assert response.json()["code"] == "unavailable"


# Other people's things


async def test_other_peoples_things_are_not_there(
    ann: Client, bob: Client, guarded: Settings, db: Database
) -> None:
    session = await ann.session(key="mine")
    task_id, character_id = session["task_id"], session["character_id"]
    path = f"/v1/sessions/{session['id']}"
    requests = [
        ("GET", path, None),
        ("DELETE", path, None),
        ("GET", f"{path}/events", None),
        ("GET", f"{path}/messages", None),
        ("POST", f"{path}/actions", {"type": "say", "text": "Hello"}),
        ("POST", f"{path}/cancel", {"client_action_id": "a"}),
        ("GET", f"/v1/tasks/{task_id}", None),
        ("GET", f"/v1/tasks/{task_id}?wait=5", None),
        ("POST", f"/v1/tasks/{task_id}/cancel", None),
        ("GET", f"/api/story/status/{task_id}", None),
        ("GET", f"/v1/characters/{character_id}", None),
        ("PATCH", f"/v1/characters/{character_id}", {"name": "Taken"}),
        ("DELETE", f"/v1/characters/{character_id}", None),
    ]
    answers = [await bob.http.request(method, path, json=body) for method, path, body in requests]
    stream = await bob.http.get(f"{path}/events", headers={"Accept": "text/event-stream"})
    with_character = await bob.http.post(
        "/v1/sessions", json={"agent": "companion", "character_id": character_id}
    )
    unknown = await bob.http.get(f"/v1/sessions/{uuid4()}")

    assert [answer.status_code for answer in answers] == [404] * len(requests)
    assert [answer.json()["code"] for answer in answers] == ["not_found"] * len(requests)
    assert stream.status_code == 404
    assert with_character.status_code == 422
    assert answers[0].json() == unknown.json()
    assert (await ann.http.get(path)).json()["status"] == "queued"
    assert (await bob.http.get("/v1/sessions")).json()["sessions"] == []
    assert (await bob.http.get("/v1/characters")).json()["characters"] == []


async def test_a_page_can_not_begin_after_another_users_session(ann: Client, bob: Client) -> None:
    theirs = await ann.session()
    await bob.session()
    of_theirs = await bob.http.get("/v1/sessions", params={"before": theirs["id"]})
    of_none = await bob.http.get("/v1/sessions", params={"before": str(uuid4())})

    assert (of_theirs.status_code, of_theirs.json()) == (422, of_none.json())


async def test_the_same_key_names_each_users_own_session(ann: Client, bob: Client) -> None:
    first, second = await ann.session(key="home"), await bob.session(key="home")

    assert first["id"] != second["id"]


async def test_a_socket_on_anothers_session_closes_with_4404(ann: Client, bob: Client) -> None:
    session = await ann.session()
    async with socket_of(bob, session["id"]) as socket:
        assert await socket.closed() == 4404


async def test_one_users_sockets_leave_room_for_others(
    guarded: Settings, db: Database, ann: Client, bob: Client
) -> None:
    few = guarded.model_copy(update={"max_sockets_per_user": 1})
    session, other = await ann.session(), await bob.session()
    async with serving(few) as url:
        ann.url = bob.url = url
        async with socket_of(ann, session["id"]) as first:
            await first.joined()  # else the second one's ticket might be redeemed first
            async with (
                socket_of(ann, session["id"]) as second,
                socket_of(bob, other["id"]) as third,
            ):
                assert await second.closed() == 4429
                await third.joined()


async def test_a_socket_can_not_cancel_anothers_task(ann: Client, bob: Client) -> None:
    theirs, own = await ann.session(), await bob.session()
    async with socket_of(bob, own["id"]) as socket:
        await socket.send({"type": "cancel", "task_id": theirs["task_id"]})
        assert (await socket.receive())["error"]["code"] == "not_found"


# Tickets


async def test_a_ticket_opens_one_socket(ann: Client, guarded: Settings, db: Database) -> None:
    session = await ann.session()
    made = (await ann.http.post("/v1/ws-tickets")).json()
    redis = connect_redis(guarded)
    kept = str(await redis.keys("fireside:ticket:*"))
    await redis.aclose()
    async with socket_of(ann, session["id"], made["ticket"]) as socket:
        await socket.send({"type": "action", "id": "a", "action": {"type": "continue"}})
        assert {f["type"] for f in [await socket.receive(), await socket.receive()]} == {
            "ack",
            "task_queued",
        }
    async with socket_of(ann, session["id"], made["ticket"]) as socket:
        assert await socket.closed() == 4401

    assert made["expires_in"] == 30
    assert "fireside:ticket:" in kept
    assert made["ticket"] not in kept


async def test_without_a_good_ticket_a_socket_closes_with_4401(ann: Client) -> None:
    session = await ann.session()
    frames: list[Any] = [
        {"type": "auth", "ticket": "unknown"},
        {"type": "auth", "ticket": "x" * 201},
        {"type": "auth", "ticket": None},
        {"type": "auth"},
        {"type": "pong"},
        {"type": "action", "id": "a", "action": {"type": "continue"}},
        "text",
    ]
    for frame in frames:
        async with opened(
            f"{ann.url.replace('http', 'ws', 1)}/ws/sessions/{session['id']}"
        ) as connection:
            socket = Socket(connection)
            await socket.send(frame)
            assert await socket.closed() == 4401, frame

    assert len(await ann.log(session["id"])) == 1


# Origins


async def test_a_foreign_page_may_not_act(ann: Client) -> None:
    session = await ann.session()
    for origin in (
        "https://evil.example",
        "http://127.0.0.1:1",
        "null",
        "https://play.example.evil.example",
        "file://",
        "",
        "http://[broken",
    ):
        headers = {"Origin": origin}
        posted = await ann.http.post("/v1/ws-tickets", headers=headers)
        preflight = await ann.http.options(
            "/v1/sessions", headers=headers | {"Access-Control-Request-Method": "POST"}
        )
        read = await ann.http.get("/v1/sessions", headers=headers)
        async with socket_of(ann, session["id"], "any", additional_headers=headers) as socket:
            code = await socket.closed()

        assert (posted.status_code, posted.json()["code"]) == (403, "forbidden_origin"), origin
        assert preflight.status_code == 403, origin
        assert "access-control-allow-origin" not in read.headers
        assert code == 4403, origin


async def test_an_allowed_page_may_use_every_method_that_a_route_has(
    ann: Client, guarded: Settings
) -> None:
    headers = {"Origin": "https://play.example", "Access-Control-Request-Method": "PUT"}
    preflight = await ann.http.options("/v1/characters/x/soul", headers=headers)
    documented = create_app(guarded).openapi()["paths"].values()
    methods = {method.upper() for path in documented for method in path}

    assert set(preflight.headers["access-control-allow-methods"].split(", ")) == methods


async def test_an_allowed_page_may(ann: Client) -> None:
    session = await ann.session()
    headers = {"Origin": "https://play.example"}
    posted = await ann.http.post("/v1/ws-tickets", headers=headers)
    preflight = await ann.http.options(
        "/v1/sessions", headers=headers | {"Access-Control-Request-Method": "POST"}
    )
    missing = await ann.http.get(f"/v1/sessions/{uuid4()}", headers=headers)
    async with http_client(ann.url) as stranger:
        refused = await stranger.get("/v1/sessions", headers=headers)
    async with socket_of(
        ann, session["id"], posted.json()["ticket"], additional_headers=headers
    ) as socket:
        await socket.joined()

    assert preflight.status_code == 204
    assert "Authorization" in preflight.headers["access-control-allow-headers"]
    for response in (posted, preflight, missing, refused):
        assert response.headers["access-control-allow-origin"] == "https://play.example"
        assert "Origin" in response.headers["vary"]


async def test_the_own_page_always_may(ann: Client) -> None:
    session = await ann.session()
    headers = {"Origin": ann.url}
    posted = await ann.http.post("/v1/ws-tickets", headers=headers)
    async with socket_of(
        ann, session["id"], posted.json()["ticket"], additional_headers=headers
    ) as socket:
        await socket.joined()

    assert posted.status_code == 200
    assert "access-control-allow-origin" not in posted.headers


async def test_a_foreign_page_may_not_act_without_access_control_either(client: Client) -> None:
    session = await client.session()
    evil = {"Origin": "https://evil.example"}
    response = await client.http.post(f"/v1/tasks/{session['task_id']}/cancel", headers=evil)

    assert response.status_code == 403


# Loopback


async def test_without_access_control_only_loopback_is_answered(client: Client) -> None:
    for host in (
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "[::2]:80",
        "::",
        "",
    ):
        for path in ("/v1/sessions", "/", "/metrics", "/healthz", "/docs"):
            response = await client.http.get(path, headers={"Host": host})
            assert response.status_code == 401, (host, path)


async def test_a_socket_by_a_name_that_was_rebound_to_loopback_is_refused(client: Client) -> None:
    session = await client.session()
    with sockets.create_connection(("127.0.0.1", int(client.url.rpartition(":")[2]))) as raw:
        url = f"ws://evil.example/ws/sessions/{session['id']}"
        origin = {"Origin": "http://evil.example"}
        async with opened(url, sock=raw, additional_headers=origin) as connection:
            assert await Socket(connection).closed() == 4403


async def test_every_name_of_loopback_is_answered(client: Client) -> None:
    for host in ("localhost", "127.0.0.1:80", "127.8.9.1", "[::1]:8000", "LOCALHOST:1"):
        response = await client.http.get("/v1/sessions", headers={"Host": host})
        assert response.status_code == 200, host


async def test_metrics_are_for_this_machine_and_no_user(ann: Client, base: str) -> None:
    async with http_client(base) as http:
        near = await http.get("/metrics")
        far = await http.get("/metrics", headers={"Host": "fireside.example"})
        behind_a_proxy = await http.get("/metrics", headers={"X-Forwarded-For": "203.0.113.9"})
    with_token = await ann.http.get("/metrics", headers={"Host": "fireside.example"})

    assert near.status_code == 200
    assert "fireside_http_requests_total" in near.text
    for refused in (far, behind_a_proxy, with_token):
        assert (refused.status_code, refused.json()["code"]) == (404, "not_found")


async def test_no_secret_is_logged(
    base: str, db: Database, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    _, key = await api_keys.create(db, "ann")
    token = ISSUER_OF_TESTS.token()
    async with client_of(base, key) as client, client_of(base, token) as other:
        session = await client.session()
        await other.session()
        ticket = (await client.http.post("/v1/ws-tickets")).json()["ticket"]
        async with socket_of(client, session["id"], ticket) as socket:
            await socket.joined()
        await client.http.get("/v1/sessions", headers=bearer(key + "x"))
    written = caplog.text + "".join(capfd.readouterr())

    for secret in (key, token, ticket):
        assert secret not in written


async def test_many_users_work_beside_each_other(base: str, db: Database) -> None:
    tokens = [ISSUER_OF_TESTS.token(sub=f"user-{number}") for number in range(20)]

    async def sessions_of(token: str) -> int:
        async with client_of(base, token) as client:
            await client.session()
            return len((await client.http.get("/v1/sessions")).json()["sessions"])

    assert await asyncio.gather(*map(sessions_of, tokens)) == [1] * 20
