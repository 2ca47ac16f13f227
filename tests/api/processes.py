"""Gateways as processes of their own."""

from collections.abc import Callable

from deploy.local.server import HttpServer


class Gateway(HttpServer):
    """A gateway, started by one of its two commands."""

    path = "/readyz"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def complaints(self) -> list[str]:
        """What it wrote of errors; a warning may be of a machine that stood still."""
        return [
            line
            for line in self.output()
            if "Traceback" in line or ("rror" in line and '"level": "warning"' not in line)
        ]


Start = Callable[..., Gateway]
