"""Whether this process lives, and whether it can serve."""

import asyncio
from collections.abc import Awaitable
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from redis.exceptions import RedisError
from starlette.responses import Response

from api import problems, replies
from api.gateway import Gateway, Parts
from api.problems import Problem
from api.schemas import HealthBody
from shared.errors import FiresideError, StoreUnavailable
from shared.redis_pool import redis_said
from shared.schema import is_older
from shared.trouble import Trouble

router = APIRouter(tags=["Health"])

_CHECK_SECONDS = 3.0


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", response_model=HealthBody)
async def healthz() -> Response:
    """The process answers."""
    return replies.ok({"status": "ok"})


For = Annotated[
    Literal["traffic"] | None,
    Query(
        alias="for",
        description="`traffic`: whether to give this gateway requests. Redis is not asked for "
        "then, for without it actions are accepted and run all the same.",
    ),
]


@router.head("/readyz", include_in_schema=False)
@router.get(
    "/readyz",
    response_model=HealthBody,
    responses=problems.responses("unavailable", "invalid_request"),
)
async def readyz(parts: Parts, asked: For = None) -> Response:
    """Postgres takes writes, Redis answers, and the schema is this release's or newer."""
    looking = {"postgres": _postgres(parts)}
    if asked is None:
        looking["redis"] = _redis(parts)
    outcomes = await asyncio.gather(
        *(_outcome(check, parts.not_ready[name]) for name, check in looking.items())
    )
    ended = parts.beside.ended
    background = f"ended: {', '.join(ended)}" if ended else "ok"
    checks = {**dict(zip(looking, outcomes, strict=True)), "background": background}
    if set(checks.values()) != {"ok"} or parts.stopping:
        raise Problem("unavailable", "Not ready to serve.", {"checks": checks})
    return replies.ok({"status": "ok", "checks": checks})


async def _outcome(check: Awaitable[None], trouble: Trouble) -> str:
    try:
        async with asyncio.timeout(_CHECK_SECONDS):
            await check
    except TimeoutError:
        trouble.goes_on("no answer in time")
        return "no answer in time"
    except (FiresideError, RedisError, OSError) as error:
        trouble.goes_on(redis_said(error))
        return error.shown if isinstance(error, _Unfit) else "unavailable"
    trouble.is_over()
    return "ok"


class _Unfit(StoreUnavailable):
    """The database answers, but can't be served from; `shown` says why to those who ask."""

    def __init__(self, shown: str, reason: str) -> None:
        super().__init__(reason)
        self.shown = shown


async def _postgres(parts: Gateway) -> None:
    await parts.db.beside_gate().check_writable()
    found = await parts.db.revision()
    if is_older(found):
        reason = f"the schema's revision is {found}; run `python -m shared.migrate`"
        raise _Unfit("schema out of date", reason)
    if parts.db.gate.closed is not None:
        raise _Unfit("not in line", parts.db.gate.closed)


async def _redis(parts: Gateway) -> None:
    await parts.redis.ping()
