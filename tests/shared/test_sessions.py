"""Sessions as their owners see them."""

import asyncio
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from shared.errors import InvalidRequest, NotFound
from shared.records import Accepted, Event, Message, NewEvent, NewSession, Outcome, Session
from shared.store import characters, leases, sessions
from shared.store.database import Database
from tests.shared.invariants import broken
from tests.shared.locks import lock_waiters
from tests.shared.sessions import LEASE, ME, claimed, completed, finish, new_session, say
from tests.shared.tables import TABLES, dump

NEW = NewSession("companion", title="Evening", metadata={"lang": "en", "tags": ["a"]})


async def test_a_new_session(db: Database) -> None:
    session, task, accepted = await sessions.create(db, ME, replace(NEW, key="k"), "Ember")

    (character,) = await characters.page(db, ME, limit=9)
    assert session == Session(
        id=session.id,
        key="k",
        agent="companion",
        story=None,
        character_id=character.id,
        title="Evening",
        metadata={"lang": "en", "tags": ["a"]},
        status="queued",
        head_seq=1,
        first_seq=1,
        view={"state": {}, "choices": []},
        created_at=session.created_at,
        updated_at=session.updated_at,
    )
    (event,) = await sessions.events_after(db, ME, session.id, after=0, limit=9)
    assert event == Event(
        1,
        "task_queued",
        task,
        event.at,
        {"action": {"type": "start"}, "client_action_id": None, "position": 0},
    )
    assert accepted == Accepted(task, session.id, 1, 0, "queued", fresh=True, events=(event,))
    assert (character.name, character.is_default) == ("Ember", True)
    assert await sessions.get(db, ME, session.id) == session
    assert await sessions.get_by_key(db, ME, "k") == session
    assert await broken(db) == []


async def test_a_session_of_a_story(db: Database) -> None:
    character = await characters.create(db, ME, "director", "Rook", "Dry.")
    new = NewSession("director", story="cave", story_hash="h", character_id=character.id)

    session, _, _ = await sessions.create(db, ME, new, "unused")

    assert (session.agent, session.story, session.character_id) == (
        "director",
        "cave",
        character.id,
    )
    assert await characters.page(db, ME, limit=9) == [character]


async def test_a_key_gives_the_same_session(db: Database) -> None:
    first, task, _ = await sessions.create(db, ME, replace(NEW, key="k"), "Ember")
    before = await dump(db)

    again = await sessions.create(db, ME, NewSession("companion", key="k", title="x"), "Ember")

    assert again == (first, task, None)
    assert await dump(db) == before


async def test_keys_are_each_users_own(db: Database) -> None:
    mine, _, _ = await sessions.create(db, ME, replace(NEW, key="k"), "Ember")
    others, _, _ = await sessions.create(db, "other", replace(NEW, key="k"), "Ember")

    assert mine.id != others.id
    assert (await sessions.get_by_key(db, ME, "k")).id == mine.id
    assert (await sessions.get_by_key(db, "other", "k")).id == others.id


async def test_a_key_twenty_times_at_once_makes_one_session(db: Database) -> None:
    made = await asyncio.gather(
        *(sessions.create(db, ME, replace(NEW, key="k"), "Ember") for _ in range(20))
    )

    assert len({session.id for session, _, _ in made}) == 1
    assert len({task for _, task, _ in made}) == 1
    assert sorted(accepted is None for _, _, accepted in made) == [False] + [True] * 19
    found = await dump(db)
    assert [len(found[table]) for table in ("sessions", "tasks", "characters")] == [1, 1, 1]
    assert await broken(db) == []


async def test_without_a_key_each_is_new_but_the_default_character_is_one(db: Database) -> None:
    made = await asyncio.gather(*(sessions.create(db, ME, NEW, "Ember") for _ in range(20)))

    assert len({session.id for session, _, _ in made}) == 20
    (character,) = await characters.page(db, ME, limit=9)
    assert {session.character_id for session, _, _ in made} == {character.id}
    found = await dump(db)
    assert [(one["version"], one["soul"]) for one in found["souls"]] == [(1, "")]


