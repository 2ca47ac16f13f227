"""Tasks, and waiting for their end."""

import asyncio
import contextlib
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from starlette.responses import Response

from api import problems, replies
from api.access import User
from api.gateway import Gateway, Parts
from api.schemas import TaskBody
from shared.encoding import JsonObject, loads
from shared.events import TERMINAL_TYPES, Line
from shared.follow import Subscription
from shared.records import TERMINAL_EVENTS, Task
from shared.store import actions

router = APIRouter(tags=["Tasks"])

MAX_WAIT = 30.0


async def wait_for_end(parts: Gateway, user_id: str, task_id: UUID, seconds: float) -> Task:
    """A task as it is when it ends, or after so many seconds.

    Raises:
        NotFound: the user has no such task.
    """
    task = await actions.get_task(parts.db, user_id, task_id)
    if seconds <= 0 or has_ended(task):
        return task
    with contextlib.suppress(TimeoutError):
        async with (
            asyncio.timeout(seconds),
            parts.follower.follow(task.session_id) as subscription,
        ):
            # Asked for again first: it may have ended before the subscription stood.
            while not has_ended(task := await actions.get_task(parts.db, user_id, task_id)):
                if parts.stopping:
                    break
                await _next_sign(subscription, task_id, parts.settings.poll_seconds)
    return task


def has_ended(task: Task) -> bool:
    """Whether its status is final."""
    return task.status in TERMINAL_EVENTS


async def _next_sign(subscription: Subscription, task_id: UUID, seconds: float) -> None:
    """Wait until the task may have ended, or so many seconds."""
    name = str(task_id)
    while await subscription.wait(seconds):
        if subscription.take_stale() or any(_ends(line, name) for line in subscription.take()):
            return


def _ends(line: Line, task_id: str) -> bool:
    if line.seq is None or line.task_id != task_id:
        return False
    return loads(line.frame)["type"] in TERMINAL_TYPES


def _body(task: Task) -> JsonObject:
    return {
        "task_id": task.id,
        "session_id": task.session_id,
        "status": task.status,
        "result": task.result,
        "error": task.error,
        "usage": task.usage,
        "created_at": task.created_at,
        "started_at": task.started_at,
        "finished_at": task.finished_at,
    }


@router.get(
    "/v1/tasks/{task_id}",
    response_model=TaskBody,
    responses=problems.responses("unauthorized", "not_found", "invalid_request", "unavailable"),
)
async def get_task(
    task_id: UUID,
    parts: Parts,
    user: User,
    wait: Annotated[float, Query(ge=0, le=MAX_WAIT, allow_inf_nan=False)] = 0,
) -> Response:
    """A task; with `wait`, as it is when it ends or after so many seconds."""
    return replies.ok(_body(await wait_for_end(parts, user, task_id, wait)))
