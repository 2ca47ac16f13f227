"""Which web pages may call: the own host's, and those of the origins that the settings allow."""

from collections.abc import Iterable
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import problems, replies
from api.problems import Problem

_SAFE_METHODS = {"GET", "HEAD"}
_DEFAULT_PORTS = {"http": 80, "https": 443}

_PREFLIGHT_HEADERS = {
    "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key, Last-Event-ID",
    "Access-Control-Max-Age": "600",
}


def is_loopback_host(host: str) -> bool:
    """Whether a Host header, or an address, names this machine itself."""
    name = host
    if host.startswith("["):
        name = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        name = host.partition(":")[0]
    if name.lower() == "localhost":
        return True
    try:
        address = ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


class Origins:
    """The allowlist, and the same-origin rule beside it.

    The scheme of the own host is not compared: behind a proxy that ends TLS it is not known here.
    """

    def __init__(self, allowed: Iterable[str]) -> None:
        self._allowed = {origin.rstrip("/").lower() for origin in allowed}

    def allows(self, origin: str, host: str | None) -> bool:
        """Whether a page of this origin may call this host."""
        return self.lists(origin) or _is_same(origin, host)

    def lists(self, origin: str) -> bool:
        """Whether the settings name this origin."""
        return origin.lower() in self._allowed


def _is_same(origin: str, host: str | None) -> bool:
    try:
        page = urlsplit(origin)
        here = urlsplit(f"//{host or ''}")
        ports = (page.port, here.port)
    except ValueError:
        return False
    default = _DEFAULT_PORTS.get(page.scheme)
    return (
        default is not None
        and page.hostname is not None
        and page.hostname == here.hostname
        and (ports[0] or default) == (ports[1] or default)
    )


class OriginGate:
    """Refuses what changes something for a page that may not call, and answers CORS for the rest.

    Reading is not refused: without CORS headers, a foreign page can't see the answer. WebSockets
    check the origin themselves, for they can tell the reason only in a close code.
    """

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        headers = Headers(scope=scope) if scope["type"] == "http" else None
        origin = headers.get("origin") if headers is not None else None
        if headers is None or origin is None:
            await self._app(scope, receive, send)
            return
        listed = self._origins.lists(origin)
        if scope["method"] not in _SAFE_METHODS and not self._origins.allows(
            origin, headers.get("host")
        ):
            refused = problems.answer(
                Problem("forbidden_origin", "Pages of this origin may not call this server.")
            )
            await refused(scope, receive, send)
        elif scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            allowed = Response(status_code=replies.NO_CONTENT, headers=_PREFLIGHT_HEADERS)
            await allowed(scope, receive, _with_cors(send, origin) if listed else send)
        else:
            await self._app(scope, receive, _with_cors(send, origin) if listed else send)


def _with_cors(send: Send, origin: str) -> Send:
    async def send_with_cors(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Expose-Headers"] = "Location, Retry-After"
            headers.add_vary_header("Origin")
        await send(message)

    return send_with_cors
