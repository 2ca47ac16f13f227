"""Ports of this machine: finding free ones, and saying clearly that one is taken."""

import errno
import random
import socket
from pathlib import Path

from deploy.local.errors import LaunchError, PortInUseError

LOWEST, HIGHEST = 15_000, 32_000
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on now.

    Not one of the kernel's own choice: those are also the source ports of outgoing connections,
    so a client that retries while our server restarts could take the server's port, or even
    connect to itself.
    """
    low, high = LOWEST, min(HIGHEST, _first_ephemeral() - 1)
    if high - low < 1000:
        return _kernels_choice(host)
    for _ in range(200):
        port = random.randint(low, high)
        if is_free(host, port):
            return port
    return _kernels_choice(host)


def is_free(host: str, port: int) -> bool:
    """Tell whether we could listen there."""
    try:
        require_free(host, port)
    except PortInUseError:
        return False
    return True


def require_free(host: str, port: int) -> None:
    """Raise PortInUseError if a program listens there, LaunchError if the address is not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As the servers do: a connection that has only just ended must not count as "in use".
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortInUseError(
                    f"port {port} on {host} is in use by another program"
                ) from error
            raise LaunchError(f"cannot listen on {host} port {port}: {error.strerror}") from error


def _first_ephemeral() -> int:
    try:
        return int(_EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 49_152  # where IANA's dynamic range begins; macOS uses it


def _kernels_choice(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
