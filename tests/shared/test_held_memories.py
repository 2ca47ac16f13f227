"""What is held of a character's memories: never anything else than what Postgres would say."""

import gc
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from shared.memories import MemoryMatch, NewMemory
from shared.store import characters, held_memories, memories, memory_pages, vectors
from shared.store.database import Database
from shared.store.held_memories import HeldMemories
from shared.store.recall import Cue, Vector, recall
from tests.shared.sessions import ME
from tests.shared.test_memories import answer, chat, exchange, go_to, user

CUES = ("Where is the old lamp?", "the keeper and the sea", "a letter", "nothing like it")
WORDS = ("lamp", "keeper", "letter", "sea", "harbour", "door", "wind", "stairs", "storm", "book")


async def matching(
    db: Database, cue: Cue, vector: Vector | None = None, held: HeldMemories | None = None
) -> list[MemoryMatch]:
    found = await recall(db, cue, vector, held)
    return sorted(found.matches.rows(), key=lambda one: one.id)


async def fact(db: Database, character: UUID, words: str, **fields: Any) -> UUID:
    (made,) = await memories.add(db, ME, character, [NewMemory("fact", words, **fields)])
    return made


async def created_at(db: Database, memory: UUID, at: datetime) -> None:
    await db.run(
        text("update memories set created_at = :at where id = :memory"),
        {"memory": memory, "at": at},
    )


