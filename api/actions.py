"""Accepting and cancelling actions: commit first, then tell workers and clients."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Body, Header
from starlette.responses import Response

from api import budgets, problems, replies
from api.access import KeyId, User
from api.gateway import Gateway, Parts
from api.problems import Problem
from api.schemas import AcceptedBody, Action, CancelledBody, CancelRequest, new_action
from api.texts import PRINTABLE_ID
from shared.encoding import JsonObject
from shared.errors import BudgetSpent, TooManyTasks
from shared.records import Accepted, NewAction
from shared.store import actions, cancels

router = APIRouter(tags=["Actions"])

IdempotencyKey = Annotated[str | None, Header(pattern=PRINTABLE_ID)]


async def accept(parts: Gateway, user_id: str, session_id: UUID, new: NewAction) -> Accepted:
    """Accept an action; when this returns, it is committed.

    Raises:
        NotFound: the user has no such session.
        SessionBusy: the action asked not to wait.
        Problem: the user, or all together, have too many tasks open, or a budget is spent.
        IdempotencyConflict: the key belongs to another action.
        StoreUnavailable: Postgres did not answer.
    """
    async with refusals(parts, user_id, new.key_id):
        accepted = await actions.accept(
            parts.db, user_id, session_id, new, most=parts.backlog.most, rules=parts.budgeting.rules
        )
    parts.metrics.accepted(new.action["type"], fresh=accepted.fresh)
    announce(parts, accepted)
    return accepted


@asynccontextmanager
async def refusals(parts: Gateway, user_id: str, key_id: str) -> AsyncIterator[None]:
    """What refuses a task for a while is raised as a Problem that says for how long."""
    try:
        yield
    except TooManyTasks as error:
        raise parts.backlog.problem(error) from error
    except BudgetSpent as error:
        raise await budgets.problem(parts, user_id, key_id) from error


def announce(parts: Gateway, accepted: Accepted) -> None:
    """Tell of an action that is committed; one that was known before is hinted again."""
    if accepted.fresh:
        parts.backlog.accepted()
    parts.announcer.tell(
        accepted.session_id,
        accepted.events,
        hint=True,
        cancelled=accepted.interrupts,
        joins=accepted.joins,
        level=accepted.level,
    )


async def cancel_task(parts: Gateway, user_id: str, task_id: UUID) -> UUID:
    """Cancel a task; its session. Raises NotFound."""
    session_id, events = await cancels.cancel_task(parts.db, user_id, task_id)
    parts.announcer.tell(session_id, events, cancelled=task_id)
    return session_id


async def cancel_action(
    parts: Gateway, user_id: str, session_id: UUID, client_action_id: str
) -> UUID | None:
    """Cancel by the client's id of an action; its task, if it has arrived. Raises NotFound."""
    task_id, events = await cancels.cancel_action(parts.db, user_id, session_id, client_action_id)
    parts.announcer.tell(session_id, events, cancelled=task_id)
    return task_id


def one_key(header: str | None, body: str | None) -> str | None:
    """The idempotency key, which may be given in two ways; raises Problem where they differ."""
    if header and body and header != body:
        raise Problem(
            "invalid_request", "Idempotency-Key and client_action_id are given and differ."
        )
    return header or body


def accepted_body(accepted: Accepted) -> JsonObject:
    """What a client is told of its action."""
    return {
        "task_id": accepted.task_id,
        "session_id": accepted.session_id,
        "status": accepted.status,
        "seq": accepted.seq,
        "position": accepted.position,
    }


@router.post(
    "/v1/sessions/{session_id}/actions",
    status_code=replies.ACCEPTED,
    response_model=AcceptedBody,
    responses={
        replies.OK: {"model": AcceptedBody, "description": "accepted before under the same key"},
        **problems.responses(
            "invalid_json",
            "unauthorized",
            "budget_spent",
            "forbidden_origin",
            "not_found",
            "idempotency_conflict",
            "session_busy",
            "payload_too_large",
            "invalid_request",
            "too_many_tasks",
            "unavailable",
        ),
    },
)
async def post_action(
    session_id: UUID,
    action: Annotated[Action, Body()],
    parts: Parts,
    user: User,
    key_id: KeyId,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Accept an action as a task; the answer comes as events, or by asking for the task."""
    key = one_key(idempotency_key, action.client_action_id)
    accepted = await accept(parts, user, session_id, new_action(action, key, key_id))
    location = {"Location": f"/v1/tasks/{accepted.task_id}"}
    return replies.accepted(accepted_body(accepted), location, fresh=accepted.fresh)


@router.post(
    "/v1/tasks/{task_id}/cancel",
    status_code=replies.ACCEPTED,
    response_model=CancelledBody,
    responses=problems.responses("unauthorized", "forbidden_origin", "not_found", "unavailable"),
)
async def post_task_cancel(task_id: UUID, parts: Parts, user: User) -> Response:
    """Cancel a queued or a running task; one that has ended stays as it is."""
    session_id = await cancel_task(parts, user, task_id)
    return replies.accepted({"task_id": task_id, "session_id": session_id})


@router.post(
    "/v1/sessions/{session_id}/cancel",
    status_code=replies.ACCEPTED,
    response_model=CancelledBody,
    responses=problems.responses(
        "invalid_json",
        "unauthorized",
        "forbidden_origin",
        "not_found",
        "payload_too_large",
        "invalid_request",
        "unavailable",
    ),
)
async def post_action_cancel(
    session_id: UUID, body: CancelRequest, parts: Parts, user: User
) -> Response:
    """Cancel by the client's own id of an action, also before that action arrives."""
    task_id = await cancel_action(parts, user, session_id, body.client_action_id)
    return replies.accepted({"task_id": task_id, "session_id": session_id})
