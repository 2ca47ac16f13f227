"""Tickets: a browser's WebSocket can't send a header, so it shows a ticket, once and soon."""

import hashlib
import secrets
from typing import cast

from fastapi import APIRouter
from redis.asyncio import Redis
from starlette.responses import Response

from api import problems, replies
from api.access import WhoCalls
from api.gateway import Parts
from api.identity import Caller
from api.schemas import TicketBody
from shared.redis_pool import redis_asked

router = APIRouter(tags=["WebSocket"])


async def issue(redis: Redis, caller: Caller, seconds: int) -> str:
    """A new ticket of 256 random bits; only its hash is kept.

    The API key's id and when a JWT runs out stand beside the user's, under names of their own:
    gateways of the release before know only the user.

    Raises:
        QueueUnavailable: Redis did not answer.
    """
    ticket = secrets.token_urlsafe(32)
    with redis_asked():
        async with redis.pipeline() as pipeline:
            pipeline.set(_key(ticket), caller.user_id, ex=seconds)
            if caller.key_id:
                pipeline.set(_key(ticket, "key"), caller.key_id, ex=seconds)
            if caller.until is not None:
                pipeline.set(_key(ticket, "until"), caller.until, ex=seconds)
            await pipeline.execute()
    return ticket


async def redeem(redis: Redis, ticket: str) -> Caller | None:
    """Whose ticket it is, which is used up by that; None for one that is unknown or used.

    Raises:
        QueueUnavailable: Redis did not answer.
    """
    with redis_asked():
        async with redis.pipeline() as pipeline:
            pipeline.getdel(_key(ticket))
            pipeline.getdel(_key(ticket, "key"))
            pipeline.getdel(_key(ticket, "until"))
            user_id, key_id, until = cast("list[bytes | None]", await pipeline.execute())
    if user_id is None:
        return None
    return Caller(user_id.decode(), (key_id or b"").decode(), int(until) if until else None)


def _key(ticket: str, part: str = "") -> str:
    name = f"ticket-{part}" if part else "ticket"
    return f"fireside:{name}:{hashlib.sha256(ticket.encode()).hexdigest()}"


@router.post(
    "/v1/ws-tickets",
    response_model=TicketBody,
    responses=problems.responses("unauthorized", "forbidden_origin", "unavailable"),
)
async def make_ticket(parts: Parts, caller: WhoCalls) -> Response:
    """A ticket for the first frame of a WebSocket; good once, for `expires_in` seconds."""
    seconds = parts.settings.ticket_seconds
    ticket = await issue(parts.redis, caller, seconds)
    return replies.ok({"ticket": ticket, "expires_in": seconds})
