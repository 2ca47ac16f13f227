"""`python -m api`: the gateway with the server's options as Fireside wants them."""

import contextlib
import os
import socket
import sys

import structlog
import uvicorn

from api.app import create_app
from api.origins import is_loopback_host
from api.socket import MAX_FRAME
from api.wire import Wire
from shared.command import complain
from shared.errors import SettingsError
from shared.garbage import steady_garbage
from shared.logs import set_up_logs
from shared.settings import Settings, get_settings, warn_of_unknown_variables

log = structlog.get_logger(__name__)

_DEFAULT_PORT = 8000
_BACKLOG = 2048

_SEND_BUFFER = 64 * 1024
"""Bytes that the kernel keeps for a client; Linux takes twice as much."""

KEEP_ALIVE_SECONDS = 75
"""How long a connection without a request stays open: longer than load balancers and clients keep
one. A request that meets our closing fails, and nobody may repeat a POST."""


def main() -> int:
    """Serve until SIGTERM or SIGINT; one clear line where that can't begin."""
    try:
        settings = get_settings()
        listener = _listen(settings, _port())
    except SettingsError as error:
        return complain(error)
    set_up_logs(settings)
    warn_of_unknown_variables()
    host, port = listener.getsockname()[:2]
    log.info("gateway listens", host=host, port=port, auth=settings.auth)
    server = _server(settings)
    steady_garbage()
    with contextlib.suppress(KeyboardInterrupt):  # raised again by uvicorn when all has ended
        server.run(sockets=[listener])
    return 0


def _port() -> int:
    value = os.environ.get("PORT") or str(_DEFAULT_PORT)
    if not value.isdecimal() or int(value) > 65_535:
        raise SettingsError("PORT: must be a number from 0 to 65535")
    return int(value)


def _listen(settings: Settings, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        SettingsError: access is `none` on an address that others reach, or the address is taken.
    """
    host = settings.host
    if settings.auth == "none" and not is_loopback_host(host):
        raise SettingsError("FIRESIDE_AUTH: `none` works only with a loopback FIRESIDE_HOST")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections inherit both. By itself the kernel keeps megabytes for one that reads nothing.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # A client that reads nothing keeps the server's closing from
        # being sent, and without this its connection for a quarter of an hour.
        milliseconds = int(max(settings.send_seconds, settings.ping_seconds) * 2000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise SettingsError(f"can't listen on {host}:{port}: {error.strerror}") from error
    listener.listen(_BACKLOG)
    return listener


def _server(settings: Settings) -> uvicorn.Server:
    config = uvicorn.Config(
        create_app(settings),
        loop="uvloop",
        http="httptools",
        ws=Wire,
        ws_max_size=MAX_FRAME,
        ws_per_message_deflate=False,
        access_log=False,
        log_config=None,
        log_level="warning",
        lifespan="on",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(settings.drain_seconds),
    )
    return uvicorn.Server(config)


if __name__ == "__main__":
    sys.exit(main())
