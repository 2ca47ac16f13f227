"""Memories: listing, searching, changing and deleting what characters remember of their user."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from starlette.responses import Response

from api import problems, replies
from api.access import User
from api.gateway import Parts
from api.memory_schemas import (
    DeletedMemoriesBody,
    FoundMemoriesBody,
    MemoriesBody,
    MemoryBody,
    MemoryPatch,
    MemorySearch,
)
from shared.encoding import JsonObject
from shared.memories import Memory, MemoryKind
from shared.store import characters, memory_pages
from shared.store.memory_pages import Wanted

router = APIRouter(prefix="/v1/memories", tags=["Memories"])


def _body(memory: Memory) -> JsonObject:
    return {
        "id": memory.id,
        "character_id": memory.character_id,
        "session_id": memory.session_id,
        "kind": memory.kind,
        "text": memory.text,
        "speaker": memory.speaker,
        "role": memory.role,
        "language": memory.language,
        "sources": memory.sources,
        "importance": memory.importance,
        "said_at": memory.said_at,
        "valid_from": memory.valid_from,
        "valid_to": memory.valid_to,
        "created_at": memory.created_at,
    }


@router.get(
    "",
    response_model=MemoriesBody,
    responses=problems.responses("unauthorized", "invalid_request", "unavailable"),
)
async def list_memories(
    parts: Parts,
    user: User,
    character_id: UUID | None = None,
    session_id: UUID | None = None,
    kind: Annotated[list[MemoryKind] | None, Query(max_length=6)] = None,
    closed: bool = False,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: UUID | None = None,
) -> Response:
    """A page of the caller's memories, newest first; `closed` with those not true any more."""
    wanted = Wanted(character_id, session_id, kind, closed)
    page = await memory_pages.page(parts.db, user, wanted, limit=limit, before=before)
    following = page[-1].id if len(page) == limit else None
    return replies.ok({"memories": [_body(one) for one in page], "next": following})


@router.post(
    "/search",
    response_model=FoundMemoriesBody,
    responses=problems.responses("unauthorized", "unavailable", *problems.OF_BODIES),
)
async def search_memories(body: MemorySearch, parts: Parts, user: User) -> Response:
    """The caller's memories that have words of the text, the best first."""
    found = await memory_pages.search(
        parts.db,
        user,
        Wanted(body.character_id, body.session_id, body.kinds, body.closed),
        body.text,
        limit=body.limit,
        language=body.language,
    )
    return replies.ok({"memories": [_body(one) for one in found]})


@router.get(
    "/{memory_id}",
    response_model=MemoryBody,
    responses=problems.responses("unauthorized", "not_found", "unavailable"),
)
async def get_memory(memory_id: UUID, parts: Parts, user: User) -> Response:
    """One memory."""
    return replies.ok(_body(await memory_pages.get(parts.db, user, memory_id)))


@router.patch(
    "/{memory_id}",
    response_model=MemoryBody,
    responses=problems.responses("unauthorized", "not_found", "unavailable", *problems.OF_BODIES),
)
async def patch_memory(memory_id: UUID, body: MemoryPatch, parts: Parts, user: User) -> Response:
    """Change what a memory says, how much it matters, or whether it is still true."""
    changed = await memory_pages.change(
        parts.db, user, memory_id, words=body.text, importance=body.importance, valid=body.valid
    )
    return replies.ok(_body(changed))


@router.delete(
    "/{memory_id}",
    status_code=replies.NO_CONTENT,
    responses=problems.responses("unauthorized", "forbidden_origin", "not_found", "unavailable"),
)
async def delete_memory(memory_id: UUID, parts: Parts, user: User) -> Response:
    """Delete one memory; what was said stays in the transcript."""
    await memory_pages.delete(parts.db, user, memory_id)
    return replies.no_content()


@router.delete(
    "",
    response_model=DeletedMemoriesBody,
    responses=problems.responses(
        "unauthorized", "forbidden_origin", "not_found", "invalid_request", "unavailable"
    ),
)
async def delete_memories(character_id: UUID, parts: Parts, user: User) -> Response:
    """Delete all that a character remembers."""
    await characters.get(parts.db, user, character_id)
    deleted = await memory_pages.delete_all(parts.db, user, character_id)
    return replies.ok({"deleted": deleted})
