"""Everything of the caller: given out whole, and erased for good."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response, StreamingResponse

from api import problems, replies
from api.access import User
from api.gateway import Parts
from shared.encoding import JsonObject, dumps
from shared.erasure import erase_user
from shared.store import export
from shared.store.database import Database

router = APIRouter(prefix="/v1/me", tags=["Me"])

_CHUNK = 65_536


class ExportBody(BaseModel):
    """All rows of a user by table. `complete` comes last: without it the answer was cut off."""

    user_id: str
    exported_at: datetime
    tables: dict[str, list[JsonObject]]
    complete: bool


class ErasedBody(BaseModel):
    """How many rows of each table were deleted; none was found afterwards."""

    erased: dict[str, int]


@router.get(
    "/export",
    response_model=ExportBody,
    responses=problems.responses("unauthorized", "unavailable"),
)
async def export_me(parts: Parts, user: User) -> Response:
    """Everything that is kept of the caller, as one JSON document."""
    await parts.db.check_writable()  # while an error can still be told
    return StreamingResponse(
        _document(parts.db, user),
        media_type="application/json",
        headers={"Content-Disposition": 'attachment; filename="fireside-export.json"'},
    )


async def _document(db: Database, user_id: str) -> AsyncIterator[bytes]:
    head = {"user_id": user_id, "exported_at": datetime.now(UTC)}
    waiting = [dumps(head)[:-1], b',"tables":{']
    size, table = 0, ""
    async for name, row in export.rows(db, user_id):
        if name != table:
            waiting.append(b"%s%s:[" % (b"]," if table else b"", dumps(name)))
        waiting += [b"," if name == table else b"", row.encode()]
        table = name
        size += len(row)
        if size > _CHUNK:
            yield b"".join(waiting)
            waiting, size = [], 0
    waiting.append(b'%s},"complete":true}' % (b"]" if table else b""))
    yield b"".join(waiting)


@router.delete(
    "",
    response_model=ErasedBody,
    responses={
        replies.ACCEPTED: {
            "model": ErasedBody,
            "description": "the rows are gone; what Redis still has follows by itself",
        },
        **problems.responses("unauthorized", "forbidden_origin", "session_busy", "unavailable"),
    },
)
async def delete_me(parts: Parts, user: User) -> Response:
    """Erase everything of the caller, API keys included; what runs is stopped.

    After 503 it can be called again; 401 then says that it was done.
    """
    erased = await erase_user(
        parts.db,
        parts.redis,
        parts.hints,
        user,
        settle_seconds=parts.settings.lease_seconds,
    )
    for session_id in erased.sessions:
        parts.follower.mark_stale(session_id)
    if parts.identity is not None:
        parts.identity.forget_keys()
    content = {"erased": erased.rows}
    return replies.ok(content) if erased.cleared else replies.accepted(content)
