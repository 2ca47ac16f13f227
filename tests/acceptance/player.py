"""A client of the public interface: httpx and websockets, and what the contract tells clients."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidMessage

from tests.waiting import PAUSE, until

Frame = dict[str, Any]
TERMINAL = {"task_completed", "task_failed", "task_cancelled", "task_dead"}


class Player:
    """One session, followed over a WebSocket that may drop at any time."""

    def __init__(self, http: httpx.AsyncClient, session: Frame) -> None:
        self.http = http
        self.session = session
        self.id: str = session["id"]
        self.opening: str = session["task_id"]
        self.events: list[Frame] = []
        self.after = 0

    @classmethod
    async def begin(cls, http: httpx.AsyncClient, **body: Any) -> "Player":
        answer = await http.post("/v1/sessions", json=body)
        assert answer.status_code == 201, answer.text
        return cls(http, answer.json())

    async def act(self, action: Frame, key: str | None = None) -> Frame:
        headers = {} if key is None else {"Idempotency-Key": key}
        answer = await self._post(action, headers)
        assert answer.status_code in {200, 202}, answer.text
        accepted: Frame = answer.json()
        return accepted

    async def act_whatever_happens(self, action: Frame, key: str) -> str:
        """Send an action until it is accepted, as clients do while Postgres is away; its task."""
        answers: list[httpx.Response] = []

        async def heard() -> bool:
            answers.append(await self._post(action, {"Idempotency-Key": key}))
            return answers[-1].status_code != 503

        await until(heard)
        assert answers[-1].status_code in {200, 202}, answers[-1].text
        task: str = answers[-1].json()["task_id"]
        return task

    async def _post(self, action: Frame, headers: dict[str, str]) -> httpx.Response:
        return await self.http.post(f"/v1/sessions/{self.id}/actions", json=action, headers=headers)

    @asynccontextmanager
    async def socket(self) -> AsyncIterator[ClientConnection]:
        base = str(self.http.base_url).replace("http", "ws", 1).rstrip("/")
        async with connect(f"{base}/ws/sessions/{self.id}?after={self.after}") as socket:
            yield socket

    def take(self, frame: Frame) -> None:
        if "seq" in frame:
            self.events.append(frame)
            self.after = frame["seq"]

    async def follow_until(self, done: Callable[[list[Frame]], bool]) -> None:
        """Follow, reconnecting with `after`, until the events are what is waited for."""
        while not done(self.events):
            try:
                async with self.socket() as socket:
                    while not done(self.events):
                        self.take(json.loads(await socket.recv()))
            except (ConnectionClosed, InvalidMessage, OSError):  # also before the handshake
                await asyncio.sleep(PAUSE)  # or its next tries would take all of a processor

    async def until_ended(self, *tasks: str) -> None:
        wanted = set(tasks)
        await self.follow_until(lambda events: wanted <= ended(events).keys())

    async def result(self, task_id: str) -> Frame:
        """The result of a task that completes."""
        await self.until_ended(task_id)
        (event,) = ended(self.events)[task_id]
        assert event["type"] == "task_completed", event
        result: Frame = event["data"]["result"]
        return result


def ended(events: list[Frame]) -> dict[str, list[Frame]]:
    """The terminal events of each task."""
    found: dict[str, list[Frame]] = {}
    for event in events:
        if event["type"] in TERMINAL:
            found.setdefault(event["task_id"], []).append(event)
    return found
