"""Sessions: making, listing, reading, deleting, and their transcripts."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from starlette.responses import Response

from api import problems, replies
from api.access import KeyId, User
from api.actions import announce, refusals
from api.catalog import Choice
from api.gateway import Gateway, Parts
from api.schemas import (
    MAX_NUMBER,
    PRIORITIES,
    MessagesBody,
    NewSessionBody,
    Priority,
    SessionBody,
    SessionRequest,
    SessionsBody,
)
from shared.encoding import JsonObject
from shared.records import NewSession, Session
from shared.store import sessions

router = APIRouter(tags=["Sessions"])


async def create(
    parts: Gateway,
    user_id: str,
    choice: Choice,
    *,
    key: str | None = None,
    key_id: str = "",
    character_id: UUID | None = None,
    title: str = "",
    metadata: JsonObject | None = None,
    priority: Priority | None = None,
) -> tuple[Session, UUID, bool]:
    """Make a session and its opening task, or find the one that the key made before.

    Returns:
        The session, the opening task's id, and whether it was made now.

    Raises:
        InvalidRequest: the user has no such character of this agent.
        Problem: the user, or all together, have too many tasks open, or a budget is spent.
    """
    new = NewSession(
        agent=choice.agent,
        story=choice.story,
        story_hash=choice.story_hash,
        character_id=character_id,
        key=key,
        title=title,
        metadata=metadata or {},
        priority=PRIORITIES.index(priority or choice.priority),
        key_id=key_id,
    )
    async with refusals(parts, user_id, key_id):
        session, task_id, accepted = await sessions.create(
            parts.db,
            user_id,
            new,
            choice.agent_title,
            most=parts.backlog.most,
            rules=parts.budgeting.rules,
        )
    if accepted is not None:
        announce(parts, accepted)
    return session, task_id, accepted is not None


def session_body(session: Session) -> JsonObject:
    """A session as its owner sees it."""
    return {
        "id": session.id,
        "key": session.key,
        "agent": session.agent,
        "story": session.story,
        "character_id": session.character_id,
        "title": session.title,
        "metadata": session.metadata,
        "status": session.status,
        "head_seq": session.head_seq,
        "first_seq": session.first_seq,
        "state": session.view.get("state", {}),
        "choices": session.view.get("choices", []),
        "priority": PRIORITIES[min(session.priority, 1)],
        "created_at": session.created_at,
        "updated_at": session.updated_at,
    }


@router.post(
    "/v1/sessions",
    status_code=replies.CREATED,
    response_model=NewSessionBody,
    responses={
        replies.OK: {"model": NewSessionBody, "description": "made before under the same key"},
        **problems.responses(
            "unauthorized", "budget_spent", "too_many_tasks", "unavailable", *problems.OF_BODIES
        ),
    },
)
async def post_session(body: SessionRequest, parts: Parts, user: User, key_id: KeyId) -> Response:
    """Make a session; its opening task gives the first text."""
    if body.key is not None:
        # Before anything else is looked at: what was on offer when it was made may be so no more.
        before = await sessions.made_before(parts.db, user, body.key)
        if before is not None:
            return _created(*before, fresh=False)
    choice = await parts.catalog.choose(body.agent, body.story)
    session, task_id, fresh = await create(
        parts,
        user,
        choice,
        key=body.key,
        key_id=key_id,
        character_id=body.character_id,
        title=body.title,
        metadata=body.metadata,
        priority=body.priority,
    )
    return _created(session, task_id, fresh=fresh)


def _created(session: Session, task_id: UUID, *, fresh: bool) -> Response:
    content = {**session_body(session), "task_id": task_id}
    return replies.created(content, f"/v1/sessions/{session.id}", fresh=fresh)


@router.get(
    "/v1/sessions",
    response_model=SessionsBody,
    responses=problems.responses("unauthorized", "invalid_request", "unavailable"),
)
async def list_sessions(
    parts: Parts,
    user: User,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    before: UUID | None = None,
) -> Response:
    """A page of the caller's sessions, newest first."""
    page = await sessions.page(parts.db, user, limit=limit, before=before)
    following = page[-1].id if len(page) == limit else None
    return replies.ok({"sessions": [session_body(one) for one in page], "next": following})


@router.get(
    "/v1/sessions/{session_id}",
    response_model=SessionBody,
    responses=problems.responses("unauthorized", "not_found", "unavailable"),
)
async def get_session(session_id: UUID, parts: Parts, user: User) -> Response:
    """One session."""
    return replies.ok(session_body(await sessions.get(parts.db, user, session_id)))


@router.delete(
    "/v1/sessions/{session_id}",
    status_code=replies.NO_CONTENT,
    responses=problems.responses("unauthorized", "forbidden_origin", "not_found", "unavailable"),
)
async def delete_session(session_id: UUID, parts: Parts, user: User) -> Response:
    """Delete a session and all that belongs to it."""
    await sessions.delete(parts.db, user, session_id)
    parts.follower.mark_stale(session_id)
    return replies.no_content()


@router.get(
    "/v1/sessions/{session_id}/messages",
    response_model=MessagesBody,
    responses=problems.responses("unauthorized", "not_found", "invalid_request", "unavailable"),
)
async def list_messages(
    session_id: UUID,
    parts: Parts,
    user: User,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    before: Annotated[int | None, Query(ge=1, le=MAX_NUMBER)] = None,
) -> Response:
    """The newest messages of the current branch, or the newest before one of them, oldest first.

    `next` is the `before` of the page with what was said earlier.
    """
    await sessions.get(parts.db, user, session_id)
    found = await sessions.messages(parts.db, user, session_id, limit=limit, before=before)
    content = [
        {
            "id": one.no,
            "parent": one.parent,
            "task_id": one.task_id,
            "message": one.message,
            "created_at": one.created_at,
        }
        for one in found
    ]
    following = found[0].no if found and found[0].parent is not None else None
    return replies.ok({"messages": content, "next": following})
