"""Crowds of sockets on a real gateway process: that read nothing, and that come and go."""

import asyncio
import contextlib
import re
import resource
import signal
import socket as sockets
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
import redis

from shared.records import NewEvent
from shared.settings import Settings
from tests.api.clients import Client
from tests.api.processes import Gateway, Start
from tests.api.worker import FakeWorker
from tests.clients import http_client
from tests.waiting import PATIENCE, until, within

SILENT = 1000
AT_ONCE = 50
PIECES = 40
PIECE = "x" * 8192


@pytest.fixture(autouse=True)
def many_files() -> Iterator[None]:
    """As many open files as a crowd needs, for this process and for those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@asynccontextmanager
async def client_of(gateway: Gateway) -> AsyncIterator[Client]:
    async with http_client(gateway.url) as http:
        yield Client(http, gateway.url)


def megabytes(gateway: Gateway) -> float:
    """The gateway's memory."""
    text = Path(f"/proc/{gateway.pid}/smaps_rollup").read_text(encoding="ascii")
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def open_files(gateway: Gateway) -> int:
    return sum(1 for _ in Path(f"/proc/{gateway.pid}/fd").iterdir())


async def figure(client: Client, name: str) -> float:
    """One figure of the gateway's page; 0 where it has none yet."""
    page = (await client.http.get("/metrics")).text
    found = re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def until_figure(client: Client, name: str, value: float) -> None:
    async def has_come() -> bool:
        return await figure(client, name) == value

    await until(has_come, seconds=4 * PATIENCE)


async def raw_socket(gateway: Gateway, session_id: str) -> sockets.socket:
    """A WebSocket that was opened, and of which nothing more is read; little fits into it."""
    raw = sockets.socket()
    raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    raw.setblocking(False)
    try:
        await _open(raw, gateway, session_id)
    except BaseException:
        raw.close()
        raise
    return raw


async def _open(raw: sockets.socket, gateway: Gateway, session_id: str) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_connect(raw, ("127.0.0.1", gateway.port))
    await loop.sock_sendall(
        raw,
        f"GET /ws/sessions/{session_id}?after=0 HTTP/1.1\r\n"
        "Host: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode(),
    )
    assert await loop.sock_recv(raw, 12) == b"HTTP/1.1 101"


@asynccontextmanager
async def silent_sockets(
    gateway: Gateway, session_id: str, count: int
) -> AsyncIterator[list[sockets.socket]]:
    """So many sockets of a session that read nothing.

    Many are opened at once, for thousands one after the other take a busy machine minutes.
    """
    with ExitStack() as stack:
        silent: list[sockets.socket] = []
        while len(silent) < count:
            more = min(AT_ONCE, count - len(silent))
            made = await asyncio.gather(*(raw_socket(gateway, session_id) for _ in range(more)))
            silent += [stack.enter_context(one) for one in made]
        yield silent


async def rest_of(raw: sockets.socket) -> bytes:
    """What was on its way to a socket, up to its close."""
    loop = asyncio.get_running_loop()
    pieces = b""
    while b"\x88" not in pieces[-128:] and (piece := await loop.sock_recv(raw, 65536)):
        pieces += piece
    return pieces


async def test_sockets_that_never_read(start: Start, worker: FakeWorker) -> None:
    # Patient: what is on its way to a client that was closed is kept until we come to read it.
    gateway = start("patient", FIRESIDE_SEND_SECONDS="1", FIRESIDE_MAX_SOCKETS="2000")
    async with client_of(gateway) as client:
        session = await client.session()
        claim = await worker.start(session["id"])
        async with (
            client.socket(session["id"]) as reader,
            silent_sockets(gateway, session["id"], SILENT) as silent,
        ):
            await reader.joined()
            await until_figure(client, "fireside_streams_open", SILENT + 1)
            before = peak = megabytes(gateway)
            for number in range(PIECES):
                await worker.stream(claim, 0, number * len(PIECE), PIECE)
                frame = await reader.receive()
                assert frame["offset"] == number * len(PIECE)
                peak = max(peak, megabytes(gateway))
            await until_figure(client, 'fireside_sockets_closed_total{code="4408"}', SILENT)
            await worker.stream(claim, 1, 0, "Still here")
            still = await reader.receive()
            told = await rest_of(silent[0])
        await until_figure(client, "fireside_streams_open", 0)

        async def memory_is_back() -> bool:
            return megabytes(gateway) < before + 40

        await until(memory_is_back)

    assert still["delta"] == "Still here"
    assert told.endswith((4408).to_bytes(2) + b"too slow")
    assert peak - before < SILENT * 0.25


