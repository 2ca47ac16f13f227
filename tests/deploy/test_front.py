"""nginx in front of two real gateways: what passes through it, and what happens when one dies."""

import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Origin

from api.__main__ import KEEP_ALIVE_SECONDS
from api.limits import MAX_BODY
from deploy.local.fleet import Fleet, Gateway
from deploy.local.process import run
from deploy.models.control import ScriptedModel
from shared.settings import Settings
from shared.store import api_keys
from shared.store.database import Database
from tests.acceptance.player import Frame, Player, ended
from tests.deploy.container_files import CONTAINER, seconds
from tests.deploy.front import Front
from tests.nursery import BornFleet
from tests.waiting import until


class KeyedPlayer(Player):
    """A player as a browser is one: with an origin, and a ticket for each WebSocket."""

    @asynccontextmanager
    async def socket(self) -> AsyncIterator[ClientConnection]:
        ticket = (await self.http.post("/v1/ws-tickets")).json()["ticket"]
        base = str(self.http.base_url).rstrip("/")
        url = f"{base.replace('http', 'ws', 1)}/ws/sessions/{self.id}?after={self.after}"
        async with connect(url, origin=Origin(base), proxy=None) as socket:
            await socket.send(json.dumps({"type": "auth", "ticket": ticket}))
            yield socket


@pytest.fixture
def fleet(
    tmp_path: Path, postgres_url: str, redis_url: str, scripted_model: ScriptedModel
) -> Iterator[Fleet]:
    """Two gateways that ask for keys, as in the compose file."""
    with BornFleet(
        tmp_path,
        postgres=postgres_url,
        redis=redis_url,
        model=scripted_model.url,
        model_path="direct",
        auth="required",
    ) as fleet:
        fleet.add_gateway()
        fleet.add_gateway()
        yield fleet
        # An orderly end of a worker takes a second and more.
        for child in [*fleet.workers, *fleet.gateways]:
            child.kill()


@pytest.fixture
def front(fleet: Fleet, tmp_path: Path) -> Iterator[Front]:
    with Front([gateway.url for gateway in fleet.gateways], tmp_path) as front:
        yield front


@pytest.fixture
async def http(front: Front, db: Database) -> AsyncIterator[httpx.AsyncClient]:
    _, key = await api_keys.create(db, "ada")
    headers = {"Authorization": f"Bearer {key}", "Origin": front.url}
    async with httpx.AsyncClient(
        base_url=front.url, headers=headers, timeout=30, trust_env=False
    ) as client:
        yield client


async def holder_of_the_stream(fleet: Fleet) -> Gateway:
    """The one gateway that has a stream open, once all have noticed which were closed."""
    holders: list[Gateway] = []
    async with httpx.AsyncClient(trust_env=False, timeout=30) as direct:

        async def is_alone() -> bool:
            told = [(await direct.get(f"{one.url}/metrics")).text for one in fleet.gateways]
            holders[:] = [
                gateway
                for gateway, figures in zip(fleet.gateways, told, strict=True)
                if "fireside_streams_open 1.0" in figures
            ]
            return sum("fireside_streams_open 0.0" not in one for one in told) == len(holders) == 1

        await until(is_alone)
    return holders[0]


async def frames_to_the_end(socket: ClientConnection) -> AsyncIterator[Frame]:
    with contextlib.suppress(ConnectionClosed):
        while True:
            yield json.loads(await socket.recv())


def test_nginx_accepts_the_configuration(tmp_path: Path) -> None:
    code, output = run(Front(["http://127.0.0.1:1", "http://127.0.0.1:2"], tmp_path).check())

    assert code == 0, output
    assert "test is successful" in output[-1]


def test_its_times_fit_the_gateway() -> None:
    text = (CONTAINER / "nginx.conf").read_text()
    (kept,) = re.findall(r"^\s+keepalive_timeout (\S+);", text, re.MULTILINE)
    (read,) = re.findall(r"proxy_read_timeout (\S+);", text)
    longest_silence = max(
        bound
        for one in Settings.model_fields["ping_seconds"].metadata
        if (bound := getattr(one, "le", None)) is not None
    )

    assert seconds(kept) < KEEP_ALIVE_SECONDS
    assert seconds(read) > longest_silence
    assert re.findall(r"client_max_body_size (\d+)m", text) == [str(MAX_BODY * 4 // 2**20)]


async def test_a_play_through_websocket_and_event_stream(
    fleet: Fleet, http: httpx.AsyncClient
) -> None:
    fleet.add_worker()
    player = await KeyedPlayer.begin(http, agent="story", story="last-lamp")
    opening = await player.result(player.opening)
    streamed: list[Frame] = []
    url, accept = f"/v1/sessions/{player.id}/events", {"Accept": "text/event-stream"}
    async with http.stream("GET", url, headers=accept) as stream, player.socket() as socket:
        choice = {"type": "choose", "choice_id": opening["choices"][0]["id"]}
        await socket.send(json.dumps({"type": "action", "id": "first", "action": choice}))
        frame: Frame = {}
        while frame.get("type") != "ack":
            frame = json.loads(await socket.recv())
            player.take(frame)
        await player.until_ended(frame["task_id"])
        async for line in stream.aiter_lines():
            if line.startswith("data: ") and "seq" in (event := json.loads(line[6:])):
                streamed.append(event)
                if frame["task_id"] in ended(streamed):
                    break

    assert [event["seq"] for event in streamed] == list(range(1, len(streamed) + 1))
    assert streamed == player.events
    assert list(ended(streamed)) == [player.opening, frame["task_id"]]


async def test_when_a_gateway_dies_its_clients_go_on_at_the_other(
    fleet: Fleet, http: httpx.AsyncClient
) -> None:
    fleet.add_worker()
    player = await KeyedPlayer.begin(http, agent="story", story="last-lamp")
    opening = await player.result(player.opening)
    player.after = 0
    player.events.clear()
    async with player.socket() as socket:
        player.take(json.loads(await socket.recv()))
        killed = await holder_of_the_stream(fleet)
        killed.kill()
        async for frame in frames_to_the_end(socket):
            player.take(frame)
    choice = {"type": "choose", "choice_id": opening["choices"][0]["id"]}
    task = (await player.act(choice, key="after-the-fall"))["task_id"]
    await player.until_ended(task)

    assert [event["type"] for event in ended(player.events)[task]] == ["task_completed"]
    assert [event["seq"] for event in player.events] == list(range(1, len(player.events) + 1))
    assert [one for one in fleet.gateways if not one.alive] == [killed]


async def test_the_gateway_is_asked_under_the_name_that_the_browser_knows(
    http: httpx.AsyncClient,
) -> None:
    own = await http.post("/v1/ws-tickets")
    foreign = await http.post("/v1/ws-tickets", headers={"Origin": "https://elsewhere.example"})

    assert own.status_code == 200
    assert (foreign.status_code, foreign.json()["code"]) == (403, "forbidden_origin")


async def test_a_body_that_is_too_large_is_refused_by_the_gateway(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/sessions", content=b"x" * (MAX_BODY + 1))

    assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")


async def test_metrics_are_not_for_outside(http: httpx.AsyncClient) -> None:
    assert (await http.get("/metrics")).status_code == 404
