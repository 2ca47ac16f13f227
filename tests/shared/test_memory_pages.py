"""Memories in pages, found by words, changed and deleted by their owner, and by nobody else."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy import text

from shared.errors import InvalidRequest, NotFound
from shared.memories import MemoryKind, NewMemory
from shared.store import characters, memories, memory_pages
from shared.store.database import Database
from shared.store.memory_pages import Wanted
from tests.shared.sessions import ME
from tests.shared.tables import dump
from tests.waiting import PATIENCE

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
ALL = Wanted()


async def character(db: Database, user: str = ME) -> UUID:
    return (await characters.create(db, user, "companion", "Ember", "")).id


async def remember(
    db: Database, who: UUID, *texts: str, kind: MemoryKind = "fact", user: str = ME, **more: Any
) -> list[UUID]:
    new = [
        NewMemory(kind, one, said_at=NOON + timedelta(minutes=n), **more)
        for n, one in enumerate(texts)
    ]
    return await memories.add(db, user, who, new)


async def texts(db: Database, wanted: Wanted = ALL, **more: Any) -> list[str]:
    page = await memory_pages.page(db, ME, wanted, **{"limit": 100, **more})
    return [one.text for one in page]


async def test_pages_go_from_new_to_old_over_all_characters(db: Database) -> None:
    first, second = await character(db), await character(db)
    await remember(db, first, "a0", "a1", "a2")
    await remember(db, second, "b0", "b1", "b2", kind="skill")
    await remember(db, await character(db, "other"), "x", user="other")

    found: list[str] = []
    before = None
    while page := await memory_pages.page(db, ME, ALL, limit=2, before=before):
        found += [one.text for one in page]
        before = page[-1].id

    assert sorted(found) == ["a0", "a1", "a2", "b0", "b1", "b2"]
    assert [one[1] for one in found] == ["2", "2", "1", "1", "0", "0"]
    assert await texts(db, Wanted(first)) == ["a2", "a1", "a0"]
    assert await texts(db, Wanted(kinds=["skill", "turn"])) == ["b2", "b1", "b0"]
    assert await texts(db, Wanted(session_id=uuid4())) == []
    with pytest.raises(InvalidRequest, match="before: there is no such memory any more"):
        await texts(db, before=uuid4())


async def test_what_is_not_true_any_more_is_shown_to_who_asks(db: Database) -> None:
    who = await character(db)
    await remember(db, who, "lives in Vienna", valid_to=NOON + timedelta(days=1))
    await remember(db, who, "lives in Graz")

    assert await texts(db) == ["lives in Graz"]
    assert sorted(await texts(db, Wanted(closed=True))) == ["lives in Graz", "lives in Vienna"]


async def found(db: Database, query: str, wanted: Wanted = ALL, **more: Any) -> list[str]:
    rows = await memory_pages.search(db, ME, wanted, query, limit=9, **more)
    return [one.text for one in rows]


async def test_a_search_finds_words_and_their_forms(db: Database) -> None:
    who, other = await character(db), await character(db)
    await remember(db, who, "She paints boats in the harbour", "Tea, no milk", "我喜欢喝绿茶")
    await remember(db, other, "He paints walls", kind="skill", speaker="Ida")
    await remember(db, await character(db, "x"), "paints", user="x")

    boats, walls = "She paints boats in the harbour", "He paints walls"
    assert await found(db, "painted a boat") == [boats, walls]
    assert await found(db, "painting", Wanted(who)) == [boats]
    assert await found(db, "painting", Wanted(kinds=["skill"])) == [walls]
    assert await found(db, "绿茶") == ["我喜欢喝绿茶"]
    assert await found(db, "ida") == ["He paints walls"]
    assert await found(db, "zebra") == await found(db, "the of and") == []
    assert await found(db, "milk", language="german") == ["Tea, no milk"]


@pytest.mark.parametrize(
    "query", ["'", "\\", "a & !b", "'a' | 'b", ":*", "<->", "%", "\\' or true --", "'' \\", "(((("]
)
async def test_a_search_is_words_and_nothing_else(db: Database, query: str) -> None:
    await remember(db, await character(db), "nothing of that")

    assert await found(db, query) == []


async def test_a_change_is_found_by_its_new_words(db: Database) -> None:
    who = await character(db)
    (memory,) = await remember(db, who, "lives in Vienna", speaker="Eva")
    vector = text("update memories set vector = '[1,0]', model = 'm', keys = '{1}' where id = :m")
    await db.run(vector, {"m": memory})

    same = await memory_pages.change(db, ME, memory, importance=0.25)
    (row,) = (await dump(db))["memories"]
    assert (same.text, same.importance, row["model"]) == ("lives in Vienna", 0.25, "m")
    moved = await memory_pages.change(db, ME, memory, words="lives in 绿茶 Graz")

    assert (moved.text, moved.importance) == ("lives in 绿茶 Graz", 0.25)
    assert await memory_pages.get(db, ME, memory) == moved
    (row,) = (await dump(db))["memories"]
    assert (row["vector"], row["model"], len(row["keys"])) == (None, None, 6)
    assert await found(db, "Vienna") == []
    for query in ("graz", "绿茶", "eva"):
        assert await found(db, query) == ["lives in 绿茶 Graz"]


async def test_what_is_ended_can_be_made_true_again(db: Database) -> None:
    (memory,) = await remember(db, await character(db), "lives in Vienna")

    ended = await memory_pages.change(db, ME, memory, valid=False)
    again = await memory_pages.change(db, ME, memory, valid=False)
    true = await memory_pages.change(db, ME, memory, valid=True)

    assert ended.valid_to is not None
    assert ended.valid_to == again.valid_to
    assert true.valid_to is None


async def test_memories_are_deleted_by_their_owner_alone(db: Database) -> None:
    who, other = await character(db), await character(db)
    memory, _ = await remember(db, who, "a", "b")
    await remember(db, other, "c")
    attempts: list[Callable[[str, UUID], Any]] = [
        lambda user, which: memory_pages.get(db, user, which),
        lambda user, which: memory_pages.change(db, user, which, words="x"),
        lambda user, which: memory_pages.delete(db, user, which),
    ]
    for attempt in attempts:
        for user, which in (("stranger", memory), (ME, uuid4())):
            with pytest.raises(NotFound):
                await attempt(user, which)

    assert await memory_pages.delete_all(db, "stranger", who) == 0
    await memory_pages.delete(db, ME, memory)
    assert await texts(db) == ["b", "c"]
    assert await memory_pages.delete_all(db, ME, who) == 1
    assert await texts(db) == ["c"]


async def test_a_hundred_thousand_memories_of_one_user(
    db: Database, watcher: psycopg.AsyncConnection[Any]
) -> None:
    who = [await character(db) for _ in range(10)]
    # Not by the store, which gives up on statements that take longer than ten seconds.
    fill = """
        insert into memories (user_id, character_id, kind, text, words, said_at, valid_from)
        select %s, (%s::uuid[])[1 + n %% 10], 'turn', 'word' || n || ' of tea',
            to_tsvector('simple', 'word' || n || ' of tea'), now() - make_interval(secs => n), now()
        from generate_series(1, 100000) n
        """
    await watcher.execute(fill, (ME, who))
    await watcher.execute("analyze memories")
    began = time.monotonic()

    page = await memory_pages.page(db, ME, ALL, limit=100)
    paged = time.monotonic() - began
    rest = await memory_pages.page(db, ME, ALL, limit=100, before=page[-1].id)
    words = await found(db, "word4711", language="simple")
    many = await found(db, "tea", language="simple")

    assert [one.text for one in page + rest] == [f"word{n} of tea" for n in range(1, 201)]
    assert words == ["word4711 of tea"]
    assert len(many) == 9
    took = time.monotonic() - began
    print(f"a page in {paged:.3f} s, all in {took:.2f} s")
    assert took < PATIENCE
