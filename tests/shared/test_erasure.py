"""Export and erasure: no table is forgotten, nothing is left, others keep what is theirs."""

import asyncio
import contextlib
import json
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from sqlalchemy import text

from shared.allowance import Budget
from shared.encoding import dumps
from shared.ending import end_all
from shared.erasure import clear_for_ever, erase_user
from shared.errors import KeyGone, LeaseLost, SessionBusy
from shared.events import text_key
from shared.kept_answers import KeptAnswers
from shared.levels import LEVELS, key_of
from shared.queue import Hints, envelope
from shared.records import Claim, LedgerEntry, NewEvent, NewSession, Outcome, SoulEdit, Step
from shared.redis_pool import connect_redis
from shared.settings import Settings
from shared.store import (
    api_keys,
    batches,
    budgets,
    cancels,
    characters,
    erasure,
    export,
    leases,
    sessions,
    souls,
    usage,
)
from shared.store.database import Database
from shared.store.erasure import Erased
from shared.store.owned import ALL, BOOKS, OF_CHARACTERS
from tests.ports import promised_port
from tests.shared.sessions import LEASE, claimed, new_session, say
from tests.shared.tables import dump
from tests.shared.traces import keys_with, tables_with
from tests.waiting import PATIENCE, until

MINE, OTHER = "anna-canary", "bert-canary"
PAID = Decimal("0.0125")

_NAMING = text(
    """
    select c.table_name, string_agg(c.column_name, ' ') as columns
    from information_schema.columns c
    join information_schema.tables t using (table_schema, table_name)
    where c.table_schema = 'public' and t.table_type = 'BASE TABLE'
        and c.column_name in ('user_id', 'session_id', 'character_id', 'task_id')
    group by c.table_name
    """
)


async def test_every_table_that_names_a_user_is_known(db: Database) -> None:
    naming = {row.table_name: row.columns.split() for row in await db.rows(_NAMING)}

    assert set(naming) | {"sessions", "characters"} == {table.name for table in ALL}
    for table in ALL:
        assert table.by in naming[table.name]


async def settled(db: Database, user: str) -> tuple[UUID, Claim]:
    """A user with rows in every table: a session with an ended, a running and a waiting task."""
    word = f"word of {user}"
    await api_keys.create(db, user, word)
    session = await new_session(db, user)
    who = (await sessions.get(db, user, session)).character_id
    await characters.update(db, user, who, name=word, soul=word)
    await souls.merge(db, user, who, [SoulEdit("Likes", word)])
    done = await claimed(db, session)
    step = Step(0, "model", "m", "pure", "hash", "done", {"said": word})
    await leases.write(db, done, [NewEvent("message_end", {"m": word})], [step], lease_seconds=9)
    message = {"role": "user", "content": word}
    ended = NewEvent("task_completed", {"result": {"text": word}})
    await leases.end(db, done, Outcome("completed", [ended], [message], result={"text": word}))
    await say(db, session, word, user)
    await say(db, session, word, user)
    await cancels.cancel_action(db, user, session, f"key-{user}")
    running = await claimed(db, session)
    await usage.append(db, running, [LedgerEntry(0, "openai/m", "reply", "done", True, usd=PAID)])
    await budgets.put(db, user, Budget(Decimal(9)))
    await db.run(
        text(
            "insert into crowds (character_id, user_id) values (:who, :user) on conflict do nothing"
        ),
        {"who": who, "user": user},
    )
    async with db.transaction() as connection:
        await batches.put(connection, user, session, session, 1, 2)
    return session, running


async def ids_of(db: Database, user: str) -> list[object]:
    """Everything by which a user can be told: the name, words, and ids of what is the user's."""
    rows = await db.rows(
        text(
            """
            select id from sessions where user_id = :user
            union select id from characters where user_id = :user
            union select id from tasks where user_id = :user
            """
        ),
        {"user": user},
    )
    return [user, *(row.id for row in rows)]


