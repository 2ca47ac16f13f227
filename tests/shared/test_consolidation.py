"""Consolidation in the tables: when it is due, one task for one range, its end applied once."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy import text

from shared.allowance import Budget, BudgetRules
from shared.consolidation import (
    KEEPER,
    MESSAGES,
    MOST_MESSAGES,
    Consolidated,
    Finding,
    Summary,
)
from shared.errors import LeaseLost, NotFound, TooManyTasks
from shared.levels import BACKGROUND, CHORE
from shared.records import Accepted, Claim, Lasting, NewAction, NewSession
from shared.store import (
    actions,
    budgets,
    characters,
    claims,
    consolidation,
    leases,
    memory_pages,
    sessions,
    turns,
)
from shared.store.consolidation import Due
from shared.store.database import Database
from tests.shared.locks import lock_waiters
from tests.shared.sessions import LEASE, ME, claimed, completed, finish, new_session, say
from tests.shared.tables import dump

IDLE = 600.0
SOON = 0.0
NOTHING_LEFT = BudgetRules(per_user=Budget(Decimal(0)))
PLENTY = BudgetRules(per_user=Budget(Decimal(100)))

_CLOCK = text(
    """
    select consolidate_at <= clock_timestamp() as due, consolidate_at is null as never,
        consolidated, consolidation_tries as tries
    from sessions where id = :session
    """
)


async def turn(
    db: Database,
    session: UUID,
    messages: int = 2,
    idle: float | None = IDLE,
    user: str = ME,
) -> None:
    """A task that says so much."""
    await say(db, session, user=user)
    said = [{"role": ("user", "assistant")[n % 2], "content": f"word {n}"} for n in range(messages)]
    outcome = replace(completed(), messages=said, lasting=Lasting(remembers=True))
    await leases.end(db, await claimed(db, session), outcome, idle_seconds=idle)


async def clock(db: Database, session: UUID) -> Any:
    return await db.row(_CLOCK, {"session": session})


async def order(db: Database, session: UUID, user: str = ME) -> Accepted | None:
    return await consolidation.order(db, Due(session, user), idle_seconds=IDLE)


async def ordered(db: Database, session: UUID) -> Claim:
    """The task of a consolidation, claimed."""
    made = await order(db, session)
    assert made is not None
    return await claimed(db, made.session_id)


def found(session: UUID, first: int, last: int, *texts: str, **more: Any) -> Lasting:
    at = datetime.now(UTC) - timedelta(minutes=5)
    findings = [Finding("fact", one, [first], 0.5, at) for one in texts]
    return Lasting(consolidated=Consolidated(session, first, last, findings, **more))


async def end(db: Database, claim: Claim, lasting: Lasting) -> None:
    await leases.end(db, claim, replace(completed(), lasting=lasting), idle_seconds=IDLE)


async def facts(db: Database) -> list[str]:
    rows = (await dump(db))["memories"]
    return sorted(row["text"] for row in rows if row["kind"] in {"fact", "summary"})


async def test_a_quiet_session_becomes_due(db: Database) -> None:
    session = await new_session(db, started=True)
    await turn(db, session, idle=None)
    assert (await clock(db, session)).never
    await turn(db, session)
    assert not (await clock(db, session)).due
    assert await consolidation.due(db) == []

    await turn(db, session, idle=SOON)

    assert await consolidation.due(db) == [Due(session, ME)]
    assert await consolidation.due(db) == []  # somebody sees to it


async def test_a_session_is_due_before_its_window_is_cut(db: Database) -> None:
    session = await new_session(db, started=True)
    await turn(db, session, MESSAGES - 2)
    assert not (await clock(db, session)).due

    await turn(db, session, 2)

    assert (await clock(db, session)).due
    claim = await ordered(db, session)
    assert (claim.action["first"], claim.action["last"]) == (1, MESSAGES)
    await end(db, claim, found(session, 1, MESSAGES))
    assert (await clock(db, session)).never
    await turn(db, session, 2)
    assert not (await clock(db, session)).due


async def test_the_range_is_that_of_the_row_and_not_of_an_earlier_look(db: Database) -> None:
    session = await new_session(db, started=True)
    await turn(db, session, idle=SOON)
    (due,) = await consolidation.due(db)
    await turn(db, session, 4)

    made = await consolidation.order(db, due, idle_seconds=IDLE)

    assert made is not None
    claim = await claimed(db, made.session_id)
    assert claim.action == {
        "type": "consolidate",
        "session_id": str(session),
        "first": 1,
        "last": 6,
    }


async def test_orders_at_once_are_one_task(db: Database) -> None:
    session = await new_session(db, started=True)
    await turn(db, session)

    made = await asyncio.gather(*(order(db, session) for _ in range(6)))

    assert sum(one is not None for one in made) == 1
    rows = [row for row in (await dump(db))["tasks"] if row["action"]["type"] == "consolidate"]
    assert len(rows) == 1


async def test_ends_of_one_range_at_once_are_applied_once(db: Database) -> None:
    session = await new_session(db, started=True)
    await turn(db, session)
    first = await ordered(db, session)
    other = await new_session(db, started=True)
    await say(db, other)
    second = await claimed(db, other)

    await asyncio.gather(
        end(db, first, found(session, 1, 2, "one")),
        end(db, second, found(session, 1, 2, "two")),
    )

    assert len(await facts(db)) == 1
    assert (await clock(db, session)).consolidated == 2
    await say(db, other)
    await end(db, await claimed(db, other), found(session, 1, 2, "three"))
    await say(db, other)
    await end(db, await claimed(db, other), found(session, 4, 5, "a hole before it"))
    assert len(await facts(db)) == 1


async def test_who_lost_the_lease_consolidates_nothing(db: Database) -> None:
    session = await new_session(db, started=True)
    await turn(db, session)
    lost = await ordered(db, session)
    await leases.release(db, lost.fence)
    taken = await claimed(db, lost.fence.session_id)

    with pytest.raises(LeaseLost):
        await end(db, lost, found(session, 1, 2, "lost"))
    assert (await clock(db, session)).consolidated == 0
    await end(db, taken, found(session, 1, 2, "kept"))
    assert await facts(db) == ["kept"]


async def test_what_was_found_is_written_and_what_it_ends_is_closed(db: Database) -> None:
    session = await new_session(db, started=True)
    await turn(db, session, MESSAGES)
    summary = Summary("They met.", MESSAGES)
    done = found(session, 1, MESSAGES, "lives in Vienna", summary=summary, speaker="Eva")
    await end(db, await ordered(db, session), done)
    (old,) = [row for row in (await dump(db))["memories"] if row["kind"] == "fact"]
    await turn(db, session)
    material = await consolidation.read(db, ME, session, MESSAGES + 1, MESSAGES + 2)

    assert material is not None
    assert [(one.id, one.text) for one in material.known] == [(UUID(old["id"]), old["text"])]
    assert (material.summary, material.summary_upto) == ("They met.", MESSAGES)
    assert [one.no for one in material.said] == [MESSAGES + 1, MESSAGES + 2]
    done = found(session, MESSAGES + 1, MESSAGES + 2, "lives in Graz")
    assert done.consolidated is not None
    moved = replace(done.consolidated.findings[0], replaces=[UUID(old["id"]), uuid4()])
    again = replace(done, consolidated=replace(done.consolidated, findings=[moved]))
    await end(db, await ordered(db, session), again)

    rows = {row["text"]: row for row in (await dump(db))["memories"] if row["kind"] != "turn"}
    assert set(rows) == {"lives in Vienna", "lives in Graz", "They met."}
    closed, kept, told = rows["lives in Vienna"], rows["lives in Graz"], rows["They met."]
    assert closed["valid_to"] is not None
    assert closed["valid_to"] >= closed["valid_from"]
    assert (kept["valid_to"], kept["sources"], kept["user_id"]) == (None, [17], ME)
    assert (closed["speaker"], closed["session_id"]) == ("Eva", str(session))
    assert (told["kind"], told["no"], told["sources"]) == (
        "summary",
        MESSAGES,
        list(range(1, MESSAGES + 1)),
    )


async def test_a_summary_begins_where_the_last_one_ended(db: Database) -> None:
    session = await new_session(db, started=True)
    await turn(db, session, MESSAGES - 4)
    await end(db, await ordered(db, session), found(session, 1, MESSAGES - 4))
    await turn(db, session, 6)

    material = await consolidation.read(db, ME, session, MESSAGES - 3, MESSAGES + 2)

    assert material is not None
    assert [one.no for one in material.said] == list(range(1, MESSAGES + 3))


async def test_of_a_long_session_the_last_summaries_are_recalled(db: Database) -> None:
    session = await new_session(db, started=True)
    for upto in range(MESSAGES, 6 * MESSAGES, MESSAGES):
        await turn(db, session, MESSAGES)
        summary = Summary(f"up to {upto}", upto)
        done = found(session, upto - MESSAGES + 1, upto, summary=summary)
        await end(db, await ordered(db, session), done)

    rows = [row for row in (await dump(db))["memories"] if row["kind"] == "summary"]

    open_ones = sorted(row["no"] for row in rows if row["valid_to"] is None)
    assert open_ones == [3 * MESSAGES, 4 * MESSAGES, 5 * MESSAGES]
    assert len(rows) == 5


async def test_a_failed_range_is_tried_again_and_given_up_in_the_end(db: Database) -> None:
    session = await new_session(db, started=True)
    await turn(db, session)
    for tries in range(1, consolidation.MOST_TRIES + 1):
        claim = await ordered(db, session)
        assert await order(db, session) is None
        await finish(db, claim)
        state = await clock(db, session)
        assert (state.tries, state.due, state.consolidated) == (tries, False, 0)

    assert await order(db, session) is None

    state = await clock(db, session)
    assert (state.tries, state.never, state.consolidated) == (0, True, 2)
    assert await order(db, session) is None


async def test_much_is_read_in_parts(db: Database) -> None:
    session = await new_session(db, started=True)
    await turn(db, session, MOST_MESSAGES + 10)

    first = await ordered(db, session)
    await end(db, first, found(session, 1, MOST_MESSAGES))
    second = await ordered(db, session)

    assert (first.action["last"], second.action["first"]) == (MOST_MESSAGES, MOST_MESSAGES + 1)
    assert second.action["last"] == MOST_MESSAGES + 10


async def test_a_new_session_of_the_character_hurries_the_others(db: Database) -> None:
    session = await new_session(db, started=True)
    await turn(db, session)
    unread = await new_session(db, "other", started=True)
    await turn(db, unread, user="other")

    await new_session(db)

    assert await consolidation.due(db) == [Due(session, ME)]
    assert (await clock(db, unread)).due is False


async def test_nobody_sees_or_counts_it(db: Database) -> None:
    session = await new_session(db, started=True)
    await turn(db, session)
    made = await order(db, session)
    assert made is not None

    assert made.level == BACKGROUND
    assert [one.id for one in await sessions.page(db, ME, limit=9)] == [session]
    with pytest.raises(NotFound):
        await sessions.get(db, ME, made.session_id)
    assert await turns.open_in_all(db) == 0
    accepted = await actions.accept(
        db, ME, session, NewAction({"type": "say", "text": "hi"}), most=1
    )
    with pytest.raises(TooManyTasks):
        await actions.accept(db, ME, session, NewAction({"type": "say", "text": "ho"}), most=1)
    await claimed(db, made.session_id)
    assert accepted.level == 0
    assert (await turns.levels(db, [session]))[session] == 0
    (row,) = [row for row in (await dump(db))["sessions"] if row["agent"] == KEEPER]
    assert row["priority"] == CHORE


async def test_a_pause_brings_the_newest_soul(db: Database) -> None:
    session = await new_session(db, started=True)
    await turn(db, session)
    who = (await sessions.get(db, ME, session)).character_id
    await characters.update(db, ME, who, name=None, soul="new")
    await order(db, session)
    await say(db, session)
    claim = await claimed(db, session)
    assert claim.character["soul"] == ""
    await leases.end(db, claim, completed())
    ago = text(
        "update sessions set updated_at = updated_at - interval '1 hour', consolidate_at = now()"
    )
    await db.run(ago)

    await order(db, session)

    await say(db, session)
    assert (await claimed(db, session)).character["soul"] == "new"


async def test_sessions_that_are_gone_or_anothers_are_not_read(db: Database) -> None:
    session = await new_session(db, started=True)
    await turn(db, session)
    claim = await ordered(db, session)

    assert await order(db, session, "stranger") is None
    assert await consolidation.read(db, "stranger", session, 1, 2) is None
    await sessions.delete(db, ME, session)
    assert await order(db, session) is None
    assert await consolidation.read(db, ME, session, 1, 2) is None
    await end(db, claim, found(session, 1, 2, "of nobody"))
    assert await facts(db) == []


@pytest.mark.parametrize("deleted", ["sessions characters", "sessions"])
async def test_who_is_erased_meanwhile_is_not_read(
    db: Database, watcher: psycopg.AsyncConnection[Any], deleted: str
) -> None:
    session = await new_session(db, started=True)
    await turn(db, session, idle=SOON)
    (due,) = await consolidation.due(db)
    async with watcher.transaction():
        await watcher.execute("delete from sessions where user_id = %s", (ME,))
        if "characters" in deleted:
            await watcher.execute("delete from characters where user_id = %s", (ME,))
        ordering = asyncio.create_task(consolidation.order(db, due, idle_seconds=IDLE))
        await lock_waiters(watcher)

    assert await ordering is None


async def test_what_was_deleted_is_not_learned_again(db: Database) -> None:
    read, unread = [await new_session(db, started=True) for _ in range(2)]
    for session in (read, unread):
        await turn(db, session, idle=SOON)
    claim = await ordered(db, read)
    who = (await sessions.get(db, ME, read)).character_id

    await memory_pages.delete_all(db, ME, who)
    await end(db, claim, found(read, 1, 2, "They have a dog."))

    assert await facts(db) == []
    assert await order(db, unread) is None
    assert (await clock(db, unread)).never
    await turn(db, unread, idle=SOON)
    claim = await ordered(db, unread)
    assert (claim.action["first"], claim.action["last"]) == (3, 4)
    await end(db, claim, found(unread, 3, 4, "They have a cat."))
    assert await facts(db) == ["They have a cat."]


async def test_a_character_can_be_deleted_that_was_read(db: Database) -> None:
    session = await new_session(db, started=True)
    await turn(db, session)
    await order(db, session)
    who = (await sessions.get(db, ME, session)).character_id
    await sessions.delete(db, ME, session)

    await characters.delete(db, ME, who)

    left = await dump(db)
    assert (left["sessions"], left["characters"], left["events"], left["tasks"]) == ([], [], [], [])


async def test_a_session_of_a_companion_only(db: Database) -> None:
    session, _, _ = await sessions.create(db, ME, NewSession("companion"), "Ember")
    await finish(db, await claimed(db, session.id))
    assert (await clock(db, session.id)).never


async def test_who_has_nothing_left_is_read_later(db: Database) -> None:
    session = await new_session(db, started=True)
    await turn(db, session)
    due = Due(session, ME)

    for _ in range(consolidation.MOST_TRIES + 1):
        assert await consolidation.order(db, due, idle_seconds=IDLE, rules=NOTHING_LEFT) is None

    state = await clock(db, session)
    assert (state.tries, state.due, state.never, state.consolidated) == (0, False, False, 0)
    made = await consolidation.order(db, due, idle_seconds=IDLE, rules=PLENTY)
    assert made is not None
    again = await clock(db, session)
    assert (again.tries, again.due) == (1, False)


async def test_what_is_read_is_held_to_the_budget(db: Database) -> None:
    session = await new_session(db, started=True)
    await turn(db, session)
    made = await consolidation.order(db, Due(session, ME), idle_seconds=IDLE, rules=PLENTY)
    assert made is not None

    claim = await claims.claim(
        db, made.session_id, lease_seconds=LEASE, history=100, rules=NOTHING_LEFT
    )

    assert claim is not None
    assert claim.left_usd == 0


async def test_a_budget_of_ones_own_holds_for_what_is_read_too(db: Database) -> None:
    session = await new_session(db, started=True)
    await turn(db, session)
    await budgets.put(db, ME, Budget(Decimal(0)))

    assert await order(db, session) is None

    assert (await clock(db, session)).tries == 0
