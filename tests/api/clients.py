"""A client as players have it: httpx and websockets, nothing of ours."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.api.frames import validator
from tests.waiting import PATIENCE

TERMINAL = {"task_completed", "task_failed", "task_cancelled", "task_dead"}


class Client:
    """Calls that most tests make; `http` for everything else."""

    def __init__(self, http: httpx.AsyncClient, url: str) -> None:
        self.http = http
        self.url = url

    async def session(self, **body: Any) -> dict[str, Any]:
        """A new session of the companion, or what `body` says."""
        response = await self.http.post("/v1/sessions", json={"agent": "companion", **body})
        assert response.status_code in {200, 201}, response.text
        made: dict[str, Any] = response.json()
        return made

    async def act(self, session_id: str, **body: Any) -> dict[str, Any]:
        """Send an action, a `say` unless `body` says otherwise."""
        action = {"type": "say", "text": "Hello"} | body
        response = await self.http.post(f"/v1/sessions/{session_id}/actions", json=action)
        assert response.status_code in {200, 202}, response.text
        accepted: dict[str, Any] = response.json()
        return accepted

    async def log(self, session_id: str, after: int = 0) -> list[dict[str, Any]]:
        """The session's events."""
        response = await self.http.get(
            f"/v1/sessions/{session_id}/events", params={"after": after, "limit": 1000}
        )
        assert response.status_code == 200, response.text
        events: list[dict[str, Any]] = response.json()["events"]
        return events

    @asynccontextmanager
    async def socket(
        self, session_id: str, after: int | None = None, *, path: str = "/ws/sessions/"
    ) -> AsyncIterator["Socket"]:
        """A WebSocket on a session."""
        query = "" if after is None else f"?after={after}"
        url = self.url.replace("http", "ws", 1) + path + session_id + query
        async with opened(url) as connection:
            yield Socket(connection)


def opened(url: str, **options: Any) -> connect:
    """A connection that bears with a server which stands still: it pings nobody."""
    return connect(url, open_timeout=PATIENCE, ping_interval=None, **options)


def shown_text(frames: list[dict[str, Any]]) -> str:
    """The text that a client shows after these frames: it appends what fits, and nothing else."""
    text = ""
    for frame in frames:
        if frame["type"] == "message_update" and frame["offset"] == len(text):
            text += frame["delta"]
    return text


class Socket:
    """Frames as JSON objects; each that comes is one that the AsyncAPI document describes."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.early: list[dict[str, Any]] = []

    async def joined(self) -> None:
        """Wait until the server has found this client's place in the log.

        It answers a client's first frame after that; what it sent before goes to `early`.
        """
        await self.send({"type": "cancel"})
        self.early = (await self.until("error"))[:-1]

    async def send(self, frame: object) -> None:
        await self.connection.send(json.dumps(frame))

    async def receive(self) -> dict[str, Any]:
        frame: dict[str, Any] = json.loads(await self.connection.recv())
        validator("ServerFrame").validate(frame)
        return frame

    async def until(self, *types: str) -> list[dict[str, Any]]:
        """Frames up to and with the first one of these types."""
        frames = [await self.receive()]
        while frames[-1]["type"] not in types:
            frames.append(await self.receive())
        return frames

    async def closed(self) -> int:
        """The code of the server's close, whatever frames come before it."""
        try:
            while True:
                await self.receive()
        except ConnectionClosed as closing:
            return closing.rcvd.code if closing.rcvd else 1006

    async def until_end(self) -> list[dict[str, Any]]:
        """Frames up to and with the first that ends a task."""
        return await self.until(*TERMINAL)
