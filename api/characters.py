"""Characters: a user's durable personas and their souls."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from starlette.responses import Response

from api import problems, replies
from api.access import KeyId, User
from api.gateway import Parts
from api.schemas import CharacterBody, CharacterPatch, CharacterRequest, CharactersBody
from shared.store import characters

router = APIRouter(prefix="/v1/characters", tags=["Characters"])


@router.post(
    "",
    status_code=replies.CREATED,
    response_model=CharacterBody,
    responses=problems.responses("unauthorized", "unavailable", *problems.OF_BODIES),
)
async def post_character(
    body: CharacterRequest, parts: Parts, user: User, key_id: KeyId
) -> Response:
    """Make a character of an agent."""
    await parts.catalog.choose(body.agent, None)
    made = await characters.create(parts.db, user, body.agent, body.name, body.soul, key_id=key_id)
    return replies.created(made, f"/v1/characters/{made.id}", fresh=True)


@router.get(
    "",
    response_model=CharactersBody,
    responses=problems.responses("unauthorized", "invalid_request", "unavailable"),
)
async def list_characters(
    parts: Parts, user: User, limit: Annotated[int, Query(ge=1, le=200)] = 100
) -> Response:
    """The caller's characters, newest first."""
    return replies.ok({"characters": await characters.page(parts.db, user, limit=limit)})


@router.get(
    "/{character_id}",
    response_model=CharacterBody,
    responses=problems.responses("unauthorized", "not_found", "unavailable"),
)
async def get_character(character_id: UUID, parts: Parts, user: User) -> Response:
    """One character."""
    return replies.ok(await characters.get(parts.db, user, character_id))


@router.patch(
    "/{character_id}",
    response_model=CharacterBody,
    responses=problems.responses("unauthorized", "not_found", "unavailable", *problems.OF_BODIES),
)
async def patch_character(
    character_id: UUID, body: CharacterPatch, parts: Parts, user: User
) -> Response:
    """Change a character's name, or write a new version of its soul."""
    changed = await characters.update(parts.db, user, character_id, name=body.name, soul=body.soul)
    return replies.ok(changed)


@router.delete(
    "/{character_id}",
    status_code=replies.NO_CONTENT,
    responses=problems.responses(
        "unauthorized", "forbidden_origin", "not_found", "session_busy", "unavailable"
    ),
)
async def delete_character(character_id: UUID, parts: Parts, user: User) -> Response:
    """Delete a character that no session uses."""
    await characters.delete(parts.db, user, character_id)
    return replies.no_content()
