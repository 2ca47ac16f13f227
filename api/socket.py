"""The WebSocket: who may open one to which session, and the actions and cancels that come by it."""

import asyncio
from dataclasses import dataclass
from typing import ClassVar, NoReturn, Self, assert_never, cast
from uuid import UUID

from pydantic import ValidationError
from starlette.datastructures import Headers, QueryParams
from starlette.types import Receive, Scope, Send

from api import problems
from api.access import LOCAL, check_loopback
from api.actions import accept, cancel_action, cancel_task, one_key
from api.closings import (
    BAD_REQUEST,
    NO_SESSION,
    RESTART,
    TOO_BIG,
    UNAUTHENTICATED,
    WRONG_ORIGIN,
    Closing,
    closing_errors,
    closing_of,
)
from api.gateway import Gateway
from api.identity import Caller
from api.origins import Origins
from api.outlet import Outlet, StoryOutlet
from api.problems import Problem
from api.relay import View
from api.schemas import (
    CLIENT_FRAME,
    ActionFrame,
    AuthFrame,
    CancelFrame,
    ClientFrame,
    PongFrame,
    new_action,
)
from api.story_routes import find_session
from api.tickets import redeem
from api.wire import Wire, wire_of
from shared.encoding import dumps, loads
from shared.errors import FiresideError, QueueUnavailable
from shared.records import Accepted

MAX_FRAME = 64 * 1024
"""Bytes of a client's frame."""

_AUTH_SECONDS = 10.0

_MAX_SEQ_DIGITS = 16
_MAX_ID = 200


class Sockets:
    """The two WebSocket routes as an ASGI application of their own.

    They stand beside the layers of HTTP, which have nothing to say to a socket: each of them would
    keep a coroutine waiting for as long as the socket is open.
    """

    def __init__(self, parts: Gateway, origins: Origins) -> None:
        self._parts = parts
        self._origins = origins

    def serves(self, scope: Scope) -> bool:
        """Whether this is a socket's, on one of the two routes."""
        return scope["type"] == "websocket" and _route(scope) is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one socket."""
        kind, name = cast("tuple[type[_Socket], str]", _route(scope))
        socket = kind(self._parts, Opening.of(scope, name), receive, send, wire_of(scope))
        if await receive() != {"type": "websocket.connect"}:
            return  # gone already
        scope["headers"] = ()  # as many bytes as all the rest
        await socket.serve(self._origins)


@dataclass(frozen=True, slots=True)
class Opening:
    """What a socket's opening request said; all texts as they came.

    `from_here` is whether it came from this machine to this machine.
    """

    name: str
    after: str | None
    origin: str | None
    host: str | None
    from_here: bool

    @classmethod
    def of(cls, scope: Scope, name: str) -> Self:
        """Read a scope; `name` is the session's in the path."""
        headers = Headers(scope=scope)
        query = QueryParams(scope["query_string"])
        from_here = True
        try:
            check_loopback(scope)
        except Problem:
            from_here = False
        return cls(name, query.get("after"), headers.get("origin"), headers.get("host"), from_here)


