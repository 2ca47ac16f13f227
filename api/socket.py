"""The WebSocket: a session's frames to the client, its actions and cancels from it."""

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, aclosing
from typing import assert_never, cast
from uuid import UUID

from fastapi import FastAPI
from pydantic import ValidationError
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from api import problems
from api.access import LOCAL_USER, check_loopback
from api.actions import accept, cancel_action, cancel_task, one_key
from api.gateway import Gateway, gateway_of_app
from api.origins import Origins
from api.problems import Problem
from api.relay import IDLE, relay
from api.schemas import (
    CLIENT_FRAME,
    ActionFrame,
    AuthFrame,
    CancelFrame,
    ClientFrame,
    PongFrame,
    new_action,
)
from api.story_routes import find_session, story_result
from api.tickets import redeem
from shared.encoding import dumps, loads
from shared.errors import FiresideError, NotFound, QueueUnavailable, StoreUnavailable
from shared.events import Line
from shared.records import Accepted

MAX_FRAME = 64 * 1024
"""Bytes of a client's frame."""

BAD_REQUEST = 1008
TOO_BIG = 1009
FAILED = 1011
RESTART = 1012
UNAUTHENTICATED = 4401
WRONG_ORIGIN = 4403
NO_SESSION = 4404
TOO_SLOW = 4408
TOO_MANY = 4429

_AUTH_SECONDS = 10.0
_CLOSE_SECONDS = 5.0
_MAX_SEQ_DIGITS = 16
_MAX_ID = 200

_COMPLETED = b'"type":"task_completed"'
_HEAD = 64
"""Where in a frame its type stands: behind its number."""

_PING = dumps({"type": "ping"})


class Closing(Exception):
    """The socket is to be closed with this code; None where the client has gone already."""

    def __init__(self, code: int | None, reason: str = "") -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def serve_sockets(app: FastAPI, origins: Origins) -> None:
    """Add the two WebSocket routes."""

    async def serve(websocket: WebSocket) -> None:
        await _Socket(gateway_of_app(app), origins, websocket).serve()

    async def serve_story(websocket: WebSocket) -> None:
        await _StorySocket(gateway_of_app(app), origins, websocket).serve()

    app.router.routes.append(WebSocketRoute("/ws/sessions/{session_id}", serve))
    app.router.routes.append(WebSocketRoute("/ws/story/{session_id}", serve_story))


