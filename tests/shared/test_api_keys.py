"""API keys: made, recognised, revoked; never stored."""

import re
from uuid import uuid4

import pytest

from shared.store import api_keys
from shared.store.database import Database
from tests.shared.tables import dump


async def test_a_key_belongs_to_its_user(db: Database) -> None:
    my_id, mine = await api_keys.create(db, "me", "laptop")
    others_id, others = await api_keys.create(db, "other")

    assert re.fullmatch(r"fs_[A-Za-z0-9_-]{43}", mine)
    assert mine != others
    assert [await api_keys.owner(db, key) for key in (mine, others)] == [
        ("me", my_id),
        ("other", others_id),
    ]


async def test_a_key_is_not_stored(db: Database) -> None:
    key_id, key = await api_keys.create(db, "me", "laptop")

    (row,) = (await dump(db))["api_keys"]
    assert (row["id"], row["user_id"], row["label"], row["revoked_at"]) == (
        str(key_id),
        "me",
        "laptop",
        None,
    )
    assert key not in str(row)
    assert key.removeprefix("fs_") not in str(row)


@pytest.mark.parametrize("wrong", ["", "fs_", "fs_x", "\0", "é", "\ud800", "a" * 100_000])
async def test_a_wrong_key_is_nobodys(db: Database, wrong: str) -> None:
    key_id, key = await api_keys.create(db, "me")

    assert await api_keys.owner(db, wrong) is None
    assert await api_keys.owner(db, key + wrong) == (None if wrong else ("me", key_id))
    assert await api_keys.owner(db, key[:-1]) is None


async def test_a_revoked_key_is_nobodys(db: Database) -> None:
    key_id, key = await api_keys.create(db, "me")
    other_id, other = await api_keys.create(db, "me")

    assert not await api_keys.revoke(db, "stranger", key_id)
    assert not await api_keys.revoke(db, "me", uuid4())
    assert await api_keys.owner(db, key) == ("me", key_id)
    assert await api_keys.revoke(db, "me", key_id)
    assert not await api_keys.revoke(db, "me", key_id)

    assert [await api_keys.owner(db, one) for one in (key, other)] == [None, ("me", other_id)]
