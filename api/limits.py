"""The size of a request's body."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import problems
from api.problems import TOO_LARGE, Problem

MAX_BODY = 256 * 1024
"""Bytes of a request's body."""


class BodyLimit:
    """Refuses a body that is too large: at once where it tells its length, else once so much of it
    has come, also on a route that reads none."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, with a body that is small enough."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY:
            await problems.answer(_too_large())(scope, receive, send)
            return
        if "transfer-encoding" in headers:
            body = await _whole(receive)
            if body is None:
                await problems.answer(_too_large())(scope, receive, send)
                return
            receive = _before(body, receive)
        await self._app(scope, receive, send)


async def _whole(receive: Receive) -> Message | None:
    """A body of unknown length as one message, or that its client is gone; None where it is too
    large."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return message
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            return None
        if not message.get("more_body", False):
            return {"type": "http.request", "body": bytes(body), "more_body": False}


def _before(message: Message, receive: Receive) -> Receive:
    """What gives a message first, and then what comes."""
    waiting = [message]

    async def receive_next() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_next


def _too_large() -> Problem:
    return Problem(TOO_LARGE, f"The body has more than {MAX_BODY} bytes.")
