"""Claims that outlast Postgres: asked for until it answers, and made once."""

import time
from collections.abc import Awaitable
from functools import partial
from typing import Protocol
from uuid import UUID, uuid4

from shared.records import Claim
from worker.outage import Outage


class _Ask(Protocol):
    def __call__(self, *, token: UUID, again: bool) -> Awaitable[Claim | None]: ...


async def claimed(outage: Outage, claim: _Ask) -> tuple[Claim | None, float]:
    """What is claimed as soon as Postgres answers, and when its lease was asked for.

    Args:
        claim: a claim of `shared.store.claims` without its `token` and `again`: one that was made
            and whose answer was lost is found by them.

    Raises:
        StoreUnavailable: Postgres does not answer for longer than it is waited for.
    """
    token = uuid4()

    async def ask(*, again: bool) -> tuple[Claim | None, float]:
        began = time.monotonic()
        return await claim(token=token, again=again), began

    return await outage.outlast(partial(ask, again=False), partial(ask, again=True))
