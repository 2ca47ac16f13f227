"""What workers announce, and compiled stories."""

import asyncio

import pytest
from sqlalchemy import text

from shared.errors import NotFound
from shared.records import CatalogEntry
from shared.store import catalog
from shared.store.database import Database

COMPANION = CatalogEntry("agent", "companion", "Companion", "Talks.", {"tools": ["roll"]})
OFFERED = 60.0
"""For so many seconds behind the newest announcement an entry is on offer, in these tests."""

AGE = text(
    "update catalog set announced_at = announced_at - make_interval(secs => :seconds)"
    " where :name in (name, '')"
)


CAVE = CatalogEntry("story", "cave", "The Cave", details={"hash": "h\0", "by": {"name": "\ud800"}})


async def offered(db: Database) -> list[CatalogEntry]:
    return await catalog.entries(db, offered=OFFERED)


async def age(db: Database, seconds: float, name: str = "") -> None:
    """An entry, or all of them, was announced so many seconds earlier."""
    await db.run(AGE, {"seconds": seconds, "name": name})


async def test_what_is_announced_is_offered(db: Database) -> None:
    assert await offered(db) == []

    await catalog.announce(db, [CAVE, COMPANION])

    cave = CatalogEntry(
        "story", "cave", "The Cave", details={"hash": "h\ufffd", "by": {"name": "\ufffd"}}
    )
    assert await offered(db) == [COMPANION, cave]


async def test_what_is_announced_again_is_replaced(db: Database) -> None:
    await catalog.announce(db, [COMPANION, CatalogEntry("story", "companion", "Same name")])
    newer = CatalogEntry("agent", "companion", "Friend")

    await catalog.announce(db, [newer])
    await catalog.announce(db, [])

    assert await offered(db) == [newer, CatalogEntry("story", "companion", "Same name")]


async def test_a_name_that_is_announced_twice_in_one_breath(db: Database) -> None:
    await catalog.announce(db, [CAVE, CatalogEntry("story", "cave", "Another Cave")])

    assert await offered(db) == [CatalogEntry("story", "cave", "Another Cave")]


async def test_many_workers_announce_at_once(db: Database) -> None:
    entries = [CatalogEntry("story", f"story {n}", str(n)) for n in range(20)]

    await asyncio.gather(*(catalog.announce(db, entries[:: 1 if n % 2 else -1]) for n in range(10)))

    assert await offered(db) == sorted(entries, key=lambda one: one.name)


async def test_what_no_worker_announces_any_more_is_not_offered(db: Database) -> None:
    await catalog.announce(db, [CAVE, COMPANION])
    await age(db, 2 * OFFERED, "cave")

    assert await offered(db) == [COMPANION]
    await catalog.announce_again(db, [CAVE], every=20.0)
    assert [one.name for one in await offered(db)] == ["companion", "cave"]


async def test_while_no_worker_is_there_what_they_had_stays_on_offer(db: Database) -> None:
    await catalog.announce(db, [CAVE, COMPANION])
    await age(db, 1000 * OFFERED)

    assert [one.name for one in await offered(db)] == ["companion", "cave"]


async def test_what_is_announced_again_stays_as_the_last_worker_to_start_said_it(
    db: Database,
) -> None:
    await catalog.announce(db, [CatalogEntry("agent", "companion", "Of the newer release")])
    newer = await offered(db)
    await age(db, 50)

    await catalog.announce_again(db, [COMPANION, CAVE], every=20.0)

    assert [one.title for one in await offered(db)] == ["Of the newer release", "The Cave"]
    assert newer == (await offered(db))[:1]


async def test_of_many_workers_one_announces_again(db: Database) -> None:
    await catalog.announce(db, [COMPANION])
    assert await catalog.announce_again(db, [COMPANION], every=20.0) == 0
    await age(db, 30)

    said = [await catalog.announce_again(db, [COMPANION], every=20.0) for _ in range(3)]
    assert said == [1, 0, 0]


async def test_times_ahead_of_a_clock_that_was_set_back_count_as_now(db: Database) -> None:
    await catalog.announce(db, [CAVE, COMPANION])
    await age(db, -3600)
    await catalog.announce(db, [COMPANION])

    assert [one.name for one in await offered(db)] == ["companion", "cave"]
    assert await catalog.announce_again(db, [CAVE], every=20.0) == 1
    await age(db, 2 * OFFERED, "cave")
    assert await offered(db) == [COMPANION]


async def test_a_story_is_kept_by_its_hash(db: Database) -> None:
    await catalog.keep_story(db, "h1", "cave", '{"ink": 1}')
    await catalog.keep_story(db, "h2", "cave", '{"ink": 2}')
    await catalog.keep_story(db, "h1", "other", "never looked at")

    assert await catalog.compiled_story(db, "h1") == '{"ink": 1}'
    assert await catalog.compiled_story(db, "h2") == '{"ink": 2}'
    with pytest.raises(NotFound, match=r"^no such version of a story$"):
        await catalog.compiled_story(db, "h3")
