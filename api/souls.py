"""Souls: reading, editing, their history, and going back in it.

A session that is under way keeps the version that it has until its window is cut.
"""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from api import problems, replies
from api.access import User
from api.gateway import Parts
from api.soul_schemas import (
    SoulBody,
    SoulEditsRequest,
    SoulNumber,
    SoulRequest,
    SoulRollbackRequest,
    SoulVersionsBody,
)
from shared.records import SoulEdit
from shared.store import souls

router = APIRouter(prefix="/v1/characters/{character_id}/soul", tags=["Souls"])

_READ = problems.responses("unauthorized", "not_found", "invalid_request", "unavailable")
_WRITE = problems.responses(
    "invalid_json",
    "unauthorized",
    "forbidden_origin",
    "not_found",
    "version_conflict",
    "payload_too_large",
    "invalid_request",
    "unavailable",
)


@router.get("", response_model=SoulBody, responses=_READ)
async def get_soul(character_id: UUID, parts: Parts, user: User) -> Response:
    """The newest version."""
    return replies.ok(await souls.newest(parts.db, user, character_id))


@router.put("", response_model=SoulBody, responses=_WRITE)
async def put_soul(character_id: UUID, body: SoulRequest, parts: Parts, user: User) -> Response:
    """Write a whole new text, unless somebody else has written meanwhile."""
    written = await souls.write(
        parts.db, user, character_id, body.soul, expected=body.expected_version
    )
    return replies.ok(written)


@router.patch("", response_model=SoulBody, responses=_WRITE)
async def patch_soul(
    character_id: UUID, body: SoulEditsRequest, parts: Parts, user: User
) -> Response:
    """Change sections and leave the others as they are."""
    edits = [SoulEdit(one.section, one.text) for one in body.edits]
    written = await souls.merge(parts.db, user, character_id, edits, expected=body.expected_version)
    return replies.ok(written)


@router.post("/rollback", response_model=SoulBody, responses=_WRITE)
async def post_rollback(
    character_id: UUID, body: SoulRollbackRequest, parts: Parts, user: User
) -> Response:
    """Undo the newest change, or go back to a version; either way a new version is written."""
    written = await souls.roll_back(
        parts.db, user, character_id, body.version, expected=body.expected_version
    )
    return replies.ok(written)


@router.get("/versions", response_model=SoulVersionsBody, responses=_READ)
async def list_versions(
    character_id: UUID,
    parts: Parts,
    user: User,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    before: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
) -> Response:
    """A page of the versions, newest first."""
    page = await souls.page(parts.db, user, character_id, limit=limit, before=before)
    following = page[-1].version if len(page) == limit else None
    return replies.ok({"versions": page, "next": following})


@router.get("/versions/{version}", response_model=SoulBody, responses=_READ)
async def get_version(
    character_id: UUID, version: Annotated[SoulNumber, Path()], parts: Parts, user: User
) -> Response:
    """One version."""
    return replies.ok(await souls.version(parts.db, user, character_id, version))
