"""The event log over HTTP: pages, and the stream."""

import asyncio
import json
import socket as sockets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from shared.records import NewEvent
from shared.settings import Settings
from shared.store.database import Database
from tests.api.clients import TERMINAL, Client
from tests.api.conftest import serving
from tests.api.frames import validator
from tests.api.worker import FakeWorker
from tests.waiting import until


class Stream:
    """Server-sent events, read as the standard says."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()

    async def next(self) -> tuple[str | None, dict[str, Any]]:
        """The next event's id and frame."""
        event_id, data = None, ""
        async for line in self._lines:
            name, _, value = line.partition(": ")
            if name == "id":
                event_id = value
            elif name == "data":
                data += value
            elif not line and data:
                frame = json.loads(data)
                validator("ServerFrame").validate(frame)
                return event_id, frame
        raise EOFError

    async def until_end(self) -> list[tuple[str | None, dict[str, Any]]]:
        """Events up to and with the first that ends a task."""
        events = [await self.next()]
        while events[-1][1]["type"] not in TERMINAL:
            events.append(await self.next())
        return events


@asynccontextmanager
async def stream_of(
    client: Client, session_id: str, query: str = "", headers: dict[str, str] | None = None
) -> AsyncIterator[Stream]:
    accept = {"Accept": "text/event-stream"} | (headers or {})
    url = f"{client.url}/v1/sessions/{session_id}/events{query}"
    async with client.http.stream("GET", url, headers=accept) as response:
        yield Stream(response)


async def test_the_log_comes_in_pages(client: Client, worker: FakeWorker) -> None:
    session = await client.session()
    await worker.answer(session["id"])
    path = f"/v1/sessions/{session['id']}/events"
    first = (await client.http.get(path, params={"limit": 2})).json()
    second = (await client.http.get(path, params={"limit": 200, "after": 2})).json()
    beyond = (await client.http.get(path, params={"after": 99})).json()

    assert (first["head_seq"], first["first_seq"]) == (5, 1)
    assert [event["seq"] for event in first["events"]] == [1, 2]
    assert [event["seq"] for event in second["events"]] == [3, 4, 5]
    assert beyond["events"] == []
    for event in first["events"] + second["events"]:
        validator("EventFrame").validate(event)


async def test_a_stream_gives_the_log_and_goes_on(client: Client, worker: FakeWorker) -> None:
    session = await client.session()
    async with stream_of(client, session["id"]) as stream:
        queued = await stream.next()
        await worker.answer(session["id"], "Hi!")
        events = await stream.until_end()

    assert stream.response.headers["content-type"].startswith("text/event-stream")
    assert stream.response.headers["cache-control"] == "no-store"
    assert [(number, frame["type"]) for number, frame in (queued, *events)] == [
        ("1", "task_queued"),
        ("2", "task_started"),
        ("3", "agent_start"),
        (None, "message_update"),
        (None, "message_update"),
        ("4", "message_end"),
        ("5", "task_completed"),
    ]


async def test_a_stream_goes_on_behind_the_last_event_id(
    client: Client, worker: FakeWorker
) -> None:
    session = await client.session()
    await worker.answer(session["id"])
    seen = {"Last-Event-ID": "3"}
    async with stream_of(client, session["id"], "?after=1", seen) as stream:
        after_the_header = await stream.until_end()
    async with stream_of(client, session["id"], "?after=4") as stream:
        after_the_query = await stream.until_end()

    assert [number for number, _ in after_the_header] == ["4", "5"]
    assert [number for number, _ in after_the_query] == ["5"]


async def test_a_stream_that_is_idle_gets_comments(
    settings: Settings, db: Database, client: Client
) -> None:
    session = await client.session()
    async with (
        serving(settings.model_copy(update={"ping_seconds": 0.05})) as url,
        stream_of(Client(client.http, url), session["id"], "?after=1") as stream,
    ):
        lines = stream.response.aiter_lines()
        found = [await anext(lines) for _ in range(5)]

    assert found == ["retry: 1000", "", ": ping", "", ": ping"]


async def test_streams_end_where_their_session_does(client: Client) -> None:
    session = await client.session()
    async with stream_of(client, session["id"], "?after=1") as stream:
        await client.http.delete(f"/v1/sessions/{session['id']}")
        ended = [line async for line in stream.response.aiter_lines()]

    assert ended == ["retry: 1000", ""]


async def test_a_stream_whose_client_reads_nothing_ends_without_an_error(
    settings: Settings,
    db: Database,
    client: Client,
    worker: FakeWorker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    session = await client.session()
    claim = await worker.start(session["id"])
    big = {"message": {"role": "tool", "content": "x" * 200_000}}
    for _ in range(40):
        await worker.write(claim, NewEvent("message_end", big))
    request = (
        f"GET /v1/sessions/{session['id']}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        "Accept: text/event-stream\r\n\r\n"
    )
    with capture_logs() as logs:
        async with serving(settings.model_copy(update={"send_seconds": 0.3})) as url:
            with sockets.socket() as raw:
                raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 8192)
                raw.connect(("127.0.0.1", int(url.rpartition(":")[2])))
                raw.sendall(request.encode())
                told = "an event stream's client is too slow"
                await until(lambda: any(one["event"] == told for one in logs))
                await until(lambda: _is_closed(raw))

    assert [one.getMessage() for one in caplog.records if one.levelname == "ERROR"] == []
    (line,) = [one for one in logs if one["event"] == told]
    assert line["log_level"] == "info"


def _is_closed(connection: sockets.socket) -> bool:
    """Whether the server has ended it, once what it sent is read."""
    connection.setblocking(False)
    try:
        while connection.recv(1 << 20):
            pass
    except BlockingIOError:
        return False
    except ConnectionResetError:
        pass
    return True


async def test_streams_are_counted(settings: Settings, db: Database, client: Client) -> None:
    session = await client.session()
    async with serving(settings.model_copy(update={"max_sockets": 1})) as url:
        other = Client(client.http, url)
        async with stream_of(other, session["id"]) as stream:
            await stream.next()
            async with stream_of(other, session["id"]) as second:
                await second.response.aread()
        assert second.response.status_code == 429
        assert second.response.json()["code"] == "rate_limited"
        assert int(second.response.headers["retry-after"]) > 0


async def test_many_streams_come_and_go(client: Client, worker: FakeWorker) -> None:
    session = await client.session()

    async def look() -> str | None:
        async with stream_of(client, session["id"]) as stream:
            return (await stream.next())[0]

    assert await asyncio.gather(*(look() for _ in range(30))) == ["1"] * 30
    claim = await worker.start(session["id"])
    async with stream_of(client, session["id"], "?after=2") as stream:
        await worker.write(claim, NewEvent("agent_start", {}))
        assert (await stream.next())[0] == "3"


async def test_numbers_and_limits_have_bounds(client: Client) -> None:
    session = await client.session()
    path = f"/v1/sessions/{session['id']}/events"
    for query in ("after=-1", "after=x", "after=99999999999999999", "limit=0", "limit=1001"):
        response = await client.http.get(f"{path}?{query}")
        assert response.status_code == 422, query
    for last in ("x", "-1", "99999999999999999", "1.5"):
        headers = {"Accept": "text/event-stream", "Last-Event-ID": last}
        response = await client.http.get(path, headers=headers)
        assert response.status_code == 422, last
