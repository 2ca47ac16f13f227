"""API keys: made once, shown once, stored as their SHA-256."""

import hashlib
import secrets
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.errors import KeyGone
from shared.records import ApiKey
from shared.store.database import Database

PREFIX = "fs_"
"""Lets secret scanners and people see what a leaked string is."""

_INSERT = text(
    """/* api key insert */
    insert into api_keys (user_id, label, sha256) values (:user, :label, :sha256) returning id
    """
)
_OWNER = text(
    """/* api key owner */
    select user_id, id from api_keys where sha256 = :sha256 and revoked_at is null
    """
)
# Who erases a user deletes the keys before all else in one transaction, and so waits for whoever
# has this lock; whoever comes later waits for that transaction, and finds no key.
_HOLD = text(
    """/* api key hold */
    select 1 from api_keys
    where id = cast(:key_id as uuid) and user_id = :user and revoked_at is null
    for key share
    """
)
_STILL_GOOD = text(
    """/* api keys still good */
    select id from api_keys where id = any(cast(:ids as uuid[])) and revoked_at is null
    """
)
_PAGE = text(
    """/* api keys page */
    select id, user_id, label, created_at, revoked_at from api_keys
    where cast(:user as text) is null or user_id = :user
    order by created_at
    """
)
_REVOKE = text(
    """/* api key revoke */
    update api_keys set revoked_at = clock_timestamp()
    where id = :id and user_id = :user and revoked_at is null
    """
)


async def create(db: Database, user_id: str, label: str = "") -> tuple[UUID, str]:
    """Make a key of 256 random bits; its id and the key itself, which is not kept."""
    key = PREFIX + secrets.token_urlsafe(32)
    row = await db.row(_INSERT, {"user": user_id, "label": label, "sha256": _digest(key)})
    assert row is not None
    return row.id, key


async def owner(db: Database, key: str) -> tuple[str, UUID] | None:
    """The user that a key belongs to and the key's id, or None for one unknown or revoked."""
    row = await db.row(_OWNER, {"sha256": _digest(key)})
    return None if row is None else (str(row.user_id), row.id)


async def still_good(db: Database, key_ids: Sequence[str]) -> set[str]:
    """Which of these keys are neither revoked nor deleted."""
    return {str(row.id) for row in await db.rows(_STILL_GOOD, {"ids": list(key_ids)})}


async def hold(connection: AsyncConnection, user_id: str, key_id: str) -> None:
    """Keep a key from being deleted until the transaction ends: before what makes a user's first
    rows, for a gateway knows keys for some seconds after they are gone.

    Args:
        key_id: '' for one who came without a key, of whom there is nothing to hold.

    Raises:
        KeyGone: it was revoked, or the user was erased.
    """
    if not key_id:
        return
    held = await connection.execute(_HOLD, {"key_id": key_id, "user": user_id})
    if held.first() is None:
        raise KeyGone("The token is not valid.")


async def page(db: Database, user_id: str | None = None) -> list[ApiKey]:
    """The keys of a user, or, for the operator, of all; oldest first."""
    return [ApiKey(*row) for row in await db.rows(_PAGE, {"user": user_id})]


async def revoke(db: Database, user_id: str, key_id: UUID) -> bool:
    """Take a key out of use; whether there was one to take."""
    return await db.run(_REVOKE, {"id": key_id, "user": user_id}) == 1


def _digest(key: str) -> bytes:
    # 256 random bits need no slow hash: there is nothing to guess.
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