async def test_what_is_exported_is_all_there_is(db: Database) -> None:
    session, _ = await settled(db, MINE)
    await settled(db, OTHER)

    found: dict[str, list[Any]] = {}
    async for name, row in export.rows(db, MINE):
        found.setdefault(name, []).append(json.loads(row))

    assert set(found) == {table.name for table in ALL}
    everything = await dump(db)
    for table in ALL:
        mine = [
            row for row in everything[table.name] if MINE in str(row) or str(session) in str(row)
        ]
        if table.name != "souls":
            assert len(found[table.name]) == len(mine), table.name
        for shown in found[table.name]:
            assert not set(table.hidden) & set(shown)
    assert [row["soul"] for row in found["souls"]] == [
        "",
        f"word of {MINE}",
        f"word of {MINE}\n\n## Likes\nword of {MINE}",
    ]
    assert OTHER not in str(found)


async def test_pages_of_an_export_are_all_there(db: Database) -> None:
    await settled(db, MINE)
    await settled(db, MINE)

    rows = [row async for row in export.rows(db, MINE, at_once=2)]

    assert len(rows) == len(set(rows))
    everything = await dump(db)
    for table in ALL:
        assert sum(name == table.name for name, _ in rows) == len(everything[table.name])


async def test_after_an_erasure_nothing_is_left(
    db: Database, redis: Redis, settings: Settings
) -> None:
    _, running = await settled(db, MINE)
    _, others = await settled(db, OTHER)
    words, others_words = await ids_of(db, MINE), await ids_of(db, OTHER)
    before = await dump(db)
    hints, kept = Hints(settings, redis), KeptAnswers(redis, patience=PATIENCE)
    for claim in (running, others):
        session = claim.fence.session_id
        await redis.set(text_key(claim.task_id, 1), "so far")
        await redis.set(f"fireside:ticket:{session}", claim.user_id)
        answer = {"text": f"word of {claim.user_id}"}
        await kept.put(claim.user_id, f"hash of {claim.user_id}", answer, 60)
        for level in range(LEVELS):
            hint = dumps(envelope(session, settings.queue, level))
            await redis.lpush(key_of(settings.queue, level), hint)
    others_keys = await keys_with(redis, others_words)

    erased = await erase_user(db, redis, hints, MINE, settle_seconds=0.1)

    assert await tables_with(db, words) == set()
    assert await keys_with(redis, words) == set()
    assert len(await redis.keys("fireside:answers-of:*")) == 1
    after = await dump(db)
    for table in ALL:
        mine = len(before[table.name]) - len(after[table.name])
        if table.name == "usage":
            assert mine == 0
            continue
        assert mine > 0, table.name
        if table not in (*OF_CHARACTERS, *BOOKS):
            assert erased.rows[table.name] == mine
    assert {row["user_id"][:7] for row in after["usage"]} == {"erased-", OTHER[:7]}
    assert sum(row["usd"] for row in after["usage"]) == float(2 * PAID)
    await leases.write(db, others, [NewEvent("agent_start", {})], lease_seconds=LEASE)
    assert await keys_with(redis, others_words) == others_keys
    assert len(others_keys) == 4 + LEVELS  # its text, ticket, answer and the list with its hash


async def test_a_running_task_of_an_erased_user_is_fenced_off(db: Database) -> None:
    session, running = await settled(db, MINE)
    erased = Erased()

    await erasure.fence(db, MINE, erased)

    assert (erased.running, len(erased.open)) == (True, 2)
    with pytest.raises(LeaseLost):
        await leases.write(db, running, [NewEvent("agent_start", {})], lease_seconds=LEASE)
    with pytest.raises(LeaseLost):
        await leases.end(db, running, Outcome("completed", [NewEvent("task_completed", {})]))
    # An erasure that is broken off here leaves a session that goes on.
    await say(db, session, "again", MINE)
    await leases.end(db, await claimed(db, session), Outcome("cancelled", []))
    await erasure.erase(db, MINE, erased)
    assert await erasure.left(db, MINE, erased.sessions) == {}


async def test_erasures_at_once_and_again_do_no_harm(db: Database) -> None:
    await settled(db, MINE)

    await asyncio.gather(*(erasure.erase(db, MINE, Erased()) for _ in range(3)))
    again = Erased()
    await erasure.erase(db, MINE, again)

    assert again.rows == {}
    assert await tables_with(db, [MINE]) == set()


