"""Memories in the store: written as a task ends, found by their owner, kept to the branch."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import text

from shared.encoding import JsonObject
from shared.errors import LeaseLost
from shared.memories import (
    MOST_PASSAGES,
    PASSAGE_CHARACTERS,
    MemoryMatch,
    NewMemory,
    language_of,
    passages,
    said_in,
)
from shared.records import Claim, NewEvent, NewSession, Outcome
from shared.store import characters, connection, leases, memories, sessions, vectors
from shared.store.database import Database
from shared.store.held_memories import HeldMemories
from shared.store.recall import CROWD, CUE_WORDS, NEWEST, WORDED, Cue, Recalled, Vector, recall
from tests.shared.sessions import ME, claimed, finish, say
from tests.shared.statements import statements
from tests.shared.tables import dump
from tests.shared.test_leases import taken_over
from tests.waiting import until, within

Chat = tuple[UUID, UUID]
"""A session and its character."""


def user(words: str) -> JsonObject:
    return {"role": "user", "content": words, "timestamp": 0}


def answer(words: str) -> JsonObject:
    return {
        "role": "assistant",
        "content": [{"type": "text", "text": words}],
        "stop_reason": "stop",
    }


async def chat(
    db: Database, owner: str = ME, character: UUID | None = None, **metadata: object
) -> Chat:
    new = NewSession("companion", character_id=character, metadata=metadata)
    session, _, _ = await sessions.create(db, owner, new, "Ember")
    await finish(db, await claimed(db, session.id))
    return session.id, session.character_id


async def exchange(db: Database, session: UUID, *messages: JsonObject, owner: str = ME) -> Claim:
    """A task that ends with these messages."""
    await say(db, session, "hi", owner)
    claim = await claimed(db, session)
    await leases.end(
        db, claim, Outcome("completed", [NewEvent("task_completed", {})], list(messages))
    )
    return claim


async def recalled(
    db: Database, character: UUID, cue: str, vector: Vector | None = None, **asked: Any
) -> list[MemoryMatch]:
    owner = asked.pop("owner", ME)
    found = (await recall(db, Cue(owner, character, cue, **asked), vector)).matches
    return sorted(found.rows(), key=lambda one: (one.said_at, one.no or 0, one.part))


def texts(found: Sequence[MemoryMatch]) -> list[str]:
    return [one.text for one in found]


def hits(found: Sequence[MemoryMatch]) -> list[str]:
    return [one.text for one in found if one.hits]


# -- writing ----------------------------------------------------------------------------------


async def test_a_task_ends_with_memories_of_its_messages(db: Database) -> None:
    session, character = await chat(db, user_name="Ada")
    dogs = "My dogs are called Rex and Bo."

    await exchange(db, session, user(dogs), answer("Lovely!"))

    found = await recalled(db, character, "What is my dog called?")
    assert [
        (one.text, one.kind, one.session_id, one.no, one.role, one.speaker, one.hits, one.likeness)
        for one in found
    ] == [
        (
            "My dogs are called Rex and Bo.",
            "turn",
            str(session),
            1,
            "user",
            "Ada",
            ("call", "dog"),
            None,
        ),
        ("Lovely!", "turn", str(session), 2, "assistant", "Ember", (), None),
    ]
    (kept,) = (await sessions.messages(db, ME, session, limit=1))[-1:]
    assert {one.said_at for one in found} == {kept.created_at}


async def test_a_lost_lease_leaves_no_memory(db: Database) -> None:
    session, character = await chat(db)
    await say(db, session)
    zombie, _ = await taken_over(db, session)

    with pytest.raises(LeaseLost):
        await leases.end(db, zombie, Outcome("completed", [], [user("I was late.")]))

    assert await recalled(db, character, "late") == []
    assert (await dump(db))["memories"] == []  # a later message would have it recalled


async def test_a_lost_lease_leaves_the_branch_of_memories_alone(db: Database) -> None:
    session, character = await chat(db)
    await exchange(db, session, user("one"), answer("two"))
    await exchange(db, session, user("three"), answer("four"))
    await go_to(db, session, 2)
    await say(db, session)
    zombie, _ = await taken_over(db, session)

    with pytest.raises(LeaseLost):
        await leases.end(db, zombie, Outcome("completed", [], [user("I was late.")]))

    await go_to(db, session, 4)  # what was undone is wanted again
    assert texts(await recalled(db, character, "one")) == ["one", "two", "three", "four"]


async def test_tools_thoughts_and_failures_are_not_remembered(db: Database) -> None:
    session, character = await chat(db)
    thinking = answer("It is four.")
    thinking["content"].insert(0, {"type": "thinking", "thinking": "two and two"})
    failed = answer("half a sen") | {"stop_reason": "error"}
    tool = {"role": "tool_result", "content": [{"type": "text", "text": "4"}], "timestamp": 0}

    await exchange(db, session, user("Add them."), tool, failed, thinking, user("   "))

    found = await recalled(db, character, "four")
    assert [(one.text, one.no) for one in found] == [("Add them.", 1), ("It is four.", 4)]


async def test_a_message_of_two_megabytes_becomes_a_few_memories(db: Database) -> None:
    session, character = await chat(db)
    long = "It was a long, long story about a lighthouse. " * 45_000
    assert len(long) > 2_000_000

    await within(exchange(db, session, user(long), answer("Indeed.")))

    found = await recalled(db, character, "lighthouse")
    assert len(found) == MOST_PASSAGES + 1
    assert max(len(one.text) for one in found) <= PASSAGE_CHARACTERS
    assert [one.part for one in found][:-1] == list(range(MOST_PASSAGES))


@pytest.mark.parametrize(
    "words",
    [
        "x" * 2_000_000,
        "\0nul \ud800 half",
        "'; drop table memories; --",
        "a\\b 'c' | ! & (d) <-> :*",
    ],
)
async def test_whatever_was_said_is_kept_and_found(db: Database, words: str) -> None:
    session, character = await chat(db)

    await exchange(db, session, user(words))

    found = await recalled(db, character, words)
    assert found
    assert all("\0" not in one.text for one in found)


async def test_memories_that_were_learned(db: Database) -> None:
    session, character = await chat(db)
    said = datetime(2023, 5, 7, 13, tzinfo=UTC)
    new = NewMemory(
        "fact", "Ada has two dogs.", session, no=2, sources=[1, 2], importance=0.5, said_at=said
    )

    (made,) = await memories.add(db, ME, character, [new])

    await exchange(db, session, user("one"), answer("two"))
    (found,) = [one for one in await recalled(db, character, "dog") if one.kind == "fact"]
    assert (found.id, found.importance, found.said_at) == (made, 0.5, said)


async def test_nobody_writes_memories_of_another_users_character(db: Database) -> None:
    session, character = await chat(db)

    assert await memories.add(db, "other", character, [NewMemory("fact", "No.")]) == []
    mine = await characters.create(db, "other", "companion", "Ash", "")
    stolen = NewMemory("fact", "No.", session)
    assert await memories.add(db, "other", mine.id, [stolen]) == []


# -- whose ------------------------------------------------------------------------------------


async def test_two_characters_of_one_user_have_two_memories(db: Database) -> None:
    cat = await characters.create(db, ME, "companion", "Cat", "")
    dog = await characters.create(db, ME, "companion", "Dog", "")
    with_cat, _ = await chat(db, character=cat.id)
    with_dog, _ = await chat(db, character=dog.id)
    await exchange(db, with_cat, user("Here is some milk."))
    await exchange(db, with_dog, user("Here is a bone."))

    assert texts(await recalled(db, cat.id, "here")) == ["Here is some milk."]
    assert texts(await recalled(db, dog.id, "here")) == ["Here is a bone."]
    assert await recalled(db, cat.id, "here", owner="other") == []


async def test_a_character_remembers_its_other_sessions(db: Database) -> None:
    first, character = await chat(db)
    second, _ = await chat(db)
    await exchange(db, first, user("I was born in Graz."))
    await exchange(db, second, user("Hello again."))

    assert hits(await recalled(db, character, "Where was I born?", session_id=second)) == [
        "I was born in Graz."
    ]


async def test_deleting_a_session_deletes_its_words_but_not_what_was_learned(db: Database) -> None:
    session, character = await chat(db)
    await exchange(db, session, user("I was born in Graz."))
    await memories.add(db, ME, character, [NewMemory("fact", "Born in Graz.", session, no=1)])

    await sessions.delete(db, ME, session)

    (left,) = await recalled(db, character, "Graz")
    assert (left.text, left.session_id) == ("Born in Graz.", None)


async def test_deleting_a_character_deletes_all_it_knows(db: Database) -> None:
    character = await characters.create(db, ME, "companion", "Ash", "")
    await memories.add(db, ME, character.id, [NewMemory("fact", "Born in Graz.")])

    await characters.delete(db, ME, character.id)

    row = await db.row(text("select count(*) from memories"))
    assert row is not None
    assert row[0] == 0


# -- what is not recalled ---------------------------------------------------------------------


async def test_what_the_window_shows_is_not_recalled(db: Database) -> None:
    session, character = await chat(db)
    for number in range(1, 5):
        await exchange(db, session, user(f"number {number}"))

    found = await recalled(db, character, "number", session_id=session, shown_from=3)

    assert texts(found) == ["number 1", "number 2"]


async def test_what_is_not_true_any_more_is_not_recalled(db: Database) -> None:
    _, character = await chat(db)
    now = datetime.now(UTC)
    facts = [
        NewMemory("fact", "Lives in Graz.", valid_to=now - timedelta(hours=1)),
        NewMemory("fact", "Lives in Linz."),
        NewMemory("fact", "Lives here until tomorrow.", valid_to=now + timedelta(days=1)),
    ]
    await memories.add(db, ME, character, facts)

    assert sorted(texts(await recalled(db, character, "lives"))) == [
        "Lives here until tomorrow.",
        "Lives in Linz.",
    ]


async def go_to(db: Database, session: UUID, head: int | None) -> None:
    """Move the head, as an undo does."""
    await db.run(
        text("update sessions set head_message = :head where id = :session"),
        {"head": head, "session": session},
    )


async def test_what_was_undone_is_not_recalled(db: Database) -> None:
    session, character = await chat(db)
    await exchange(db, session, user("one"), answer("two"))
    await exchange(db, session, user("three"), answer("four"))
    await memories.add(db, ME, character, [NewMemory("fact", "Three!", session, no=3, sources=[3])])

    await go_to(db, session, 2)
    assert texts(await recalled(db, character, "one")) == ["one", "two"]

    await go_to(db, session, None)
    assert await recalled(db, character, "one") == []


async def test_new_messages_leave_an_undone_branch_behind_for_good(db: Database) -> None:
    session, character = await chat(db)
    await exchange(db, session, user("one"), answer("two"))
    await exchange(db, session, user("three"), answer("four"))
    await go_to(db, session, 2)

    await exchange(db, session, user("five"), answer("six"))

    # Numbers 5 and 6 are above those of 3 and 4, so the head alone would not tell.
    assert texts(await recalled(db, character, "one")) == ["one", "two", "five", "six"]


async def test_an_end_without_an_undo_touches_no_memory(db: Database) -> None:
    session, character = await chat(db)
    await exchange(db, session, user("one"))
    await exchange(db, session)
    await exchange(db, session, user("two"))

    assert texts(await recalled(db, character, "one")) == ["one", "two"]


# -- languages --------------------------------------------------------------------------------


async def test_words_are_stemmed_as_the_sessions_language_does(db: Database) -> None:
    session, character = await chat(db, language="de-AT")
    await exchange(db, session, user("Die Kinder spielten mit den Katzen."))

    (found,) = await recalled(db, character, "Wo ist die Katze?", language="german")

    assert found.hits == ("katz",)


async def test_one_word_of_many_is_enough(db: Database) -> None:
    session, character = await chat(db)
    await exchange(db, session, user("A boat on the river."))

    assert hits(await recalled(db, character, "Was it a ship, a raft or a boat?"))


@pytest.mark.parametrize(
    ("words", "cue"),
    [
        ("我想去北京吃烤鸭。", "北京的烤鸭好吃吗"),
        ("昨日は東京タワーに行きました。", "東京タワーはどうでしたか"),
        ("ฉันชอบกินข้าวผัด", "ข้าวผัดอร่อยไหม"),
        ("Меня зовут Аня, я живу в Москве.", "москва, живёт в Москве"),
        ("우리 강아지 이름은 보리예요.", "강아지 이름은 뭐예요"),
    ],
)
async def test_other_scripts(db: Database, words: str, cue: str) -> None:
    session, character = await chat(db, language="simple")
    await exchange(db, session, user(words), user("Something else."))

    assert hits(await recalled(db, character, cue, language="simple")) == [words]


@pytest.mark.parametrize(
    ("said", "language"),
    [
        (None, "english"),
        ("de", "german"),
        ("pt_BR", "portuguese"),
        ("German", "german"),
        ("zh-CN", "simple"),
        ("'; drop", "simple"),
        (7, "english"),
        ("", "english"),
    ],
)
def test_languages(said: object, language: str) -> None:
    assert language_of({"language": said}) == language


def test_passages_end_with_sentences() -> None:
    long = "A sentence of some words. " * 100
    found = passages(long)

    assert all(one.endswith(".") for one in found)
    assert " ".join(found) == long.strip()
    assert passages("  \n ") == []
    assert said_in({"role": "user", "content": None}) == ""


# -- vectors ----------------------------------------------------------------------------------


def vector(*numbers: float, model: str = "m") -> Vector:
    return Vector(model, len(numbers), "[" + ",".join(map(str, numbers)) + "]")


async def embed_all(db: Database, made: dict[str, Vector]) -> None:
    for one in await vectors.missing(db, after=UUID(int=0), limit=1000):
        if one.text in made:
            await vectors.put(db, made[one.text].model, [one], [made[one.text].text])


async def test_likeness_is_the_cosine(db: Database) -> None:
    session, character = await chat(db)
    await exchange(db, session, user("east"), user("north"), user("new"))
    await embed_all(db, {"east": vector(1, 0), "north": vector(0, 1)})

    found = await recalled(db, character, "?", vector(1, 0))

    assert [one.likeness for one in found] == [1.0, 0.0, None]


async def test_vectors_of_another_model_or_length_are_not_compared(db: Database) -> None:
    session, character = await chat(db)
    await exchange(db, session, user("east"), user("north"), user("up"))
    await embed_all(
        db, {"east": vector(1, 0), "north": vector(0, 1, 0), "up": vector(0, 1, model="other")}
    )

    found = await recalled(db, character, "?", vector(1, 0))

    assert [one.likeness for one in found] == [1.0, None, None]
    assert set(await vectors.sample(db)) == {
        vectors.Found("m", 2),
        vectors.Found("m", 3),
        vectors.Found("other", 2),
    }


async def test_a_vector_of_words_that_were_changed_meanwhile_is_dropped(db: Database) -> None:
    session, _ = await chat(db)
    await exchange(db, session, user("east"))
    (one,) = await vectors.missing(db, after=UUID(int=0), limit=10)

    assert await vectors.put(db, "m", [replace(one, text="west")], ["[1,0]"]) == 0
    assert await vectors.put(db, "m", [one], ["[1,0]"]) == 1
    assert await vectors.missing(db, after=UUID(int=0), limit=10) == []


async def crowded(db: Database, count: int) -> UUID:
    """A character of many memories about few things, each with a vector of 384 numbers."""
    character = await characters.create(db, ME, "companion", "Ash", "")
    many = [
        NewMemory("turn", f"I saw ship number{no} in harbour{no % 7}.", said_at=at(no), role="user")
        for no in range(count)
    ]
    for start in range(0, count, 500):
        await memories.add(db, ME, character.id, many[start : start + 500])
    found = await vectors.missing(db, after=UUID(int=0), limit=count)
    await vectors.put(
        db, "m", found, [direction(int(one.text.split("number")[1].split()[0])) for one in found]
    )
    return character.id


def at(no: int) -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=no)


def direction(no: int) -> str:
    """A vector of 384 numbers: on a circle, next to that of the next number."""
    turn = 2 * math.pi * no / 1_000
    return "[" + ",".join([f"{math.cos(turn):.6f}", f"{math.sin(turn):.6f}", *["0"] * 382]) + "]"


async def test_a_crowded_character_is_found_by_indexes(db: Database) -> None:
    character = await crowded(db, 900)
    other = await crowded(db, 20)

    assert not await vectors.crowd(db, ME, other, crowd=900)
    assert await vectors.crowd(db, ME, character, crowd=900)
    assert not await vectors.crowd(db, ME, character, crowd=900)
    found = await recalled(db, character, "Where is number17?", Vector("m", 384, direction(40)))

    assert len(found) < 900
    assert hits(found) == ["I saw ship number17 in harbour3."]
    near = sorted(found, key=lambda one: one.likeness or 0, reverse=True)[:3]
    # Half precision can't tell the nearest of a thousand on a circle apart.
    assert all(30 <= int(one.text.split()[3].removeprefix("number")) <= 50 for one in near)
    assert len(await recalled(db, other, "Where is number17?")) == 20


async def test_a_crowded_character_is_found_by_words_alone(db: Database) -> None:
    character = await crowded(db, 300)
    await vectors.crowd(db, ME, character, crowd=300)

    found = await recalled(db, character, "number17")
    unseen = await recalled(db, character, "number17", owner="other")

    assert hits(found) == ["I saw ship number17 in harbour3."]
    assert unseen == []


async def test_memories_of_a_crowd_that_come_later_are_found(db: Database) -> None:
    character = await crowded(db, 300)
    await vectors.crowd(db, ME, character, crowd=300)
    new = NewMemory("fact", "A whale was there.")
    await memories.add(db, ME, character, [new])

    assert hits(await recalled(db, character, "whale")) == ["A whale was there."]
    (one,) = await vectors.missing(db, after=UUID(int=0), limit=10)
    await vectors.put(db, "m", [one], [direction(3)])
    row = await db.row(
        text("select cardinality(keys) from memories where id = :id"), {"id": one.id}
    )
    assert row is not None
    assert row[0] == 1


async def numbered(db: Database, count: int) -> UUID:
    """A character of many memories that no embedding process has seen."""
    character = await characters.create(db, ME, "companion", "Ash", "")
    many = [NewMemory("fact", f"Ship number{no} came.", said_at=at(no)) for no in range(count)]
    for start in range(0, count, 1_000):
        await memories.add(db, ME, character.id, many[start : start + 1_000])
    return character.id


async def test_a_character_that_is_being_deleted_enters_no_crowd(db: Database) -> None:
    character = await numbered(db, 3)
    waiting = text(
        "select 1 from pg_stat_activity"
        " where datname = current_database() and wait_event_type = 'Lock'"
    )

    async def waits() -> bool:
        return await db.row(waiting) is not None

    async with db.transaction() as deleting:
        await deleting.execute(text("delete from characters where id = :id"), {"id": character})
        crowding = asyncio.create_task(vectors.crowd(db, ME, character, crowd=2))
        await until(waits)
    await crowding

    assert await db.rows(text("select 1 from crowds")) == []


async def test_no_more_than_the_newest_are_read_of_many_that_nobody_has_counted(
    db: Database,
) -> None:
    character = await numbered(db, CROWD + 10)
    cue = Cue(ME, character, "What of number3 and number2005?")
    held = HeldMemories()

    for _ in range(2):  # and again by one who holds them
        found, grown = told(await recall(db, cue, None, held))
        assert (len(found), grown) == (CROWD, True)
        assert hits(found) == ["Ship number2005 came."]

    await vectors.tend(db, ME, character)
    found, grown = told(await recall(db, cue, None, held))
    assert len(found) < 500
    assert not grown
    assert sorted(hits(found)) == ["Ship number2005 came.", "Ship number3 came."]


async def test_of_a_long_cue_each_word_is_told(db: Database) -> None:
    names = [f"name{no}" for no in range(CUE_WORDS + 2)]
    character = await characters.create(db, ME, "companion", "Ash", "")
    said = [" ".join(names[start : start + 5]) for start in range(0, 40, 5)]
    await memories.add(db, ME, character.id, [NewMemory("fact", one) for one in said])

    for count in (1, 7, 8, 9, 17, len(names)):
        cue = " ".join(names[:count])
        found = await recalled(db, character.id, cue, language="simple")
        asked = set(sorted(names[:count])[:CUE_WORDS])
        assert {one.text: set(one.hits) for one in found} == {
            one: set(one.split()) & asked for one in said
        }


def told(recalled: Recalled) -> tuple[list[MemoryMatch], bool]:
    return recalled.matches.rows(), recalled.grown


async def plan_of(db: Database, name: str, asked: JsonObject) -> str:
    statement = next(one.text for one in statements() if one.name == name)
    rows = await db.rows(text(f"/* plan */ explain (analyze, buffers off) {statement}"), asked)
    return "\n".join(row[0] for row in rows)


def asking_for(character: UUID, cue: str) -> JsonObject:
    return {
        "user": ME,
        "character": character,
        "session": None,
        "shown_from": 1,
        "cue": cue,
        "language": "english",
        "signs": [],
        "most_words": 8,
        "model": None,
        "dimension": 0,
        "vector": None,
        "until": None,
        "held_since": None,
    }


async def test_a_crowded_character_is_not_read_whole_beside(db: Database) -> None:
    """As a condition of the join it would be: each of its rows, only to be dropped."""
    character = await numbered(db, 300)
    await vectors.crowd(db, ME, character, crowd=300)

    plan = await plan_of(db, "recall", asking_for(character, "ship"))

    assert "One-Time Filter: (NOT (InitPlan " in plan
    assert "Rows Removed" not in plan


async def test_of_memories_that_are_held_the_index_alone_is_read(
    db: Database, postgres_url: str
) -> None:
    """And of those that were learned nothing that was only said."""
    characters = [await numbered(db, 300) for _ in range(5)]
    await db.run(text("update memories set kind = 'turn' where text not like '%7 came.'"), {})
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as looking:
        await looking.execute("vacuum (analyze) memories")

    recalling = await plan_of(db, "recall new", asking_for(characters[2], "ship"))
    known = {"user": ME, "character": characters[2], "limit": 100}
    consolidating = await plan_of(db, "consolidation known", known)

    assert "Index Only Scan using memories_to_recall" in recalling
    assert "memories_learned" in consolidating


async def test_new_memories_of_a_crowd_get_keys_without_vectors(db: Database) -> None:
    character = await numbered(db, 200)
    await vectors.crowd(db, ME, character, crowd=200)
    new = [NewMemory("fact", f"Whale number{no} came.") for no in range(NEWEST)]
    await memories.add(db, ME, character, new)
    cue = Cue(ME, character, "What of number3?")

    assert (await recall(db, cue, None)).grown
    await vectors.tend(db, ME, character)
    found, grown = told(await recall(db, cue, None))

    assert not grown
    assert sorted(hits(found)) == ["Ship number3 came.", "Whale number3 came."]


async def test_rare_words_and_several_of_them_come_before_frequent_ones(db: Database) -> None:
    character = await characters.create(db, ME, "companion", "Ash", "")
    many = [NewMemory("fact", f"A ship number{no}.", said_at=at(no)) for no in range(1_500)]
    many[3] = NewMemory("fact", "A ship with an anchor.", said_at=at(3))
    many[4:104] = [
        NewMemory("fact", f"An anchor number{no}.", said_at=at(no)) for no in range(4, 104)
    ]
    await memories.add(db, ME, character.id, many)
    await vectors.crowd(db, ME, character.id, crowd=1_000)

    found = await recalled(db, character.id, "Which ship has an anchor, number1400?")

    assert len(found) <= WORDED + NEWEST
    assert sum("anchor" in (one.hits or ()) for one in found) == 101
    assert "A ship with an anchor." in hits(found)


async def test_few_memories_are_given_no_keys(db: Database) -> None:
    character = await numbered(db, 10)

    await vectors.tend(db, ME, character)

    assert await db.row(text("/* keyed */ select from memories where keys is not null")) is None


async def test_the_graph_for_another_length_is_built_once(db: Database) -> None:
    for _ in range(2):
        await vectors.index(db, 12)
    await vectors.index(db, 5_000)

    row = await db.row(
        text("select count(*) from pg_indexes where indexname in "
             "('memories_near_12', 'memories_near_5000')")
    )  # fmt: skip
    assert row is not None
    assert row[0] == 1
    await db.run(text("drop index memories_near_12"))


async def test_a_graph_whose_build_was_broken_off_is_built_anew(db: Database) -> None:
    """As a lock that was not to be had in time breaks it off, or the end of the process."""
    await vectors.index(db, 13)
    of_graph = "where indexrelid = 'memories_near_13'::regclass"
    await db.run(text(f"update pg_index set indisvalid = false {of_graph}"))

    await vectors.index(db, 13)

    row = await db.row(text(f"select indisvalid from pg_index {of_graph}"))
    assert row is not None
    assert row[0]
    await db.run(text("drop index memories_near_13"))


async def built_behind_a_backup(
    db: Database, postgres_url: str, dimension: int, monkeypatch: pytest.MonkeyPatch
) -> int:
    """Build a graph that waits for an older snapshot, for longer than any limit; by which process.

    The limits are shorter than the store's own, for this waits until they have passed.
    """
    short = "set lock_timeout = '100ms'; set statement_timeout = '1s'"
    monkeypatch.setattr(connection, "_ON_CONNECT", f"{connection._ON_CONNECT}; {short}")
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 2.0)
    building = asyncio.create_task(vectors.index(db, dimension))
    pid = 0
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as looking:

        async def is_past_all_limits() -> bool:
            nonlocal pid
            found = await looking.execute(
                "select pid from pg_stat_activity where query like 'create index concurrently%'"
                " and datname = current_database() and state = 'active'"
                " and wait_event_type = 'Lock' and query_start < now() - interval '3 s'"
            )
            pid = (await found.fetchone() or (0,))[0]
            return pid > 0 or building.done()

        async with await psycopg.AsyncConnection.connect(postgres_url) as backup:
            await backup.execute("set transaction isolation level repeatable read")
            await backup.execute("select count(*) from memories")
            await until(is_past_all_limits)
        await within(building)
    return pid


async def test_a_graph_is_built_however_long_it_waits(
    db: Database,
    postgres_url: str,
    watcher: psycopg.AsyncConnection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the connection that may wait for ever is lent to nobody else."""
    built_by = await built_behind_a_backup(db, postgres_url, 14, monkeypatch)

    async def is_gone() -> bool:
        found = await watcher.execute("select from pg_stat_activity where pid = %s", [built_by])
        return await found.fetchone() is None

    await until(is_gone)
    limits = text(
        "select current_setting('lock_timeout'), current_setting('statement_timeout'), indisvalid"
        " from pg_index where indexrelid = 'memories_near_14'::regclass"
    )
    assert await db.row(limits) == ("100ms", "1s", True)
    await db.run(text("drop index memories_near_14"))
