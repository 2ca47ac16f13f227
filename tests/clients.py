"""HTTP clients of the tests."""

from typing import Any

import httpx

from tests.waiting import PATIENCE

_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=60)


def http_client(base_url: str, **options: Any) -> httpx.AsyncClient:
    """A client for any number of requests at once.

    With its own limits httpx (its pool is httpcore's, 1.0.9) closes idle connections where it has
    more than 20 of any kind: also one that it has just given to a request, which then fails with a
    ReadError although the server answers it. And it gives up after five seconds, which is less than
    a busy machine may stand still; a long poll takes `PATIENCE` by itself.
    """
    options = {"timeout": 2 * PATIENCE} | options
    return httpx.AsyncClient(base_url=base_url, limits=_LIMITS, **options)
