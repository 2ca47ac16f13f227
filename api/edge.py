"""The outermost layer of HTTP: what no request may leave without, whatever happens inside."""

from time import perf_counter

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import problems
from api.metrics import Metrics
from api.problems import Problem

log = structlog.get_logger(__name__)

_METHODS = {"GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS"}

_SINGLE = {
    b"authorization",
    b"content-type",
    b"host",
    b"idempotency-key",
    b"last-event-id",
    b"origin",
}
"""Headers that are read here, and of which each request has one value."""

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
"""Set where the answer does not have its own."""


class Edge:
    """Counts requests, refuses those whose headers contradict each other, sets security headers,
    and turns what nobody expected into a problem."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = perf_counter()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            _check_headers(scope)
            await self._app(scope, receive, send_with_headers)
        except Exception as error:  # noqa: BLE001 - the edge: a client gets an answer to anything
            answer = problems.answer(error)
            if not status:
                await answer(scope, receive, send_with_headers)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.answered(method, _route(scope), status, perf_counter() - began)


def _check_headers(scope: Scope) -> None:
    """Raise Problem where a header has two values: whoever stands before this server may have
    read the other one."""
    found: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name in _SINGLE and found.setdefault(name, value) != value:
            raise Problem("invalid_request", f"{name.decode()}: is given twice, and differs")


def _route(scope: Scope) -> str:
    return str(getattr(scope.get("route"), "path", "none"))
