"""Clients of the public interface, which drop their sockets, send twice, and write all down."""

import asyncio
import contextlib
import json
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from socket import SHUT_RDWR
from socket import socket as Socket  # noqa: N812 - a class, and `socket` is a WebSocket here
from typing import Any

import aiohttp

from tests.chaos.history import TERMINAL, Answer, Connection, Frame, History
from tests.chaos.plan import Move, Role

SOON = 0.15
"""Seconds before a client tries again."""

PATIENCE = 4.0
"""Seconds that a client waits for an answer before it asks again, perhaps at another gateway."""

ANSWERED = {200, 201, 202}
WAIT = {"rate_limited", "too_many_tasks"}
LATER = {408, 425, 429, 500, 502, 503, 504}


class Progress:
    """How far the storm is, from 0 to 1: players spread what they do over it."""

    def __init__(self) -> None:
        self._share = 0.0
        self._moved = asyncio.Event()

    def advance(self, share: float) -> None:
        """Note that this share of the faults has struck."""
        self._share = share
        self._moved.set()

    async def reach(self, share: float) -> None:
        """Return when the storm is so far."""
        while self._share < share:
            self._moved.clear()
            await self._moved.wait()


@dataclass(slots=True)
class Crowd:
    """What all players of a run share: the gateways' URLs, the HTTP client and the history.

    It counts the sockets that were cut, the actions that were sent twice, and errors by code.
    """

    gateways: Sequence[str]
    http: aiohttp.ClientSession
    history: History
    progress: Progress
    drops: int = 0
    doubles: int = 0
    errors: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Player:
    """One client with one session.

    `ended` are the tasks whose end it has seen, `accepted` those that it knows to be its own.
    """

    crowd: Crowd
    role: Role
    rng: random.Random
    session_id: str = ""
    after: int = 0
    accepted: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    choices: list[Frame] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _socket: aiohttp.ClientWebSocketResponse | None = None
    _acks: dict[str, asyncio.Future[Frame]] = field(default_factory=dict)

    async def play(self) -> None:
        """Make the session, do every move, and stay until all has ended."""
        await self._begin()
        followed = asyncio.create_task(self._follow())
        try:
            for move in self.role.moves:
                await self.crowd.progress.reach(move.at)
                await asyncio.sleep(move.think)
                await self._do(move)
            await self._until(lambda: self.accepted <= self.ended)
        finally:
            followed.cancel()
            await asyncio.gather(followed, return_exceptions=True)

    @property
    def open(self) -> set[str]:
        """The tasks whose end is still to be seen."""
        return self.accepted - self.ended

    async def _begin(self) -> None:
        body = {"agent": self.role.agent, "key": self.role.name}
        if self.role.story is not None:
            body["story"] = self.role.story
        while True:
            status, answer = await self._post("/v1/sessions", body)
            if status in ANSWERED:
                break
            await asyncio.sleep(SOON)
        self.session_id = answer["id"]
        self.accepted.add(answer["task_id"])
        self.crowd.history.players[self.role.name] = self.session_id

    async def _post(self, path: str, body: Frame) -> tuple[int, Frame]:
        """The answer of some gateway; status 0 where there was none."""
        url = self.rng.choice(self.crowd.gateways) + path
        limit = aiohttp.ClientTimeout(total=PATIENCE)
        try:
            async with self.crowd.http.post(url, json=body, timeout=limit) as answer:
                content = await answer.json(content_type=None)
                if answer.status not in ANSWERED:
                    self.crowd.errors[str(content.get("code"))] += 1
                return answer.status, content
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return 0, {}

    # -- following -----------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Read the session, coming back each time with the last number seen."""
        drops = iter(self.role.drops)
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                await self._read(next(drops, None))
            await asyncio.sleep(SOON)

    async def _read(self, drop_after: int | None) -> None:
        """Read one connection until it ends, or for so many frames."""
        base = self.rng.choice(self.crowd.gateways).replace("http", "ws", 1)
        url = f"{base}/ws/sessions/{self.session_id}?after={self.after}"
        connection = Connection(self.session_id, self.after)
        # A frozen gateway takes a connection and says nothing: a client must not wait for ever.
        async with asyncio.timeout(PATIENCE):
            socket = await self.crowd.http.ws_connect(url, heartbeat=PATIENCE, autoping=True)
        self.crowd.history.connections.append(connection)
        self._socket = socket
        self._changed.set()
        try:
            async for message in socket:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    return
                frame = json.loads(message.data)
                self._take(frame, connection)
                if drop_after is not None and len(connection.frames) >= drop_after:
                    self.crowd.drops += 1
                    _cut(socket)
                    return
        finally:
            self._socket = None
            await _close(socket)

    def _take(self, frame: Frame, connection: Connection) -> None:
        if frame["type"] in {"ack", "error"}:
            waiting = self._acks.get(frame.get("id", ""))
            if waiting is not None and not waiting.done():
                waiting.set_result(frame)
            return
        if frame["type"] not in {"ping", "message_update"}:
            connection.frames.append(frame)
        if frame["type"] == "gap":
            self.after = max(self.after, frame["to"])
        if "seq" not in frame:
            return
        self.after = max(self.after, frame["seq"])
        if frame["type"] == "state_changed":
            self.choices = frame["data"]["choices"]
        if frame["type"] in TERMINAL:
            self.ended.add(frame["task_id"])
            self._changed.set()

    async def _until(self, met: Any) -> None:
        while not met():
            self._changed.clear()
            await self._changed.wait()

    # -- acting --------------------------------------------------------------------------------

    async def _do(self, move: Move) -> None:
        action = {"type": "say", "text": move.text, "on_busy": move.action.on_busy}
        if move.action.kind == "choose":
            # A choice is of a scene that the player sees: all before it must have ended.
            await self._until(lambda: self.accepted <= self.ended and self.choices)
            action = {"type": "choose", "choice_id": self.choices[0]["id"]}
        ways = move.way.split("+")
        self.crowd.doubles += len(ways) - 1
        drops = [move.drops, False]
        sent = [
            self._post_action(move, action)
            if way == "post"
            else self._send_action(move, action, own=number > 0, drops=drops[number])
            for number, way in enumerate(ways)
        ]
        answers = await asyncio.gather(*sent)
        self.crowd.history.answers += answers
        task_ids = {answer.task_id for answer in answers if answer.task_id is not None}
        self.accepted |= task_ids
        if move.action.is_cancelled:
            for task_id in task_ids:
                await self._post(f"/v1/tasks/{task_id}/cancel", {})

    async def _post_action(self, move: Move, action: Frame) -> Answer:
        """Send by POST, again and again until there is an answer that says what became of it."""
        body = action | {"client_action_id": move.action.key}
        path = f"/v1/sessions/{self.session_id}/actions"
        sent, doubtful = time.time(), False
        while True:
            status, answer = await self._post(path, body)
            if status in ANSWERED:
                return _accepted(move, sent, answer["task_id"])
            if status != 0 and status not in LATER:
                return _refused(move, sent, answer.get("code", ""), doubtful, str(answer))
            doubtful = doubtful or status != 429
            await asyncio.sleep(SOON)

    async def _send_action(self, move: Move, action: Frame, *, own: bool, drops: bool) -> Answer:
        """Send over a WebSocket, the player's or one of this action's own."""
        frame = {"type": "action", "id": move.action.key, "action": action}
        sent, doubtful = time.time(), False
        while True:
            told = await (self._ask_anew(frame) if own else self._ask(frame, drops=drops))
            drops = False
            code = "" if told is None else told.get("error", {}).get("code", "")
            if told is not None and told["type"] == "ack":
                return _accepted(move, sent, told["task_id"])
            if code:
                self.crowd.errors[code] += 1
            if told is not None and code not in {"unavailable", "internal_error", *WAIT}:
                return _refused(move, sent, code, doubtful, str(told))
            doubtful = doubtful or code not in WAIT
            await asyncio.sleep(SOON)

    async def _ask(self, frame: Frame, *, drops: bool) -> Frame | None:
        """Send on the player's socket; the answer, or None where it may have been lost."""
        await self._until(lambda: self._socket is not None)
        socket = self._socket
        assert socket is not None
        waiting = self._acks[frame["id"]] = asyncio.get_running_loop().create_future()
        try:
            await socket.send_json(frame)
            if drops:
                self.crowd.drops += 1
                _cut(socket)
                return None
            async with asyncio.timeout(PATIENCE):
                told: Frame = await waiting
                return told
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
        finally:
            self._acks.pop(frame["id"], None)

    async def _ask_anew(self, frame: Frame) -> Frame | None:
        """Send on a new socket, which begins with what comes from now on."""
        base = self.rng.choice(self.crowd.gateways).replace("http", "ws", 1)
        connection = Connection(self.session_id, None)
        try:
            async with asyncio.timeout(PATIENCE):
                socket = await self.crowd.http.ws_connect(f"{base}/ws/sessions/{self.session_id}")
                self.crowd.history.connections.append(connection)
                try:
                    await socket.send_json(frame)
                    async for message in socket:
                        if message.type is not aiohttp.WSMsgType.TEXT:
                            break
                        told: Frame = json.loads(message.data)
                        if told["type"] in {"ack", "error"}:
                            return told
                        if told["type"] not in {"ping", "message_update"}:
                            connection.frames.append(told)
                finally:
                    await _close(socket)
        except (aiohttp.ClientError, TimeoutError, OSError):
            pass
        return None


def _accepted(move: Move, sent: float, task_id: str) -> Answer:
    return Answer(move.action.key, sent, time.time(), "accepted", task_id)


def _refused(move: Move, sent: float, code: str, doubtful: bool, detail: str) -> Answer:
    verdict: Any = "refused" if code == "session_busy" else "wrong"
    return Answer(move.action.key, sent, time.time(), verdict, None, doubtful, detail)


def _cut(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Break the connection off, as a lost network would: no closing words."""
    held = socket.get_extra_info("socket")
    if held is not None:
        with contextlib.suppress(OSError), Socket(fileno=os.dup(held.fileno())) as copy:
            copy.shutdown(SHUT_RDWR)


async def _close(socket: aiohttp.ClientWebSocketResponse) -> None:
    with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
        async with asyncio.timeout(0.5):
            await socket.close()
