"""Figures shown to Prometheus at an address of their own, by a process of any kind."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry
from prometheus_client import start_http_server as listen
from prometheus_client.registry import Collector

from shared.errors import SettingsError


def show(where: str, setting: str, *collectors: Collector) -> Callable[[], None]:
    """Answer Prometheus at `address:port` from a thread of its own; gives back how to stop it.

    Whoever reaches the address is answered.

    Args:
        setting: what `where` stands in, for the error.

    Raises:
        SettingsError: nobody can listen there.
    """
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    address, _, port = where.rpartition(":")
    try:
        server, _ = listen(int(port), address.strip("[]") or "127.0.0.1", registry)
    except (OSError, OverflowError) as error:
        raise SettingsError(f"{setting}: {error}") from error

    def stop() -> None:
        server.shutdown()
        server.server_close()

    return stop