@pytest.mark.parametrize("whose", ["nobody's", "a stranger's", "another agent's"])
async def test_a_character_that_can_not_be_used(db: Database, whose: str) -> None:
    stranger = await characters.create(db, "stranger", "companion", "X", "")
    other = await characters.create(db, ME, "director", "Y", "")
    character = {"nobody's": uuid4(), "a stranger's": stranger.id, "another agent's": other.id}
    before = await dump(db)

    with pytest.raises(InvalidRequest, match=r"^character_id: no such character of this agent$"):
        await sessions.create(db, ME, replace(NEW, character_id=character[whose]), "Ember")

    assert await dump(db) == before


async def test_a_character_that_is_deleted_while_its_session_is_made(
    db: Database, watcher: psycopg.AsyncConnection[Any]
) -> None:
    character = await characters.create(db, ME, "companion", "X", "")
    async with watcher.transaction():
        await watcher.execute("delete from characters where id = %s", (character.id,))
        making = asyncio.create_task(
            sessions.create(db, ME, replace(NEW, character_id=character.id), "Ember")
        )
        await lock_waiters(watcher)

    with pytest.raises(InvalidRequest):
        await making


async def test_the_default_character_is_deleted_while_a_session_is_made(
    db: Database, watcher: psycopg.AsyncConnection[Any]
) -> None:
    session, _, _ = await sessions.create(db, ME, NEW, "Ember")
    await sessions.delete(db, ME, session.id)
    async with watcher.transaction():
        await watcher.execute("delete from characters where id = %s", (session.character_id,))
        making = asyncio.create_task(sessions.create(db, ME, NEW, "Ember"))
        await lock_waiters(watcher)

    made, _, _ = await making

    assert made.character_id != session.character_id
    assert await broken(db) == []


async def test_keyed_sessions_made_and_deleted_at_once(db: Database) -> None:
    async def make() -> UUID:
        session, _, _ = await sessions.create(db, ME, replace(NEW, key="k"), "Ember")
        return session.id

    async def delete() -> None:
        with pytest.raises(NotFound):  # noqa: PT012 - until it is gone
            while True:
                await sessions.delete(db, ME, (await sessions.get_by_key(db, ME, "k")).id)

    for _ in range(5):
        await make()
        await asyncio.gather(*(one() for one in [make, delete, make, delete, make]))
        assert await broken(db) == []


async def test_status(db: Database) -> None:
    session = await new_session(db)
    found = [(await sessions.get(db, ME, session)).status]
    claim = await claimed(db, session)
    found.append((await sessions.get(db, ME, session)).status)
    await say(db, session)
    await finish(db, claim)
    found.append((await sessions.get(db, ME, session)).status)
    await finish(db, await claimed(db, session))
    found.append((await sessions.get(db, ME, session)).status)

    assert found == ["queued", "running", "queued", "idle"]


async def test_a_page_goes_from_new_to_old(db: Database) -> None:
    made = [await new_session(db) for _ in range(5)]
    await new_session(db, "other")
    first = await sessions.page(db, ME, limit=2)
    second = await sessions.page(db, ME, limit=2, before=first[-1].id)
    third = await sessions.page(db, ME, limit=2, before=second[-1].id)

    assert [one.id for one in first + second + third] == made[::-1]
    assert await sessions.page(db, ME, limit=2, before=third[-1].id) == []
    assert first[0] == await sessions.get(db, ME, made[-1])


async def test_a_page_before_a_session_that_is_not_mine(db: Database) -> None:
    await new_session(db)

    for gone in (await new_session(db, "other"), uuid4()):
        with pytest.raises(InvalidRequest, match="before: there is no such session any more"):
            await sessions.page(db, ME, limit=9, before=gone)


async def test_events_in_pages(db: Database) -> None:
    session = await new_session(db)
    claim = await claimed(db, session)
    written = await leases.write(
        db, claim, [NewEvent("turn_start", {"n": n}) for n in range(5)], lease_seconds=LEASE
    )
    expected = [Event(n + 2, "turn_start", claim.task_id, written.at, {"n": n}) for n in range(5)]

    async def page(after: int, limit: int) -> list[Event]:
        return await sessions.events_after(db, ME, session, after=after, limit=limit)

    assert await page(1, 3) == expected[:3]
    assert await page(4, 3) == expected[3:]
    assert await page(6, 3) == []
    assert await page(2**70, 3) == []
    assert len(await page(-5, 100)) == 6