class _Socket:
    """One client's connection to one session.

    Two tasks share it: one reads, the other one writes what the session gives. Whichever finds
    that the connection has to end raises Closing, which ends both.
    """

    def __init__(self, parts: Gateway, origins: Origins, websocket: WebSocket) -> None:
        self._parts = parts
        self._origins = origins
        self._websocket = websocket
        self._joined = asyncio.Event()
        self._key_id = ""

    async def serve(self) -> None:
        """Serve the client until one side ends it."""
        closing = await self._serve()
        if closing.code is None:
            return
        self._parts.metrics.closed(closing.code)
        with contextlib.suppress(TimeoutError, RuntimeError, OSError, WebSocketDisconnect):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._websocket.close(closing.code, closing.reason)

    async def _serve(self) -> Closing:
        try:
            await self._accept()
            self._check_origin()
            with self._place(self._parts.slots.one()):
                user_id = await self._authenticate()
                with self._place(self._parts.slots.one_of(user_id)):
                    session_id = await self._find_session(user_id)
                    return await self._exchange(user_id, session_id)
        except Closing as closing:
            return closing
        except Exception as error:  # noqa: BLE001 - the edge: the client is told, the process lives
            problem = problems.problem_of(error)
            return Closing(FAILED, f"{problem.code} {problem.extra.get('error_id', '')}")

    async def _exchange(self, user_id: str, session_id: UUID) -> Closing:
        closing = Closing(None)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._write(user_id, session_id))
                await self._read(user_id, session_id)
        except* Closing as closings:
            closing = cast("Closing", closings.exceptions[0])
        return closing

    # Before the exchange

    async def _accept(self) -> None:
        # Also who is refused is accepted first: only so does a close code reach a browser.
        try:
            await self._websocket.accept()
        except (OSError, RuntimeError, WebSocketDisconnect) as error:
            raise Closing(None) from error

    def _check_origin(self) -> None:
        headers = self._websocket.headers
        origin = headers.get("origin")
        if origin is not None and not self._origins.allows(origin, headers.get("host")):
            raise Closing(WRONG_ORIGIN, "origin not allowed")
        if self._parts.identity is None:
            try:
                check_loopback(self._websocket.scope)
            except Problem as problem:
                raise Closing(WRONG_ORIGIN, "loopback only") from problem

    @contextlib.contextmanager
    def _place(self, place: AbstractContextManager[None]) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(place)
            except Problem as problem:
                raise Closing(TOO_MANY, problem.detail) from problem
            yield

    async def _authenticate(self) -> str:
        if self._parts.identity is None:
            return LOCAL_USER
        try:
            async with asyncio.timeout(_AUTH_SECONDS):
                frame = _decode(await self._receive())
                caller = (
                    await redeem(self._parts.redis, frame.ticket)
                    if isinstance(frame, AuthFrame)
                    else None
                )
        except (TimeoutError, _BadFrame) as error:
            raise Closing(UNAUTHENTICATED, "send an auth frame first") from error
        except QueueUnavailable as error:
            raise Closing(RESTART, "tickets can't be checked just now") from error
        if caller is None:
            raise Closing(UNAUTHENTICATED, "the ticket is not valid")
        self._key_id = caller.key_id
        return caller.user_id

    async def _find_session(self, _user_id: str) -> UUID:
        try:
            return UUID(self._websocket.path_params["session_id"])
        except ValueError as error:
            raise Closing(NO_SESSION, "no such session") from error

    def _after(self) -> int | None:
        after = self._websocket.query_params.get("after")
        if after is None:
            return None
        if not (after.isascii() and after.isdecimal() and len(after) <= _MAX_SEQ_DIGITS):
            raise Closing(BAD_REQUEST, "after: must be a number of an event")
        return int(after)

    # Server to client

    async def _write(self, user_id: str, session_id: UUID) -> None:
        try:
            async with aclosing(relay(self._parts, user_id, session_id, self._after())) as batches:
                async for lines in batches:
                    self._joined.set()
                    if lines is IDLE:
                        await self._send(_PING)
                    for line in lines:
                        await self._send(self._shown(line))
                    self._parts.metrics.sent(len(lines))
        except NotFound as error:
            raise Closing(NO_SESSION, "no such session") from error
        except StoreUnavailable as error:
            raise Closing(RESTART, "the database is away") from error
        raise Closing(RESTART, "the server stops")

    def _shown(self, line: Line) -> bytes:
        return line.frame

    async def _send(self, frame: bytes) -> None:
        try:
            async with asyncio.timeout(self._parts.settings.send_seconds):
                await self._websocket.send_text(frame.decode())
        except TimeoutError as error:
            raise Closing(TOO_SLOW, "too slow") from error
        except (OSError, RuntimeError, WebSocketDisconnect) as error:
            raise Closing(None) from error

    # Client to server

    async def _read(self, user_id: str, session_id: UUID) -> None:
        # What this client does first happens after it has joined, or it might miss the events.
        await self._joined.wait()
        while True:
            received = await self._receive()
            action_id = None
            try:
                frame = _decode(received)
                action_id = frame.id if isinstance(frame, ActionFrame) else None
                await self._do(user_id, session_id, frame)
            except _BadFrame as error:
                await self._send(problems.frame(error.problem, error.action_id))
            except FiresideError as error:
                await self._send(problems.frame(error, action_id))

    async def _receive(self) -> str | bytes:
        try:
            message = await self._websocket.receive()
        except RuntimeError as error:
            raise Closing(None) from error
        if message["type"] == "websocket.disconnect":
            raise Closing(None)
        received: str | bytes = message.get("text") or message.get("bytes") or ""
        if len(received) > MAX_FRAME or (
            isinstance(received, str)
            and len(received) * 4 > MAX_FRAME
            and len(received.encode()) > MAX_FRAME
        ):
            raise Closing(TOO_BIG, "frame too big")
        return received

    async def _do(self, user_id: str, session_id: UUID, frame: ClientFrame) -> None:
        match frame:
            case ActionFrame():
                key = one_key(frame.id, frame.action.client_action_id)
                action = new_action(frame.action, key, self._key_id)
                accepted = await accept(self._parts, user_id, session_id, action)
                await self._send(_ack(frame.id, accepted))
            case CancelFrame(task_id=UUID() as task_id, client_action_id=None):
                await cancel_task(self._parts, user_id, task_id)
            case CancelFrame(task_id=None, client_action_id=str() as key):
                await cancel_action(self._parts, user_id, session_id, key)
            case CancelFrame():
                raise Problem("invalid_request", "Give either task_id or client_action_id.")
            case AuthFrame() | PongFrame():
                pass
            case _:
                assert_never(frame)


class _StorySocket(_Socket):
    """The same for the story routes: sessions by id or key, results under their keys, too."""

    async def _find_session(self, user_id: str) -> UUID:
        name = self._websocket.path_params["session_id"]
        try:
            return (await find_session(self._parts, user_id, name)).id
        except NotFound as error:
            raise Closing(NO_SESSION, "no such session") from error
        except StoreUnavailable as error:
            raise Closing(RESTART, "the database is away") from error

    def _shown(self, line: Line) -> bytes:
        if line.seq is None or _COMPLETED not in line.frame[:_HEAD]:
            return line.frame
        frame = loads(line.frame)
        result = frame["data"].get("result") or {}
        frame["data"]["result"] = {**result, **story_result(result)}
        return dumps(frame)


class _BadFrame(Exception):
    """A client's frame that can't be read; `action_id` as far as it could be told."""

    def __init__(self, problem: Problem, action_id: str | None) -> None:
        super().__init__(problem.detail)
        self.problem = problem
        self.action_id = action_id


def _decode(received: str | bytes) -> ClientFrame:
    if isinstance(received, bytes):
        raise _BadFrame(Problem("invalid_request", "Frames are text, not binary."), None)
    try:
        content = loads(received)
    except ValueError as error:
        problem = Problem("invalid_json", "The frame is not valid JSON.")
        raise _BadFrame(problem, None) from error
    try:
        return CLIENT_FRAME.validate_python(content)
    except ValidationError as error:
        named = content.get("id") if isinstance(content, dict) else None
        action_id = named if isinstance(named, str) and len(named) <= _MAX_ID else None
        raise _BadFrame(problems.problem_of(error), action_id) from error


def _ack(action_id: str, accepted: Accepted) -> bytes:
    return dumps(
        {"type": "ack", "id": action_id, "task_id": accepted.task_id, "status": accepted.status}
    )
