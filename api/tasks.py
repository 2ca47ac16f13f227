"""Tasks, and waiting for their end."""

import asyncio
import contextlib
from time import monotonic
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
    until = monotonic() + seconds
    subscription = parts.follower.add(task.session_id)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await parts.follower.begin(task.session_id, subscription)
        # Asked for again first: it may have ended before the subscription stood. No time-out is
        # about it, for a statement that is given up takes its connection along.
        while not has_ended(task := await actions.get_task(parts.db, user_id, task_id)):
            now = monotonic()
            if parts.stopping or now >= until:
                break
            await _next_sign(subscription, task_id, min(until, now + parts.settings.poll_seconds))
    finally:
        parts.follower.remove(task.session_id, subscription)
    return task


def has_ended(task: Task) -> bool:
    """Whether its status is final."""
    return task.status in TERMINAL_EVENTS


async def _next_sign(subscription: Subscription, task_id: UUID, until: float) -> None:
    """Wait until the task may have ended, or until then."""
    name = str(task_id)
    while (left := until - monotonic()) > 0 and await subscription.wait(left):
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
