"""Characters and the versions of their souls."""

import asyncio
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from shared.errors import NotFound, SessionBusy
from shared.records import Character
from shared.store import characters, sessions
from shared.store.database import Database
from tests.shared.sessions import ME, new_session
from tests.shared.tables import dump


async def souls(db: Database) -> list[tuple[Any, ...]]:
    rows = (await dump(db))["souls"]
    return sorted((row["version"], row["soul"]) for row in rows)


async def test_a_new_character(db: Database) -> None:
    made = await characters.create(db, ME, "companion", "Ember", "Kind.")

    assert made == Character(
        id=made.id,
        agent="companion",
        name="Ember",
        is_default=False,
        soul="Kind.",
        soul_version=1,
        created_at=made.created_at,
        updated_at=made.updated_at,
    )
    assert await characters.get(db, ME, made.id) == made
    assert await souls(db) == [(1, "Kind.")]


async def test_a_page_goes_from_new_to_old(db: Database) -> None:
    made = [await characters.create(db, ME, "companion", str(n), "") for n in range(3)]
    await characters.create(db, "other", "companion", "x", "")

    assert await characters.page(db, ME, limit=9) == made[::-1]
    assert await characters.page(db, ME, limit=2) == made[:0:-1]


async def test_each_new_soul_is_a_version(db: Database) -> None:
    made = await characters.create(db, ME, "companion", "Ember", "one")

    renamed = await characters.update(db, ME, made.id, name="Ash", soul=None)
    second = await characters.update(db, ME, made.id, name=None, soul="two")
    same = await characters.update(db, ME, made.id, name=None, soul="two")
    emptied = await characters.update(db, ME, made.id, name="Coal", soul="")
    untouched = await characters.update(db, ME, made.id, name=None, soul=None)

    assert renamed == replace(made, name="Ash", updated_at=renamed.updated_at)
    assert second == replace(renamed, soul="two", soul_version=2, updated_at=second.updated_at)
    assert same == replace(second, updated_at=same.updated_at)
    assert emptied == replace(
        second, name="Coal", soul="", soul_version=3, updated_at=emptied.updated_at
    )
    assert untouched == replace(emptied, updated_at=untouched.updated_at)
    assert await souls(db) == [(1, "one"), (2, "two"), (3, "")]
    assert await characters.get(db, ME, made.id) == untouched


async def test_souls_written_at_once_are_all_kept(db: Database) -> None:
    made = await characters.create(db, ME, "companion", "Ember", "")

    written = await asyncio.gather(
        *(characters.update(db, ME, made.id, name=None, soul=f"soul {n}") for n in range(10))
    )

    assert sorted(one.soul_version for one in written) == list(range(2, 12))
    assert await souls(db) == sorted([(1, "")] + [(one.soul_version, one.soul) for one in written])


async def test_delete(db: Database) -> None:
    made = await characters.create(db, ME, "companion", "Ember", "one")
    await characters.update(db, ME, made.id, name=None, soul="two")

    await characters.delete(db, ME, made.id)

    assert await characters.page(db, ME, limit=9) == []
    assert await souls(db) == []
    with pytest.raises(NotFound):
        await characters.delete(db, ME, made.id)


async def test_a_character_that_a_session_uses_stays(db: Database) -> None:
    session = await new_session(db)
    (character,) = await characters.page(db, ME, limit=9)
    before = await dump(db)

    with pytest.raises(
        SessionBusy, match=r"^a session still uses this character; delete it first$"
    ):
        await characters.delete(db, ME, character.id)

    assert await dump(db) == before
    await sessions.delete(db, ME, session)
    await characters.delete(db, ME, character.id)


async def test_a_default_character_is_made_once(db: Database) -> None:
    async def default(user: str, agent: str) -> object:
        async with db.transaction() as connection:
            return await characters.default_character(connection, user, agent, "Ember")

    found = await asyncio.gather(*(default(ME, "companion") for _ in range(15)))
    others = [await default(ME, "director"), await default("other", "companion")]

    assert len({*found, *others}) == 3
    mine = await characters.page(db, ME, limit=9)
    assert [(one.agent, one.name, one.is_default, one.soul_version) for one in mine] == [
        ("director", "Ember", True, 1),
        ("companion", "Ember", True, 1),
    ]
    assert await souls(db) == [(1, "")] * 3


async def test_a_stranger_finds_nothing(db: Database) -> None:
    made = await characters.create(db, ME, "companion", "Ember", "one")
    before = await dump(db)

    for attempt in (
        characters.get(db, "stranger", made.id),
        characters.update(db, "stranger", made.id, name="x", soul="y"),
        characters.delete(db, "stranger", made.id),
        characters.get(db, ME, uuid4()),
        characters.update(db, ME, uuid4(), name="x", soul="y"),
    ):
        with pytest.raises(NotFound, match=r"^no such character$"):
            await attempt
    assert await characters.page(db, "stranger", limit=9) == []
    assert await dump(db) == before