async def test_who_does_not_take_its_close_either_is_thrown_out(
    start: Start, worker: FakeWorker
) -> None:
    gateway = start("api", FIRESIDE_SEND_SECONDS="0.3")
    async with client_of(gateway) as client:
        session = await client.session()
        claim = await worker.start(session["id"])
        async with (
            client.socket(session["id"]) as reader,
            silent_sockets(gateway, session["id"], 50),
        ):
            await reader.joined()
            await until_figure(client, "fireside_streams_open", 51)
            files = open_files(gateway)
            for number in range(PIECES):
                await worker.stream(claim, 0, number * len(PIECE), PIECE)
                await reader.receive()

            async def all_are_out() -> bool:
                return open_files(gateway) <= files - 40  # connections to servers come and go

            await until(all_are_out)
            assert await figure(client, 'fireside_sockets_closed_total{code="4408"}') == 50


async def test_pings_of_a_client_that_takes_no_answer_are_not_piled_up(start: Start) -> None:
    gateway = start("patient", FIRESIDE_PING_SECONDS="120", FIRESIDE_SEND_SECONDS="300")
    async with client_of(gateway) as client:
        session = await client.session()
        with await raw_socket(gateway, session["id"]) as raw:
            await until_figure(client, "fireside_frames_sent_total", 1)
            before = megabytes(gateway)
            loop = asyncio.get_running_loop()
            for _ in range(500):
                await loop.sock_sendall(raw, (b"\x89\xfd\0\0\0\0" + b"x" * 125) * 500)
            await loop.sock_sendall(raw, b"\x89\x84\0\0\0\0last")
            grown = megabytes(gateway) - before
            answers = b""
            while not answers.endswith(b"\x8a\x04last"):
                answers = answers[-8:] + await within(loop.sock_recv(raw, 65536))

    assert grown < 15
    assert gateway.complaints() == []


async def test_who_closes_and_takes_no_rest_does_not_hold_up_the_stop(
    start: Start, worker: FakeWorker
) -> None:
    gateway = start("api", FIRESIDE_DRAIN_SECONDS=str(4 * PATIENCE))
    async with client_of(gateway) as client:
        session = await client.session()
        claim = await worker.start(session["id"])
        big = {"message": {"role": "tool", "content": "x" * 8_000_000}}
        await worker.write(claim, NewEvent("message_end", big))
        with await raw_socket(gateway, session["id"]) as raw:
            await until_figure(client, "fireside_frames_sent_total", 3)
            await asyncio.get_running_loop().sock_sendall(raw, b"\x88\x80\0\0\0\0")
            await until_figure(client, "fireside_streams_open", 0)
            gateway.signal(signal.SIGTERM)
            ended = await asyncio.to_thread(gateway.wait, PATIENCE)

    assert ended
    assert gateway.complaints() == []


async def test_500_sockets_a_second_that_come_and_go(
    start: Start, redis_url: str, settings: Settings
) -> None:
    gateway = start("api")
    async with client_of(gateway) as client:
        made = [(await client.session())["id"] for _ in range(20)]
        sessions = [*made, "00000000-0000-4000-8000-000000000000", "no-id"]

        async def come_and_go(number: int) -> None:
            with contextlib.suppress(OSError):
                raw = await raw_socket(gateway, sessions[number % len(sessions)])
                if number % 3 == 0:
                    await asyncio.get_running_loop().sock_recv(raw, 4096)
                raw.close()

        async def round_of(count: int) -> None:
            loop = asyncio.get_running_loop()
            began = loop.time()
            async with asyncio.TaskGroup() as tasks:
                for number in range(count):
                    tasks.create_task(come_and_go(number))
                    await asyncio.sleep(began + number / 500 - loop.time())

        await round_of(200)
        await until_figure(client, "fireside_streams_open", 0)
        files, memory = open_files(gateway), megabytes(gateway)
        crowd = asyncio.create_task(round_of(1500))
        slowest = 0.0
        while not crowd.done():
            began = asyncio.get_running_loop().time()
            await client.act(made[0])
            slowest = max(slowest, asyncio.get_running_loop().time() - began)
            await asyncio.sleep(0.05)
        await crowd
        await until_figure(client, "fireside_streams_open", 0)
        with redis.Redis.from_url(redis_url) as server:

            async def none_is_left() -> bool:
                return not server.pubsub_channels("fireside:session:*")

            await until(none_is_left)

        print(f"the slowest answer beside the crowd took {slowest:.2f} s")
        assert slowest < 10
        await until(lambda: open_files(gateway) <= files + 5)
        await until(lambda: megabytes(gateway) < memory + 15)
        async with client.socket(made[1], after=0) as socket:
            assert (await socket.receive())["seq"] == 1
    assert gateway.complaints() == []
