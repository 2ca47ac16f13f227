"""The gateway as a process of its own: how it starts, how it stops, what it costs."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from api import keys
from api.__main__ import main
from api.socket import MAX_FRAME
from deploy.local.server import ROOT
from shared.records import NewEvent
from shared.settings import get_settings
from tests.api.clients import Client, Socket, opened
from tests.api.processes import Start
from tests.api.worker import FakeWorker
from tests.clients import http_client
from tests.waiting import PATIENCE


@pytest.mark.parametrize("how", ["api", "uvicorn"])
async def test_a_stop_lets_everyone_go(start: Start, how: str, worker: FakeWorker) -> None:
    gateway = start(how, FIRESIDE_DRAIN_SECONDS="60")
    async with http_client(gateway.url) as http:
        client = Client(http, gateway.url)
        session = await client.session()
        events = f"/v1/sessions/{session['id']}/events"
        stream_headers = {"Accept": "text/event-stream"}
        waiting = asyncio.create_task(http.get(f"/v1/tasks/{session['task_id']}?wait=30"))
        async with (
            client.socket(session["id"]) as socket,
            http.stream("GET", events, headers=stream_headers) as stream,
        ):
            await socket.joined()
            lines = stream.aiter_lines()
            assert await anext(lines) == "retry: 1000"
            claim = await worker.start(session["id"])
            await worker.write(claim, NewEvent("agent_start", {}))
            await socket.until("agent_start")
            while not (await anext(lines)).startswith('data: {"seq":3'):
                pass
            gateway.signal(signal.SIGTERM)
            code = await socket.closed()
            rest = [line async for line in lines]
            task = (await waiting).json()
        # Its time to drain is longer.
        ended = await asyncio.to_thread(gateway.wait, PATIENCE)

    assert code == 1012
    assert rest == [""]
    assert task["status"] == "running"
    assert ended
    assert gateway.returncode in {0, -signal.SIGTERM}
    assert gateway.complaints() == []


@pytest.mark.parametrize("how", ["api", "uvicorn"])
def test_ctrl_c_is_an_orderly_end(start: Start, how: str) -> None:
    gateway = start(how)

    gateway.signal(signal.SIGINT)

    assert gateway.wait(PATIENCE)
    assert (gateway.returncode, gateway.complaints()) == (0, [])


@pytest.mark.parametrize("how", ["api", "uvicorn"])
async def test_the_limit_of_frames_holds_however_it_is_started(start: Start, how: str) -> None:
    gateway = start(how)
    async with http_client(gateway.url) as http:
        session = await Client(http, gateway.url).session()
    address = f"{gateway.url.replace('http', 'ws', 1)}/ws/sessions/{session['id']}"
    for content in ("x" * (MAX_FRAME + 1), "ü" * (MAX_FRAME // 2 + 1)):
        async with opened(address) as connection:
            await connection.send(content)
            assert await Socket(connection).closed() == 1009
    async with opened(address) as connection:
        await connection.send("ü" * (MAX_FRAME // 2))
        assert (await Socket(connection).receive())["error"]["code"] == "invalid_json"


async def test_a_request_that_hangs_does_not_hold_up_the_stop(start: Start) -> None:
    gateway = start(FIRESIDE_DRAIN_SECONDS="1")
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(
        b"POST /v1/sessions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Content-Length: 100\r\n\r\n{"
    )
    await writer.drain()
    async with http_client(gateway.url) as http:
        await http.get("/healthz")
    gateway.signal(signal.SIGTERM)
    assert await asyncio.to_thread(gateway.wait, PATIENCE)
    writer.close()
    await reader.read()


def run(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        env={**os.environ, **env},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("command", [("api",), ("uvicorn", "api.app:app", "--port", "0")])
def test_a_wrong_setting_is_one_clear_line(command: tuple[str, ...]) -> None:
    done = run(*command, DATABASE_URL="mysql://root:secret@db/x")

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == ("fireside: DATABASE_URL: must begin with postgresql://")
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr


@pytest.fixture
def fresh_settings() -> Iterator[None]:
    """Commands that run in this process read the environment anew."""
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"FIRESIDE_HOST": "0.0.0.0"}, "FIRESIDE_AUTH: `none` works only with a loopback"),
        ({"FIRESIDE_HOST": "::"}, "FIRESIDE_AUTH: `none` works only with a loopback"),
        ({"PORT": "http"}, "PORT: must be a number"),
        ({"PORT": "65536"}, "PORT: must be a number"),
        ({"FIRESIDE_AUTH": "required", "FIRESIDE_HOST": "203.0.113.1"}, "can't listen on"),
        ({"FIRESIDE_HOST": "127.0.0.1", "PORT": "taken"}, "Address already in use"),
        ({"FIRESIDE_JWT_JWKS": "keys.json"}, "needs FIRESIDE_JWT_ISSUER"),
    ],
)
@pytest.mark.usefixtures("fresh_settings")
def test_an_address_that_can_not_be_is_one_clear_line(
    env: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for name, value in {"FIRESIDE_AUTH": "none", **env}.items():
            monkeypatch.setenv(name, port if value == "taken" else value)
        code = main()
    written = capsys.readouterr().err

    assert code == 1
    assert len(written.splitlines()) == 1
    assert message in written


@pytest.mark.usefixtures("settings", "fresh_settings")
def test_keys_are_made_listed_and_revoked(capsys: pytest.CaptureFixture[str]) -> None:
    def run_keys(*arguments: str) -> tuple[int, str]:
        code = keys.main(list(arguments))
        return code, capsys.readouterr().out

    made, shown = run_keys("create", "ann", "--label", "laptop")
    _, key_id, _, key = shown.split()
    listed, all_keys = run_keys("list")
    revoked, _ = run_keys("revoke", "ann", key_id)
    again, _ = run_keys("revoke", "ann", key_id)

    assert made == listed == revoked == 0
    assert again == 1
    assert key.startswith("fs_")
    assert key_id in all_keys
    assert "active" in all_keys
    assert "laptop" in all_keys
    assert key not in all_keys
    assert "revoked" in run_keys("list", "ann")[1]
    assert run_keys("list", "bob") == (0, "")


@pytest.mark.parametrize(
    "arguments", [["create", "a b"], ["create", ""], ["create", "x" * 129], ["list", "ann\n"]]
)
@pytest.mark.usefixtures("settings", "fresh_settings")
def test_a_user_that_can_not_be_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert keys.main(arguments) == 1
    assert capsys.readouterr().err.startswith("fireside: a user id has")
