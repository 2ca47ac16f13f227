"""Figures at an address of their own."""

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.errors import SettingsError
from shared.exposition import show
from tests.exposed import lines_at
from tests.ports import promised_port


class One(Collector):
    """A figure."""

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("fireside_one", "One", value=1)


@pytest.mark.parametrize("address", ["", "127.0.0.1", "localhost"])
def test_who_asks_is_shown_the_figures_until_they_end(address: str) -> None:
    port = promised_port()
    lines = lines_at(port, show(f"{address}:{port}", "FIRESIDE_X", One()))

    assert lines[-1] == "fireside_one 1.0"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=30)


def test_a_port_that_is_taken_is_said() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match="FIRESIDE_X: "):
            show(f"127.0.0.1:{port}", "FIRESIDE_X", One())


@pytest.mark.parametrize("where", ["127.0.0.1:99999", "no.such.host.invalid:1"])
def test_an_address_that_is_none_is_said(where: str) -> None:
    with pytest.raises(SettingsError, match="FIRESIDE_X: "):
        show(where, "FIRESIDE_X", One())
