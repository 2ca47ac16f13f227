"""HTTP clients of the tests."""

from typing import Any

import httpx

SECONDS = 60.0
"""How long a request may wait where a test says nothing else; httpx's own 5 s are over soon on a
busy machine."""

_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=60)


def http_client(base_url: str, **options: Any) -> httpx.AsyncClient:
    """A client for any number of requests at once.

    With its own limits httpx (its pool is httpcore's, 1.0.9) closes idle connections where it has
    more than 20 of any kind: also one that it has just given to a request, which then fails with a
    ReadError although the server answers it.
    """
    return httpx.AsyncClient(base_url=base_url, limits=_LIMITS, **{"timeout": SECONDS, **options})