class Counting:
    """How many memories were taken up from Postgres."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken: list[int] = []
        take = HeldMemories.take

        def counted(held: HeldMemories, since: Any, until: Any, columns: Any) -> None:
            self.taken.append(len(columns[0]))
            take(held, since, until, columns)

        monkeypatch.setattr(HeldMemories, "take", counted)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(monkeypatch)


async def test_what_is_held_is_not_read_again(db: Database, counting: Counting) -> None:
    session, character = await chat(db)
    await exchange(db, session, user("The lamp is out."), answer("The keeper sleeps."))
    held, cue = HeldMemories(), Cue(ME, character, CUES[0], session_id=session, shown_from=99)

    first = await matching(db, cue, held=held)
    again = await matching(db, cue, held=held)
    await exchange(db, session, user("Now it burns."))
    after = await matching(db, cue, held=held)

    assert counting.taken == [2, 0, 1]
    assert first == again
    assert [one.text for one in first] != [one.text for one in after]
    assert after == await matching(db, cue)


async def test_columns_are_the_same_ones_as_long_as_nothing_else_may_be_recalled(
    db: Database,
) -> None:
    session, character = await chat(db)
    for _ in range(9):
        await exchange(db, session, user("The lamp is out."), answer("The keeper sleeps."))
    held, cue = HeldMemories(), Cue(ME, character, CUES[0], session_id=session, shown_from=9)

    read = (await recall(db, cue, None, held)).matches
    await exchange(db, session, user("Now it burns."))
    again = (await recall(db, cue, Vector("m", 2, "[1,0]"), held)).matches
    cut = (await recall(db, replace(cue, shown_from=11), None, held)).matches

    assert len(read.hits) == 8
    assert again.memories is read.memories
    assert cut.memories is not read.memories


async def test_what_leaves_the_window_later_is_held_already(
    db: Database, counting: Counting
) -> None:
    session, character = await chat(db)
    await exchange(db, session, user("The lamp is out."), answer("The keeper sleeps."))
    held = HeldMemories()

    shown = await matching(db, Cue(ME, character, "lamp", session_id=session), held=held)
    left = Cue(ME, character, "lamp", session_id=session, shown_from=2)

    assert shown == []
    assert [one.text for one in await matching(db, left, held=held)] == ["The lamp is out."]
    assert counting.taken == [2, 0]


async def test_changed_words_are_told_from_then_on(db: Database) -> None:
    _, character = await chat(db)
    memory = await fact(db, character, "My number is 123.")
    held, cue = HeldMemories(), Cue(ME, character, "What is my number?")
    await matching(db, cue, held=held)

    await memory_pages.change(db, ME, memory, words="My number is nobody's business.")
    (found,) = await matching(db, cue, held=held)
    assert found.text == "My number is nobody's business."

    await memory_pages.change(db, ME, memory, importance=0.75)
    (found,) = await matching(db, cue, held=held)
    assert found.importance == 0.75

    await memory_pages.delete(db, ME, memory)
    assert await matching(db, cue, held=held) == []


async def test_what_was_committed_later_than_it_was_created_is_not_missed(
    db: Database, counting: Counting
) -> None:
    _, character = await chat(db)
    await fact(db, character, "one lamp")
    held, cue = HeldMemories(), Cue(ME, character, "lamp")
    await matching(db, cue, held=held)

    late = await fact(db, character, "two lamps")
    await created_at(db, late, datetime.now(UTC) - timedelta(hours=1))
    found = await matching(db, cue, held=held)

    assert sorted(one.text for one in found) == ["one lamp", "two lamps"]
    assert counting.taken == [1, 0, 2], "without what is missing, then all"


async def test_nothing_is_held_of_another_user(db: Database) -> None:
    _, character = await chat(db)
    await fact(db, character, "one lamp")
    held = HeldMemories()
    await matching(db, Cue(ME, character, "lamp"), held=held)

    assert await matching(db, Cue("other", character, "lamp"), held=held) == []
    assert held.bytes == 0


async def test_a_crowded_character_is_not_held(db: Database) -> None:
    _, character = await chat(db)
    await fact(db, character, "one lamp")
    held, cue = HeldMemories(), Cue(ME, character, "lamp")
    await matching(db, cue, held=held)
    assert held.bytes > 0

    await db.run(
        text("insert into crowds (character_id, user_id) values (:character, :user)"),
        {"character": character, "user": ME},
    )
    assert [one.text for one in await matching(db, cue, held=held)] == ["one lamp"]
    assert (held.bytes, held.since) == (0, None)


async def test_no_more_is_held_than_may_be(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_memories, "MOST", 2)
    _, character = await chat(db)
    held, cue = HeldMemories(), Cue(ME, character, "lamp")
    gone = [await fact(db, character, f"lamp {number}") for number in range(3)]
    await matching(db, cue, held=held)
    full = held.bytes
    for memory in gone[1:]:
        await memory_pages.delete(db, ME, memory)

    assert [one.text for one in await matching(db, cue, held=held)] == ["lamp 0"]
    assert [one.text for one in await matching(db, cue, held=held)] == ["lamp 0"]
    assert 0 < held.bytes < full


class Life:
    """What may happen to the memories of one character with two sessions, by chance."""

    def __init__(self, db: Database, chance: random.Random, chats: Sequence[UUID]) -> None:
        self.db = db
        self.chance = chance
        self.session, self.other, self.character = chats
        self.facts: list[UUID] = []

    def words(self) -> str:
        return " ".join(self.chance.choices(WORDS, k=6))

    def one(self) -> UUID:
        return self.chance.choice(self.facts)

    async def go_on(self) -> None:
        session = self.chance.choice([self.session, self.other])
        await exchange(self.db, session, user(self.words()), answer(self.words()))

    async def undo(self) -> None:
        await go_to(self.db, self.session, self.chance.choice([None, 1, 2, 3]))

    async def learn(self) -> None:
        of = self.chance.choice([None, self.other])
        self.facts.append(await fact(self.db, self.character, self.words(), session_id=of))

    async def learn_late(self) -> None:
        await self.learn()
        await created_at(self.db, self.facts[-1], datetime.now(UTC) - timedelta(hours=1))

    async def change(self) -> None:
        await memory_pages.change(self.db, ME, self.one(), words=self.words())

    async def weigh(self) -> None:
        await memory_pages.change(self.db, ME, self.one(), importance=self.chance.random())

    async def close(self) -> None:
        await memory_pages.change(self.db, ME, self.one(), valid=self.chance.random() < 0.5)

    async def forget(self) -> None:
        if len(self.facts) > 1:
            memory = self.facts.pop(self.chance.randrange(len(self.facts)))
            await memory_pages.delete(self.db, ME, memory)

    async def rename(self) -> None:
        await characters.update(self.db, ME, self.character, name=self.words(), soul=None)

    async def embed(self) -> None:
        owed = await vectors.missing(self.db, after=UUID(int=0), limit=3)
        leanings = [self.chance.random() for _ in owed]
        made = [f"[{lean},{math.sqrt(1 - lean * lean)}]" for lean in leanings]
        await vectors.put(self.db, "m", owed, made)

    async def go_on_somehow(self) -> None:
        deeds: list[Callable[[], Awaitable[None]]] = [
            *[self.go_on, self.learn] * 2,
            *(self.undo, self.learn_late, self.change, self.weigh),
            *(self.close, self.forget, self.rename, self.embed),
        ]
        await self.chance.choice(deeds)()


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_happens_what_is_held_says_the_same(db: Database, seed: int) -> None:
    chance = random.Random(seed)
    session, character = await chat(db)
    other, _ = await chat(db, character=character)
    life, held = Life(db, chance, (session, other, character)), HeldMemories()
    await life.learn()
    for _ in range(2):
        await exchange(db, session, user(life.words()), answer(life.words()))
    for _ in range(40):
        await life.go_on_somehow()
        cue = Cue(
            ME,
            character,
            chance.choice(CUES),
            session_id=chance.choice([None, session, other]),
            shown_from=chance.randrange(1, 20),
        )
        vector = chance.choice([None, Vector("m", 2, "[1,0]")])
        assert await matching(db, cue, vector, held) == await matching(db, cue, vector)


async def test_the_garbage_collector_has_little_to_look_at(db: Database) -> None:
    """Workers hold hundreds of thousands of memories: a full collection must not see them all."""
    _, character = await chat(db)
    facts = [NewMemory("fact", f"lamp {number}") for number in range(50)]
    await memories.add(db, ME, character, facts)
    held = HeldMemories()
    await recall(db, Cue(ME, character, "lamp"), None, held)
    gc.collect()

    seen = [one for one in gc.get_referents(held._columns) if gc.is_tracked(one)]
    assert len(seen) <= 1, "the sessions' ids are objects"
    assert not gc.is_tracked(held._places)
