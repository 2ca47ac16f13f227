"""Ports for servers that are told where to listen and do so only seconds later, and for none."""

import itertools
import os
import random
import socket
from collections.abc import Iterator

import pytest

from deploy.local.ports import LOWEST, is_free

_PROCESSES = 5
_EACH = 1_000
_numbers = itertools.count(random.randrange(_EACH))


def promised_port() -> int:
    """A port that nobody takes meanwhile: servers that look for a free one do so from `LOWEST` on,
    and each process of a test run has a range of its own below it."""
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = LOWEST - (1 + process % _PROCESSES) * _EACH
    return next(port for n in _numbers if is_free("127.0.0.1", port := first + n % _EACH))


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port at which nobody listens for the length of the test: connections are refused.

    One that was only found to be free may be another process's a moment later. This one is taken,
    without a word to say that others may have it too.
    """
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])
