"""Tickets: a browser's WebSocket can't send a header, so it shows a ticket, once and soon."""

import hashlib
import secrets
from typing import cast

from fastapi import APIRouter
from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.responses import Response

from api import problems, replies
from api.access import User
from api.gateway import Parts
from api.schemas import TicketBody
from shared.errors import QueueUnavailable

router = APIRouter(tags=["WebSocket"])


async def issue(redis: Redis, user_id: str, seconds: int) -> str:
    """A new ticket of 256 random bits; only its hash is kept.

    Raises:
        QueueUnavailable: Redis did not answer.
    """
    ticket = secrets.token_urlsafe(32)
    try:
        await redis.set(_key(ticket), user_id, ex=seconds)
    except (RedisError, OSError) as error:
        raise QueueUnavailable(str(error)) from error
    return ticket


async def redeem(redis: Redis, ticket: str) -> str | None:
    """The user of a ticket, which is used up by that; None for one that is unknown or used.

    Raises:
        QueueUnavailable: Redis did not answer.
    """
    try:
        user_id = cast("bytes | None", await redis.getdel(_key(ticket)))
    except (RedisError, OSError) as error:
        raise QueueUnavailable(str(error)) from error
    return None if user_id is None else user_id.decode()


def _key(ticket: str) -> str:
    return f"fireside:ticket:{hashlib.sha256(ticket.encode()).hexdigest()}"


@router.post(
    "/v1/ws-tickets",
    response_model=TicketBody,
    responses=problems.responses("unauthorized", "forbidden_origin", "unavailable"),
)
async def make_ticket(parts: Parts, user: User) -> Response:
    """A ticket for the first frame of a WebSocket; good once, for `expires_in` seconds."""
    seconds = parts.settings.ticket_seconds
    ticket = await issue(parts.redis, user, seconds)
    return replies.ok({"ticket": ticket, "expires_in": seconds})
