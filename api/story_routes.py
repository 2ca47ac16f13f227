"""The story routes of the original design: one call acts, one asks how far the task is."""

import re
from uuid import UUID

from fastapi import APIRouter
from starlette.responses import Response

from api import problems, replies
from api.access import KeyId, User
from api.actions import IdempotencyKey, accept
from api.gateway import Gateway, Parts
from api.schemas import (
    STORY_KEY,
    Say,
    StoryAccepted,
    StoryAction,
    StoryStatus,
    StoryTaskStatus,
    new_action,
)
from api.sessions import create
from shared.encoding import JsonObject
from shared.errors import NotFound
from shared.records import Session, Task, TaskStatus
from shared.store import actions, sessions

router = APIRouter(prefix="/api/story", tags=["Story"])

_NAME = re.compile(STORY_KEY)

_STATUSES: dict[TaskStatus, StoryTaskStatus] = {
    "queued": "PENDING",
    "running": "STARTED",
    "completed": "SUCCESS",
    "failed": "FAILURE",
    "dead": "FAILURE",
    "cancelled": "REVOKED",
}


async def find_session(parts: Gateway, user_id: str, name: str) -> Session:
    """The caller's session of this id, or else of this key; raises NotFound."""
    if not _NAME.match(name):
        raise NotFound("no such session")
    try:
        return await sessions.get(parts.db, user_id, UUID(name))
    except (ValueError, NotFound):
        return await sessions.get_by_key(parts.db, user_id, name)


def story_result(result: JsonObject) -> JsonObject:
    """A task's result under the keys of the story routes."""
    return {
        "response": result.get("text", ""),
        "decision": result.get("decision"),
        "updated_state": result.get("state", {}),
    }


async def _find_or_create(parts: Gateway, user_id: str, key_id: str, name: str) -> UUID:
    try:
        return (await find_session(parts, user_id, name)).id
    except NotFound:
        choice = await parts.catalog.default_choice()
        session, _, _ = await create(parts, user_id, choice, key=name, key_id=key_id)
        return session.id


@router.post(
    "/action",
    response_model=StoryAccepted,
    responses=problems.responses(
        "invalid_json",
        "unauthorized",
        "budget_spent",
        "forbidden_origin",
        "idempotency_conflict",
        "payload_too_large",
        "invalid_request",
        "too_many_tasks",
        "unavailable",
    ),
)
async def post_story_action(
    body: StoryAction,
    parts: Parts,
    user: User,
    key_id: KeyId,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Say something in a story; a session that does not exist yet is made."""
    session_id = await _find_or_create(parts, user, key_id, body.session_id)
    action = new_action(Say(type="say", text=body.user_input), idempotency_key, key_id)
    accepted = await accept(parts, user, session_id, action)
    return replies.ok({"task_id": accepted.task_id, "status": "processing"})


@router.get(
    "/status/{task_id}",
    response_model=StoryStatus,
    responses=problems.responses("unauthorized", "not_found", "unavailable"),
)
async def get_story_status(task_id: UUID, parts: Parts, user: User) -> Response:
    """How far a task is, and what it gave."""
    task = await actions.get_task(parts.db, user, task_id)
    result = story_result(task.result) if task.status == "completed" and task.result else None
    return replies.ok({"status": _status(task), "result": result})


def _status(task: Task) -> StoryTaskStatus:
    if task.status == "running" and not task.leased:
        return "RETRY"  # its worker is gone, and the next attempt has not begun
    return _STATUSES[task.status]
