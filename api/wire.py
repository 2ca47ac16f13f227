"""An open WebSocket at the server: uvicorn's, without what only the handshake needed.

A gateway has thousands of sockets that mostly wait, and a queue or an event of asyncio's takes
0.8 KB before anything is in it. And it sends the same bytes to many of them: `push` takes messages
that are encoded already, and none of the steps that a message goes through otherwise.
"""

import asyncio
from collections.abc import MutableMapping
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.http11 import Request

_EXTENSION = "fireside.wire"

_CLOSE_SECONDS = 5.0
"""How long a client that was dropped has for what is on its way to it, the close code included."""


class Wire(WebSocketsSansIOProtocol):
    """One client's WebSocket; an application finds it by `wire_of`."""

    _owed = b""
    """Answers to the newest pings, for when the client takes something again."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.queue = _Inbox()  # type: ignore[assignment]  # the same to those who use it
        self.writable = _Open()  # type: ignore[assignment]  # likewise

    def handle_connect(self, event: Request) -> None:
        """Begin to serve; the application's task runs a moment later and finds us in its scope."""
        super().handle_connect(event)
        if hasattr(self, "scope"):
            self.scope["extensions"][_EXTENSION] = {"wire": self}

    def handle_cont(self, event: Frame) -> None:
        """Take a further piece of a message; the parser counts bytes, and empty ones have none."""
        if event.data or event.fin:
            super().handle_cont(event)

    def handle_ping(self) -> None:
        """Answer pings; of a client that takes nothing only the newest, which RFC 6455 (5.5.3)
        allows, for the answers to all would pile up here without end."""
        if self.writable.is_set():
            super().handle_ping()
        elif answers := b"".join(self.conn.data_to_send()):
            self._owed = answers

    def resume_writing(self) -> None:
        """The client takes what is sent again."""
        super().resume_writing()
        if self._owed and not self.close_sent:
            self.transport.write(self._owed)
            self._owed = b""

    async def send(self, message: Any) -> None:
        """Send one ASGI message."""
        await super().send(message)
        if message["type"] == "websocket.accept":
            self._forget_handshake()

    def push(self, messages: bytes) -> bool:
        """Write WebSocket messages as they are; False where the client does not take them now."""
        if self.close_sent or not self.writable.is_set() or self.transport.is_closing():
            return False
        self.transport.write(messages)
        return True

    def drop(self, code: int, reason: str) -> None:
        """Close a client that takes too little: behind what it was sent comes the code.

        What it has not taken a while later is thrown away, and its memory comes back.
        """
        if self.close_sent or self.transport.is_closing():
            return
        self.stop_keepalive()
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        if self.read_paused:  # it may answer the close
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(_CLOSE_SECONDS, self.transport.abort)

    def shutdown(self) -> None:
        """Close for the server's stop; a client whose closing is under way is not waited for.

        uvicorn would send a close to one that has sent its own, which is an error, and the end of
        the server before it has answered its requests.
        """
        if self.transport.is_closing():
            self.transport.abort()
        else:
            super().shutdown()

    def _forget_handshake(self) -> None:
        self.request.headers.clear()  # the parser keeps the request
        del self.request, self.response
        self.scope = {}  # type: ignore[typeddict-item]  # the application has its own reference


def wire_of(scope: MutableMapping[str, Any]) -> Wire | None:
    """The connection behind a WebSocket's scope; None under another server or protocol."""
    found = scope.get("extensions", {}).get(_EXTENSION)
    return found["wire"] if found else None


class _Inbox:
    """What a client sent, for one reader; mostly nothing."""

    __slots__ = ("_messages", "_waiting")

    def __init__(self) -> None:
        self._messages: list[Any] = []
        self._waiting: asyncio.Future[None] | None = None

    def put_nowait(self, message: Any) -> None:
        self._messages.append(message)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def get(self) -> Any:
        while not self._messages:
            self._waiting = asyncio.get_running_loop().create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
        return self._messages.pop(0)

    def empty(self) -> bool:
        return not self._messages


class _Open:
    """Whether the client takes what is sent; mostly it does, and nobody waits."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: asyncio.Event | None = None

    def is_set(self) -> bool:
        return self._waiting is None

    def set(self) -> None:
        if self._waiting is not None:
            self._waiting.set()
            self._waiting = None

    def clear(self) -> None:
        if self._waiting is None:
            self._waiting = asyncio.Event()

    async def wait(self) -> None:
        while self._waiting is not None:
            await self._waiting.wait()
