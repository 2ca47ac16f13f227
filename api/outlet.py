"""What a session gives, written to one client: its frames where they come, and the socket's end."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from starlette.types import Send

from api.closings import RESTART, TOO_SLOW, UNAUTHENTICATED, Closing, closing_errors, closing_of
from api.gateway import Gateway
from api.relay import View
from api.story_routes import story_result
from api.wire import Wire
from shared.encoding import dumps, loads
from shared.ending import end_all
from shared.events import Line, text_message

_CLOSE_SECONDS = 5.0

_AT_ONCE = 64 * 1024
"""Bytes that are written together; more goes line by line, as the client takes it."""

_COMPLETED = b'"type":"task_completed"'
_HEAD = 64
"""Where in a frame its type stands: behind its number."""

_PING = Line(None, "", 0, dumps({"type": "ping"}))


class Outlet:
    """Writes to one client.

    What the session gives is written where it comes, with no task that would wait for it, as long
    as the client takes it and nothing has to be asked for. Else a task, the pump, goes on until
    nothing is left. Where the connection has to end, it says so in `closing` and ends the task that
    serves it.
    """

    __slots__ = (
        "_is_due",
        "_parts",
        "_ping",
        "_pumping",
        "_send_message",
        "_sent_at",
        "_serving",
        "_view",
        "_wire",
        "closing",
    )

    def __init__(self, parts: Gateway, send: Send, wire: Wire | None) -> None:
        self.closing: Closing | None = None
        self._parts = parts
        self._send_message = send
        self._wire = wire
        self._view: View | None = None
        self._serving: asyncio.Task[Any] | None = None
        self._pumping: asyncio.Task[None] | None = None
        self._ping: asyncio.TimerHandle | None = None
        self._sent_at = 0.0
        self._is_due = False

    async def accept(self) -> None:
        """Open the socket; raises Closing where the client has gone already."""
        # Also who is refused is accepted first: only so does a close code reach a browser.
        try:
            await self._send_message({"type": "websocket.accept"})
        except (OSError, RuntimeError) as error:
            raise Closing(None) from error

    async def close(self, closing: Closing) -> None:
        """Close the socket, unless the client has gone."""
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

    async def begin(self, view: View, after: int | None, serving: asyncio.Task[Any] | None) -> None:
        """Write what the log has after a number, and from now on what comes.

        Args:
            serving: the connection's task, which is cancelled where the writing has to end it.

        Raises:
            Closing: there is no such session, or the client does not take what it has.
        """
        self._serving = serving
        with closing_errors():
            await self._send_lines(await view.join(after))
        self._view = view
        loop = asyncio.get_running_loop()
        self._sent_at = loop.time()
        self._ping = loop.call_later(self._parts.settings.ping_seconds, self._ping_if_quiet)
        self._is_due = True
        self._write_what_came()

    async def end(self) -> None:
        """Write nothing more of the session."""
        self._serving = None
        self._view = None
        if self._ping is not None:
            self._ping.cancel()
        if self._pumping is not None:
            await end_all([self._pumping])

    def on_news(self) -> None:
        """Write soon what has come of the session."""
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
            with closing_errors():
                await self._send_lines(lines)
                while not self._parts.stopping and (lines := await view.next_lines()):
                    await self._send_lines(lines)
            if self._parts.stopping:
                self._end_serving(Closing(RESTART, "the server stops"))
        except Closing as closing:
            self._end_serving(closing)
        except Exception as error:  # noqa: BLE001 - the edge: it must end the connection
            self._end_serving(closing_of(error))
        finally:
            self._pumping = None

    def on_key_gone(self) -> None:
        """End the connection: the API key or the token that it was opened with is no more."""
        self._end_serving(Closing(UNAUTHENTICATED, "the API key or token is no more"))

    def _end_serving(self, closing: Closing) -> None:
        # Once: a second cancellation would be taken for the server's own.
        if self._serving is not None and self.closing is None:
            self.closing = closing
            self._serving.cancel()

    async def _send_lines(self, lines: Sequence[Line]) -> None:
        if self._pushes(lines):
            return
        for line in lines:
            await self.send(self._frame(line))
        self._has_sent(lines)

    def _frame(self, line: Line) -> bytes:
        """A line as this client sees it."""
        return line.frame

    async def send(self, frame: bytes) -> None:
        """Send one frame; raises Closing where the client does not take it, or has gone."""
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


class StoryOutlet(Outlet):
    """The same for the story routes: results under their keys, too."""

    __slots__ = ()

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


def _size(lines: Sequence[Line]) -> int:
    return sum(len(line.frame) for line in lines[1:])  # one line has to go, whatever its size