async def test_a_user_who_goes_on_is_erased_or_told_so(db: Database) -> None:
    stop = asyncio.Event()

    async def go_on() -> None:
        while not stop.is_set():
            await new_session(db, MINE)

    going = asyncio.create_task(go_on())
    try:
        await erasure.erase(db, MINE, Erased())
    except SessionBusy:
        pass
    finally:
        stop.set()
        await going
    await erasure.erase(db, MINE, Erased())
    assert await tables_with(db, [MINE]) == set()


async def test_with_a_key_that_is_gone_nothing_is_made(db: Database) -> None:
    erased_id, _ = await api_keys.create(db, MINE)
    revoked_id, _ = await api_keys.create(db, OTHER)
    kept_id, _ = await api_keys.create(db, OTHER)
    await erasure.erase(db, MINE, Erased())
    await api_keys.revoke(db, OTHER, revoked_id)

    for user, key_id in ((MINE, erased_id), (OTHER, revoked_id), (MINE, kept_id)):
        with_key = NewSession("companion", key_id=str(key_id))
        with pytest.raises(KeyGone):
            await sessions.create(db, user, with_key, "Ember")
        with pytest.raises(KeyGone):
            await characters.create(db, user, "companion", "Ember", "", key_id=str(key_id))

    assert (await erasure.left(db, MINE, set()), await erasure.left(db, OTHER, set())) == (
        {},
        {"api_keys": 2},
    )
    await sessions.create(db, OTHER, NewSession("companion", key_id=str(kept_id)), "Ember")


async def test_who_goes_on_with_a_key_is_stopped_by_the_erasure(db: Database) -> None:
    key_id, _ = await api_keys.create(db, MINE)
    begun = asyncio.Semaphore(0)

    async def go_on() -> int:
        made = 0
        with contextlib.suppress(KeyGone):
            while True:
                await sessions.create(
                    db, MINE, NewSession("companion", key_id=str(key_id)), "Ember"
                )
                await characters.create(db, MINE, "companion", "Ash", "", key_id=str(key_id))
                made += 1
                begun.release()
        return made

    async with asyncio.TaskGroup() as group:
        going = [group.create_task(go_on()) for _ in range(3)]
        for _ in going:
            await begun.acquire()
        erased = Erased()
        await erasure.erase(db, MINE, erased)

    assert erased.rows["sessions"] >= sum(one.result() for one in going) > 0
    assert await tables_with(db, [MINE, *erased.sessions]) == {"erasures"}


async def test_what_redis_has_is_cleared_once_it_is_back(
    db: Database, redis: Redis, settings: Settings
) -> None:
    _, running = await settled(db, MINE)
    _, others = await settled(db, OTHER)
    words, others_words = await ids_of(db, MINE), await ids_of(db, OTHER)
    hints = Hints(settings, redis)
    for claim in (running, others):
        session = claim.fence.session_id
        await redis.set(text_key(claim.task_id, 1), "so far")
        await redis.set(f"fireside:ticket:{session}", claim.user_id)
        await redis.lpush(key_of(settings.queue, 0), dumps(envelope(session, settings.queue, 0)))
    others_keys = await keys_with(redis, others_words)
    nowhere = SecretStr(f"redis://127.0.0.1:{promised_port()}/0")
    away = connect_redis(settings.model_copy(update={"redis_url": nowhere}))

    erased = await erase_user(db, away, Hints(settings, away), MINE, settle_seconds=0.1)

    await away.aclose()
    assert not erased.cleared
    (noted,) = (await dump(db))["erasures"]
    assert MINE not in str(noted)
    words = [one for one in words if one != MINE]
    assert await tables_with(db, [MINE]) == set()
    assert await tables_with(db, words) == {"erasures"}
    assert len(await keys_with(redis, words)) == 3
    clearing = asyncio.create_task(clear_for_ever(db, redis, hints, every=0.01))
    try:
        await db.run(text("update erasures set clear_at = clock_timestamp()"))
        await until(lambda: _is_cleared(db))
    finally:
        await end_all([clearing])
    assert await keys_with(redis, [MINE, *words]) == set()
    assert await keys_with(redis, others_words) == others_keys


async def _is_cleared(db: Database) -> bool:
    return not (await dump(db))["erasures"]
