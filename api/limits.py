"""The size of a request's body, counted while it is read."""

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import problems
from api.problems import TOO_LARGE, Problem

MAX_BODY = 256 * 1024
"""Bytes of a request's body."""


class BodyLimit:
    """Refuses a body that is too large: at once where it tells its length, else while it comes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, its body being counted."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY:
            await problems.answer(_too_large())(scope, receive, send)
            return
        read = 0

        async def receive_counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MAX_BODY:
                # FastAPI passes on only its own kind of error from reading a body.
                raise HTTPException(problems.STATUSES[TOO_LARGE], _too_large().detail)
            return message

        await self._app(scope, receive_counted, send)


def _too_large() -> Problem:
    return Problem(TOO_LARGE, f"The body has more than {MAX_BODY} bytes.")
