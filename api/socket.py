"""The WebSocket: a session's frames to the client, its actions and cancels from it."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Self, assert_never, cast
from uuid import UUID

from pydantic import ValidationError
from starlette.datastructures import Headers, QueryParams
from starlette.types import Receive, Scope, Send

from api import problems
from api.access import LOCAL_USER, check_loopback
from api.actions import accept, cancel_action, cancel_task, one_key
from api.gateway import Gateway
from api.origins import Origins
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
from api.slots import FULL
from api.story_routes import find_session, story_result
from api.tickets import redeem
from api.wire import Wire, wire_of
from shared.encoding import dumps, loads
from shared.ending import end_all
from shared.errors import FiresideError, NotFound, QueueUnavailable, StoreUnavailable
from shared.events import Line, text_message
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

_AT_ONCE = 64 * 1024
"""Bytes that are written together; more goes line by line, as the client takes it."""

_MAX_SEQ_DIGITS = 16
_MAX_ID = 200

_COMPLETED = b'"type":"task_completed"'
_HEAD = 64
"""Where in a frame its type stands: behind its number."""

_PING = Line(None, "", 0, dumps({"type": "ping"}))


class Closing(Exception):
    """The socket is to be closed with this code; None where the client has gone already."""

    def __init__(self, code: int | None, reason: str = "") -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


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

    What the session gives is written where it comes, with no task that would wait for it, as long
    as the client takes it and nothing has to be asked for. Else a task, the pump, goes on until
    nothing is left. The task of the connection itself reads what the client sends.

    Whatever finds that the connection has to end raises Closing; from the pump it ends the reading.
    """

    __slots__ = (
        "_closing",
        "_is_due",
        "_key_id",
        "_opening",
        "_parts",
        "_ping",
        "_pumping",
        "_reading",
        "_receive_message",
        "_send_message",
        "_sent_at",
        "_view",
        "_wire",
    )

    def __init__(
        self, parts: Gateway, opening: Opening, receive: Receive, send: Send, wire: Wire | None
    ) -> None:
        self._parts = parts
        self._opening = opening
        self._receive_message = receive
        self._send_message = send
        self._wire = wire
        self._view: View | None = None
        self._reading: asyncio.Task[Any] | None = None
        self._pumping: asyncio.Task[None] | None = None
        self._closing: Closing | None = None
        self._ping: asyncio.TimerHandle | None = None
        self._sent_at = 0.0
        self._is_due = False
        self._key_id = ""

    async def serve(self, origins: Origins) -> None:
        """Serve the client until one side ends it."""
        closing = await self._serve(origins)
        if closing.code is None:
            return
        self._parts.metrics.closed(closing.code)
        if closing.code == TOO_SLOW and self._wire is not None:
            self._wire.drop(closing.code, closing.reason)
            return
        message = {"type": "websocket.close", "code": closing.code, "reason": closing.reason}
        with contextlib.suppress(TimeoutError, RuntimeError, OSError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._send_message(message)

    async def _serve(self, origins: Origins) -> Closing:
        try:
            await self._accept()
            self._check_origin(origins)
            slots = self._parts.slots
            with slots.one():
                user_id = await self._authenticate()
                with slots.one_of(user_id):
                    return await self._exchange(user_id, await self._find_session(user_id))
        except Closing as closing:
            return closing
        except Exception as error:  # noqa: BLE001 - the edge: the client is told, the process lives
            problem = problems.problem_of(error)
            if problem.code == FULL:
                return Closing(TOO_MANY, problem.detail)
            return Closing(FAILED, f"{problem.code} {problem.extra.get('error_id', '')}")

    async def _exchange(self, user_id: str, session_id: UUID) -> Closing:
        after = self._after()
        follower = self._parts.follower
        subscription = follower.add(session_id, self._on_news)
        self._reading = asyncio.current_task()
        try:
            await follower.begin(session_id, subscription)
            await self._begin_to_write(View(self._parts, user_id, session_id, subscription), after)
            # What this client does first happens after it has joined, or it might miss the events.
            await self._read(user_id, session_id)
        except Closing as closing:
            return closing
        except asyncio.CancelledError:
            if self._closing is None or self._reading is None or self._reading.uncancel():
                raise
            return self._closing
        finally:
            self._reading = None
            follower.remove(session_id, subscription)
            await self._end_writing()

    # Before the exchange

    async def _accept(self) -> None:
        # Also who is refused is accepted first: only so does a close code reach a browser.
        try:
            await self._send_message({"type": "websocket.accept"})
        except (OSError, RuntimeError) as error:
            raise Closing(None) from error

    def _check_origin(self, origins: Origins) -> None:
        origin, host = self._opening.origin, self._opening.host
        if origin is not None and not origins.allows(origin, host):
            raise Closing(WRONG_ORIGIN, "origin not allowed")
        if self._parts.identity is None and not self._opening.from_here:
            raise Closing(WRONG_ORIGIN, "loopback only")

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

    # Server to client

    async def _begin_to_write(self, view: View, after: int | None) -> None:
        with _closing_errors():
            await self._send_lines(await view.join(after))
        self._view = view
        loop = asyncio.get_running_loop()
        self._sent_at = loop.time()
        self._ping = loop.call_later(self._parts.settings.ping_seconds, self._ping_if_quiet)
        self._is_due = True
        self._write_what_came()

    async def _end_writing(self) -> None:
        self._view = None
        if self._ping is not None:
            self._ping.cancel()
        if self._pumping is not None:
            await end_all([self._pumping])

    def _on_news(self) -> None:
        if not self._is_due and self._view is not None:
            # Not now: whoever tells has others to tell, and more of this session may follow.
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._write_what_came)

    def _write_what_came(self) -> None:
        self._is_due = False
        view = self._view
        if view is None or self._pumping is not None:
            return
        lines: Sequence[Line] = ()
        if not (self._parts.stopping or view.has_to_ask()):
            lines = view.fresh_lines()
            if self._pushes(lines):
                if not view.has_to_ask():
                    return
                lines = ()
        self._pumping = asyncio.get_running_loop().create_task(self._pump(view, lines))

    def _pushes(self, lines: Sequence[Line]) -> bool:
        """Write lines at once, if the client takes them; whether none of them is left."""
        if not lines:
            return True
        if self._wire is None or _size(lines) > _AT_ONCE:
            return False
        if not self._wire.push(b"".join(map(self._message, lines))):
            return False
        self._has_sent(lines)
        return True

    def _message(self, line: Line) -> bytes:
        """A line as this client's WebSocket carries it."""
        return line.message

    def _has_sent(self, lines: Sequence[Line]) -> None:
        self._sent_at = asyncio.get_running_loop().time()
        self._parts.metrics.sent(len(lines))

    async def _pump(self, view: View, lines: Sequence[Line]) -> None:
        """Write what is to be written, waiting for the client and for the log, until none is."""
        try:
            with _closing_errors():
                await self._send_lines(lines)
                while not self._parts.stopping and (lines := await view.next_lines()):
                    await self._send_lines(lines)
            if self._parts.stopping:
                self._end(Closing(RESTART, "the server stops"))
        except Closing as closing:
            self._end(closing)
        except Exception as error:  # noqa: BLE001 - as in `_serve`: it must end the connection
            problem = problems.problem_of(error)
            self._end(Closing(FAILED, f"{problem.code} {problem.extra.get('error_id', '')}"))
        finally:
            self._pumping = None

    def _end(self, closing: Closing) -> None:
        self._closing = closing
        if self._reading is not None:
            self._reading.cancel()

    async def _send_lines(self, lines: Sequence[Line]) -> None:
        if self._pushes(lines):
            return
        for line in lines:
            await self._send(self._frame(line))
        self._has_sent(lines)

    def _frame(self, line: Line) -> bytes:
        """A line as this client sees it."""
        return line.frame

    async def _send(self, frame: bytes) -> None:
        if self._wire is not None and self._wire.push(text_message(frame)):
            return
        try:
            async with asyncio.timeout(self._parts.settings.send_seconds):
                await self._send_message({"type": "websocket.send", "text": frame.decode()})
        except TimeoutError as error:
            raise Closing(TOO_SLOW, "too slow") from error
        except (OSError, RuntimeError) as error:
            raise Closing(None) from error

    def _ping_if_quiet(self) -> None:
        loop = asyncio.get_running_loop()
        pause = self._parts.settings.ping_seconds
        quiet = loop.time() - self._sent_at
        if quiet < pause:
            self._ping = loop.call_later(pause - quiet, self._ping_if_quiet)
            return
        self._ping = loop.call_later(pause, self._ping_if_quiet)
        if self._view is not None and self._pumping is None and not self._pushes([_PING]):
            self._pumping = loop.create_task(self._pump(self._view, [_PING]))

    # Client to server

    async def _read(self, user_id: str, session_id: UUID) -> NoReturn:
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

    __slots__ = ()

    async def _find_session(self, user_id: str) -> UUID:
        name = self._opening.name
        try:
            return (await find_session(self._parts, user_id, name)).id
        except NotFound as error:
            raise Closing(NO_SESSION, "no such session") from error
        except StoreUnavailable as error:
            raise Closing(RESTART, "the database is away") from error

    def _message(self, line: Line) -> bytes:
        frame = self._frame(line)
        return line.message if frame is line.frame else text_message(frame)

    def _frame(self, line: Line) -> bytes:
        if line.seq is None or _COMPLETED not in line.frame[:_HEAD]:
            return line.frame
        frame = loads(line.frame)
        result = frame["data"].get("result") or {}
        frame["data"]["result"] = {**result, **story_result(result)}
        return dumps(frame)


_ROUTES: dict[str, type[_Socket]] = {"sessions": _Socket, "story": _StorySocket}


def _route(scope: Scope) -> tuple[type[_Socket], str] | None:
    """Which route a path is on, and the session's name in it."""
    match str(scope["path"]).split("/"):
        case ["", "ws", route, name] if name and route in _ROUTES:
            return _ROUTES[route], name
    return None


def _size(lines: Sequence[Line]) -> int:
    return sum(len(line.frame) for line in lines[1:])  # one line has to go, whatever its size


@contextlib.contextmanager
def _closing_errors() -> Iterator[None]:
    """What relaying a session may raise, as the closing that it means."""
    try:
        yield
    except NotFound as error:
        raise Closing(NO_SESSION, "no such session") from error
    except StoreUnavailable as error:
        raise Closing(RESTART, "the database is away") from error


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