class _Socket:
    """One client's connection to one session.

    Its task reads what the client sends; the outlet writes what the session gives. Whatever finds
    that the connection has to end raises Closing; from the outlet's own task it ends the reading.
    """

    __slots__ = ("_caller", "_opening", "_outlet", "_parts", "_receive_message")
    _writes: ClassVar[type[Outlet]] = Outlet

    def __init__(
        self, parts: Gateway, opening: Opening, receive: Receive, send: Send, wire: Wire | None
    ) -> None:
        self._parts = parts
        self._opening = opening
        self._receive_message = receive
        self._outlet = self._writes(parts, send, wire)
        self._caller = LOCAL

    async def serve(self, origins: Origins) -> None:
        """Serve the client until one side ends it."""
        await self._outlet.close(await self._serve(origins))

    async def _serve(self, origins: Origins) -> Closing:
        try:
            await self._outlet.accept()
            self._check_origin(origins)
            slots = self._parts.slots
            with slots.one():
                self._caller = await self._authenticate()
                user_id = self._caller.user_id
                with slots.one_of(user_id):
                    return await self._exchange(user_id, await self._find_session(user_id))
        except Closing as closing:
            return closing
        except Exception as error:  # noqa: BLE001 - the edge: the client is told, the process lives
            return closing_of(error)

    async def _exchange(self, user_id: str, session_id: UUID) -> Closing:
        after = self._after()
        follower, outlet = self._parts.follower, self._outlet
        subscription = follower.add(session_id, outlet.on_news)
        reading = asyncio.current_task()
        try:
            await follower.begin(session_id, subscription)
            with self._parts.keyed.one(self._caller, outlet.on_key_gone):
                view = View(self._parts, user_id, session_id, subscription)
                await outlet.begin(view, after, reading)
                # What this client does first happens after it has joined, or it might miss the
                # events.
                await self._read(user_id, session_id)
        except Closing as closing:
            return closing
        except asyncio.CancelledError:
            if outlet.closing is None or reading is None or reading.uncancel():
                raise
            return outlet.closing
        finally:
            follower.remove(session_id, subscription)
            await outlet.end()

    # Before the exchange

    def _check_origin(self, origins: Origins) -> None:
        origin, host = self._opening.origin, self._opening.host
        if origin is not None and not origins.allows(origin, host):
            raise Closing(WRONG_ORIGIN, "origin not allowed")
        if self._parts.identity is None and not self._opening.from_here:
            raise Closing(WRONG_ORIGIN, "loopback only")

    async def _authenticate(self) -> Caller:
        if self._parts.identity is None:
            return LOCAL
        try:
            async with asyncio.timeout(_AUTH_SECONDS):
                frame = _decode(await self._receive())
        except (TimeoutError, _BadFrame) as error:
            raise Closing(UNAUTHENTICATED, "send an auth frame first") from error
        try:
            caller = (
                await redeem(self._parts.redis, frame.ticket)
                if isinstance(frame, AuthFrame)
                else None
            )
        except QueueUnavailable as error:
            raise Closing(RESTART, "tickets can't be checked just now") from error
        if caller is None:
            raise Closing(UNAUTHENTICATED, "the ticket is not valid")
        return caller

    async def _find_session(self, _user_id: str) -> UUID:
        try:
            return UUID(self._opening.name)
        except ValueError as error:
            raise Closing(NO_SESSION, "no such session") from error

    def _after(self) -> int | None:
        after = self._opening.after
        if after is None:
            return None
        if not (after.isascii() and after.isdecimal() and len(after) <= _MAX_SEQ_DIGITS):
            raise Closing(BAD_REQUEST, "after: must be a number of an event")
        return int(after)

    # Client to server

    async def _read(self, user_id: str, session_id: UUID) -> NoReturn:
        while True:
            # In a call of its own, which leaves nothing behind: the last frame of an idle socket
            # would stay as long as the socket.
            await self._answer(user_id, session_id, await self._receive())

    async def _answer(self, user_id: str, session_id: UUID, received: str | bytes) -> None:
        action_id = None
        try:
            frame = _decode(received)
            action_id = frame.id if isinstance(frame, ActionFrame) else None
            await self._do(user_id, session_id, frame)
        except _BadFrame as error:
            await self._outlet.send(problems.frame(error.problem, error.action_id))
        except FiresideError as error:
            await self._outlet.send(problems.frame(error, action_id))

    async def _receive(self) -> str | bytes:
        try:
            message = await self._receive_message()
        except (OSError, RuntimeError) as error:
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
                action = new_action(frame.action, key, self._caller.key_id)
                accepted = await accept(self._parts, user_id, session_id, action)
                await self._outlet.send(_ack(frame.id, accepted))
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

    __slots__ = ()
    _writes = StoryOutlet

    async def _find_session(self, user_id: str) -> UUID:
        name = self._opening.name
        with closing_errors():
            return (await find_session(self._parts, user_id, name)).id


_ROUTES: dict[str, type[_Socket]] = {"sessions": _Socket, "story": _StorySocket}


def _route(scope: Scope) -> tuple[type[_Socket], str] | None:
    """Which route a path is on, and the session's name in it."""
    match str(scope["path"]).split("/"):
        case ["", "ws", route, name] if name and route in _ROUTES:
            return _ROUTES[route], name
    return None


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
