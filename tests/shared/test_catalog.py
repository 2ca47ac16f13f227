"""What workers announce, and compiled stories."""

import asyncio

import pytest

from shared.errors import NotFound
from shared.records import CatalogEntry
from shared.store import catalog
from shared.store.database import Database

COMPANION = CatalogEntry("agent", "companion", "Companion", "Talks.", {"tools": ["roll"]})
CAVE = CatalogEntry("story", "cave", "The Cave", details={"hash": "h\0", "by": {"name": "\ud800"}})


async def test_what_is_announced_is_offered(db: Database) -> None:
    assert await catalog.entries(db) == []

    await catalog.announce(db, [CAVE, COMPANION])

    cave = CatalogEntry(
        "story", "cave", "The Cave", details={"hash": "h\ufffd", "by": {"name": "\ufffd"}}
    )
    assert await catalog.entries(db) == [COMPANION, cave]


async def test_what_is_announced_again_is_replaced(db: Database) -> None:
    await catalog.announce(db, [COMPANION, CatalogEntry("story", "companion", "Same name")])
    newer = CatalogEntry("agent", "companion", "Friend")

    await catalog.announce(db, [newer])
    await catalog.announce(db, [])

    assert await catalog.entries(db) == [newer, CatalogEntry("story", "companion", "Same name")]


async def test_a_name_that_is_announced_twice_in_one_breath(db: Database) -> None:
    await catalog.announce(db, [CAVE, CatalogEntry("story", "cave", "Another Cave")])

    assert await catalog.entries(db) == [CatalogEntry("story", "cave", "Another Cave")]


async def test_many_workers_announce_at_once(db: Database) -> None:
    entries = [CatalogEntry("story", f"story {n}", str(n)) for n in range(20)]

    await asyncio.gather(*(catalog.announce(db, entries[:: 1 if n % 2 else -1]) for n in range(10)))

    assert await catalog.entries(db) == sorted(entries, key=lambda one: one.name)


async def test_a_story_is_kept_by_its_hash(db: Database) -> None:
    await catalog.keep_story(db, "h1", "cave", '{"ink": 1}')
    await catalog.keep_story(db, "h2", "cave", '{"ink": 2}')
    await catalog.keep_story(db, "h1", "other", "never looked at")

    assert await catalog.compiled_story(db, "h1") == '{"ink": 1}'
    assert await catalog.compiled_story(db, "h2") == '{"ink": 2}'
    with pytest.raises(NotFound, match=r"^no such version of a story$"):
        await catalog.compiled_story(db, "h3")
