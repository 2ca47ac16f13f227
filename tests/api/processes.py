"""Gateways as processes of their own."""

from collections.abc import Callable

from deploy.local.server import HttpServer


class Gateway(HttpServer):
    """A gateway, started by one of its two commands."""

    path = "/readyz"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


Start = Callable[..., Gateway]
