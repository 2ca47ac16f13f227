"""A module of agents that can't be imported, for a reason that is none of our own errors."""

import os


def _connect() -> None:
    url = os.environ["DATABASE_URL"]
    raise ValueError("these agents are broken" if url else "")


_connect()