async def test_messages_of_the_newest(db: Database) -> None:
    session = await new_session(db)
    claim = await claimed(db, session)
    written = await leases.end(
        db, claim, replace(completed(), messages=[{"n": number} for number in range(5)])
    )

    assert await sessions.messages(db, ME, session, limit=2) == [
        Message(4, 3, claim.task_id, {"n": 3}, written.at),
        Message(5, 4, claim.task_id, {"n": 4}, written.at),
    ]
    assert await sessions.messages(db, ME, await new_session(db), limit=2) == []


async def test_heads(db: Database) -> None:
    one, other = await new_session(db), await new_session(db, started=True)

    assert await sessions.heads(db, [one, other, uuid4()]) == {one: 1, other: 2}
    assert await sessions.heads(db, []) == {}


async def test_a_stranger_finds_nothing(db: Database) -> None:
    session, _, _ = await sessions.create(db, ME, replace(NEW, key="k"), "Ember")
    await leases.end(db, await claimed(db, session.id), replace(completed(), messages=[{"n": 1}]))
    before = await dump(db)

    for attempt in (
        sessions.get(db, "stranger", session.id),
        sessions.get_by_key(db, "stranger", "k"),
        sessions.delete(db, "stranger", session.id),
        sessions.get(db, ME, uuid4()),
        sessions.get_by_key(db, ME, "other"),
    ):
        with pytest.raises(NotFound, match=r"^no such session$"):
            await attempt
    assert await sessions.events_after(db, "stranger", session.id, after=0, limit=9) == []
    assert await sessions.messages(db, "stranger", session.id, limit=9) == []
    assert await sessions.page(db, "stranger", limit=9) == []
    assert await dump(db) == before


async def test_nothing_of_a_deleted_session_is_left(db: Database) -> None:
    session = await new_session(db)
    claim = await claimed(db, session)
    outcome = Outcome("completed", [NewEvent("task_completed", {})], messages=[{"n": 1}])
    await leases.end(db, claim, outcome)
    await say(db, session)
    kept = await new_session(db, "other")

    await sessions.delete(db, ME, session)

    found = await dump(db)
    assert [row["id"] for row in found["sessions"]] == [str(kept)]
    for table in set(TABLES) - {"sessions"}:
        assert [row for row in found[table] if row.get("session_id", str(kept)) != str(kept)] == []
    with pytest.raises(NotFound):
        await sessions.delete(db, ME, session)
    assert await broken(db) == []


async def test_of_many_deletes_at_once_one_deletes(db: Database) -> None:
    session = await new_session(db)

    results = await asyncio.gather(
        *(sessions.delete(db, ME, session) for _ in range(10)), return_exceptions=True
    )

    assert sorted(type(one).__name__ for one in results) == ["NoneType"] + ["NotFound"] * 9


async def test_a_session_that_is_deleted_while_its_worker_writes(
    db: Database, watcher: psycopg.AsyncConnection[Any]
) -> None:
    for _ in range(3):
        session = await new_session(db)
        claim = await claimed(db, session)
        async with watcher.transaction():
            await watcher.execute("select from sessions where id = %s for update", (session,))
            everything = [
                asyncio.create_task(one)
                for one in (
                    leases.write(db, claim, [NewEvent("turn_start", {})], lease_seconds=LEASE),
                    sessions.delete(db, ME, session),
                    leases.write(db, claim, [NewEvent("turn_end", {})], lease_seconds=LEASE),
                    leases.end(db, claim, replace(completed(), messages=[{"n": 1}])),
                )
            ]
            await lock_waiters(watcher, 4)
        await asyncio.gather(*everything, return_exceptions=True)

        found = await dump(db)
        assert [found[table] for table in ("sessions", "tasks", "events", "messages")] == [[]] * 4
