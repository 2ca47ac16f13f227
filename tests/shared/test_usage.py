"""The ledger: each call once, in the write of its step or after it; sums; forgetting a user."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import text

from shared.allowance import NO_RULES
from shared.errors import LeaseLost
from shared.records import Claim, LedgerEntry, NewEvent, Outcome, Step
from shared.store import actions, budgets, characters, erasure, leases, sessions, usage
from shared.store.database import Database
from shared.store.erasure import Erased
from tests.shared.locks import lock_waiters
from tests.shared.sessions import LEASE, ME, claimed, completed, finish, new_session, say
from tests.shared.tables import dump

STEP = Step(0, "model", "openai/gpt-5-mini", "pure", "abc", "done", {"text": "hello"})
EVENT = NewEvent("turn_end", {})
ENTRY = LedgerEntry(
    no=0,
    model="openai/gpt-5-mini",
    purpose="reply",
    outcome="done",
    reported=True,
    step=0,
    input=100,
    output=20,
    cache_read=1000,
    cache_write=3,
    usd=Decimal("0.000123456789"),
    prices="fireside-2026",
    mark_up=Decimal("1.5"),
)


async def begun(db: Database, user: str = ME) -> Claim:
    session = await new_session(db, user, started=True)
    await say(db, session, user=user)
    return await claimed(db, session)


async def enter(
    db: Database, claim: Claim, *entries: LedgerEntry, writes: int | None = None
) -> None:
    await leases.write(
        db, claim, [EVENT], [STEP], lease_seconds=LEASE, writes=writes, ledger=entries
    )


async def ledger(db: Database) -> list[dict[str, Any]]:
    return (await dump(db))["usage"]


async def spent(db: Database, user: str = ME, key_id: str = "") -> Decimal:
    statement = text(
        "select coalesce(sum(total), 0) from spending where user_id = :user and key_id = :key"
    )
    row = await db.row(statement, {"user": user, "key": key_id})
    assert row is not None
    return Decimal(row[0])


async def everything(db: Database, user: str = ME, **how: Any) -> usage.UsageSums:
    now = datetime.now(UTC)
    day = timedelta(days=1)
    return await usage.sums(db, user, since=now - day, before=now + day, **how)


async def test_a_call_is_entered_in_the_write_of_its_step(db: Database) -> None:
    claim = await begun(db)

    await enter(db, claim, ENTRY)

    (row,) = await ledger(db)
    assert row["at"] is not None
    assert row | {"at": ""} == {
        "session_id": str(claim.fence.session_id),
        "task_id": str(claim.task_id),
        "attempt": 1,
        "no": 0,
        "user_id": ME,
        "key_id": "",
        "agent": "companion",
        "model": "openai/gpt-5-mini",
        "purpose": "reply",
        "step": 0,
        "outcome": "done",
        "reported": True,
        "input": 100,
        "output": 20,
        "cache_read": 1000,
        "cache_write": 3,
        "usd": 0.000123456789,
        "estimated_usd": 0,
        "prices": "fireside-2026",
        "mark_up": 1.5,
        "at": "",
    }
    assert await spent(db) == Decimal("0.000123456789") * Decimal("1.5")


async def test_calls_are_entered_with_the_end_too(db: Database) -> None:
    claim = await begun(db)
    outcome = replace(completed(), ledger=[ENTRY, replace(ENTRY, no=1, usd=None, prices=None)])

    await leases.end(db, claim, outcome)

    assert [(row["no"], row["usd"]) for row in await ledger(db)] == [(0, 0.000123456789), (1, None)]


async def test_a_write_that_is_sent_twice_enters_and_charges_once(db: Database) -> None:
    claim = await begun(db)
    await enter(db, claim, ENTRY, writes=0)
    once = await spent(db)

    with pytest.raises(LeaseLost):
        await enter(db, claim, ENTRY, writes=0)
    await usage.append(db, claim, [ENTRY])

    assert len(await ledger(db)) == 1
    assert await spent(db) == once


async def test_nothing_is_entered_without_the_lease_but_it_can_be_appended(db: Database) -> None:
    zombie = await begun(db)
    await leases.release(db, zombie.fence)
    second = await claimed(db, zombie.fence.session_id)

    with pytest.raises(LeaseLost):
        await enter(db, zombie, ENTRY)
    assert await ledger(db) == []
    await usage.append(db, zombie, [ENTRY])
    await enter(db, second, ENTRY)

    assert [row["attempt"] for row in await ledger(db)] == [1, 2]
    assert await spent(db) == 2 * ENTRY.mark_up * Decimal("0.000123456789")


async def test_a_lost_call_is_entered_unless_its_attempt_has_told_of_it(db: Database) -> None:
    first = await begun(db)
    await enter(db, first, ENTRY)
    await leases.release(db, first.fence)
    second = await claimed(db, first.fence.session_id)
    lost = LedgerEntry(0, ENTRY.model, "", "lost", reported=False, step=0, usd=Decimal(0))

    await enter(db, second, lost, replace(lost, no=1, step=1))

    assert [(row["outcome"], row["step"]) for row in await ledger(db)] == [("done", 0), ("lost", 1)]


async def test_many_sessions_of_one_user_charge_at_once(db: Database) -> None:
    claims = await asyncio.gather(*(begun(db) for _ in range(12)))

    async def call(claim: Claim) -> None:
        for no in range(5):
            await enter(db, claim, replace(ENTRY, no=no, usd=Decimal("0.1"), mark_up=Decimal(1)))

    await asyncio.gather(*(call(claim) for claim in claims))

    assert await spent(db) == Decimal("6.0")
    assert len(await ledger(db)) == 60


async def test_a_new_month_and_a_new_day_begin_at_nothing(db: Database) -> None:
    claim = await begun(db)
    await enter(db, claim, replace(ENTRY, usd=Decimal(1), mark_up=Decimal(1)))
    await db.run(text("update spending set month = '2020-01-01', day = '2020-01-31'"))

    await enter(db, claim, replace(ENTRY, no=1, usd=Decimal(2), mark_up=Decimal(1)))

    (row,) = (await dump(db))["spending"]
    assert (row["total"], row["in_month"], row["in_day"], row["tasks"]) == (3, 2, 2, 1)
    # A write that began before midnight and waited comes last: it must not turn the clock back.
    await db.run(text("update spending set month = '2999-01-01', day = '2999-01-31'"))
    await enter(db, claim, replace(ENTRY, no=2, usd=Decimal(4), mark_up=Decimal(1)))
    (row,) = (await dump(db))["spending"]
    assert (row["total"], row["in_month"], row["in_day"]) == (7, 2, 2)
    assert row["month"] == "2999-01-01"


async def test_sums_by_day_agent_model_and_purpose(db: Database) -> None:
    claim, other = await begun(db), await begun(db, "other")
    await enter(
        db,
        claim,
        ENTRY,
        replace(ENTRY, no=1, purpose="judge"),
        replace(ENTRY, no=2, model="openai/unknown", usd=None, prices=None),
        replace(
            ENTRY,
            no=3,
            outcome="aborted",
            reported=False,
            input=0,
            output=0,
            cache_read=0,
            cache_write=0,
            usd=Decimal(0),
            estimated_usd=Decimal("0.5"),
        ),
    )
    await enter(db, other, ENTRY)
    noon = datetime.now(UTC).replace(hour=12, minute=0)  # midnight may be just about to come
    await db.run(text("update usage set at = :noon"), {"noon": noon})

    total = (await everything(db)).total
    model_sums = await everything(db, by=["model"])
    all_sums = await everything(db, by=["day", "agent", "model", "purpose"])
    assert model_sums.total == all_sums.total == total
    by_model, by_all = model_sums.rows, all_sums.rows

    price = Decimal("0.000123456789")
    assert total == usage.UsageSum(
        None,
        None,
        None,
        None,
        calls=4,
        unreported=1,
        unpriced=1,
        input=300,
        output=60,
        cache_read=3000,
        cache_write=9,
        usd=2 * price,
        estimated_usd=Decimal("0.5"),
        billed_usd=(2 * price + Decimal("0.5")) * Decimal("1.5"),
    )
    assert [(one.model, one.calls, one.usd) for one in by_model] == [
        ("openai/gpt-5-mini", 3, 2 * price),
        ("openai/unknown", 1, None),
    ]
    today = noon.date()
    assert [(one.day, one.agent, one.model, one.purpose) for one in by_all] == [
        (today, "companion", "openai/gpt-5-mini", "judge"),
        (today, "companion", "openai/gpt-5-mini", "reply"),
        (today, "companion", "openai/unknown", "reply"),
    ]
    of_task = await everything(db, task_id=claim.task_id, session_id=claim.fence.session_id)
    assert of_task == usage.UsageSums(total, [])
    nothing = await everything(db, task_id=other.task_id, by=["day", "model"])
    assert (nothing.total.calls, nothing.total.usd, nothing.rows) == (0, None, [])


async def test_days_are_those_of_a_zone(db: Database) -> None:
    claim = await begun(db)
    await enter(db, claim, ENTRY)
    await db.run(text("update usage set at = '2026-03-01 23:30:00+00'"))
    span = {
        "since": datetime(2026, 2, 1, tzinfo=UTC),
        "before": datetime(2026, 4, 1, tzinfo=UTC),
        "by": ["day"],
    }

    utc = await usage.sums(db, ME, **span)  # type: ignore[arg-type] # a dict of mixed values
    here = await usage.sums(db, ME, zone="Europe/Berlin", **span)  # type: ignore[arg-type] # the same

    days = [str(row.day) for sums in (utc, here) for row in sums.rows]
    assert days == ["2026-03-01", "2026-03-02"]


async def test_the_ledger_outlasts_its_session(db: Database) -> None:
    claim = await begun(db)
    await enter(db, claim, ENTRY)

    await sessions.delete(db, ME, claim.fence.session_id)
    await usage.append(db, claim, [replace(ENTRY, no=1)])

    assert (await everything(db)).total.calls == 2


async def test_what_is_forgotten_keeps_its_sums_under_a_name_that_says_nothing(
    db: Database,
) -> None:
    claim, other = await begun(db), await begun(db, "other")
    await enter(db, claim, ENTRY)
    await enter(db, other, ENTRY)
    await budgets.put(db, ME, None)
    before = await everything(db)

    async with db.transaction() as connection:
        unknown = await usage.forget(connection, ME)

    assert unknown.startswith("erased-")
    assert await everything(db, unknown) == before
    found = await dump(db)
    mine = str([row for row in found["usage"] if row["user_id"] != "other"])
    for secret in (f"'{ME}'", str(claim.fence.session_id), str(claim.task_id)):
        assert secret not in mine
    assert [row["user_id"] for row in found["spending"]] == ["other"]
    assert found["budgets"] == []


async def test_a_call_that_comes_after_its_user_was_erased_has_no_name(db: Database) -> None:
    claim = await begun(db)
    await erasure.erase(db, ME, Erased())

    await usage.append(db, claim, [ENTRY])

    (row,) = await ledger(db)
    assert row["user_id"].startswith("erased-")
    assert ME not in str((await dump(db))["spending"]).replace("'", "").split()


@pytest.mark.parametrize("paid_before", [True, False])
async def test_who_deletes_all_there_is_during_a_call_pays_for_it(
    db: Database, paid_before: bool
) -> None:
    claim = await begun(db)
    if paid_before:
        await enter(db, claim, ENTRY)
    before = await spent(db)
    await sessions.delete(db, ME, claim.fence.session_id)
    await characters.delete(db, ME, UUID(claim.character["id"]))

    await usage.append(db, claim, [replace(ENTRY, no=1)])

    assert [row["user_id"] for row in await ledger(db)] == [ME] * (1 + paid_before)
    assert await spent(db) == before + Decimal("0.000123456789") * ENTRY.mark_up


async def test_a_session_that_nobody_runs_leaves_nothing_in_the_books(db: Database) -> None:
    session = await new_session(db, started=True)

    await sessions.delete(db, ME, session)

    assert (await dump(db))["spending"] == []


async def left_behind(db: Database) -> Claim:
    """The claim of a user of whom nothing is left but what was spent."""
    claim = await begun(db)
    await enter(db, claim, ENTRY)
    await sessions.delete(db, ME, claim.fence.session_id)
    await characters.delete(db, ME, UUID(claim.character["id"]))
    return claim


async def test_a_call_that_comes_during_an_erasure_is_before_it_or_after(
    db: Database, watcher: psycopg.AsyncConnection[Any]
) -> None:
    claim = await left_behind(db)
    async with db.transaction() as connection:
        await usage.forget(connection, ME)
        appending = asyncio.create_task(usage.append(db, claim, [replace(ENTRY, no=1)]))
        await lock_waiters(watcher)
    await appending

    assert all(row["user_id"].startswith("erased-") for row in await ledger(db))
    assert ME not in {row["user_id"] for row in (await dump(db))["spending"]}


async def test_an_erasure_waits_for_a_call_that_came_before_it(
    db: Database, watcher: psycopg.AsyncConnection[Any]
) -> None:
    claim = await left_behind(db)

    async def forget() -> None:
        async with db.transaction() as connection:
            await usage.forget(connection, ME)

    async with db.transaction() as connection:
        await usage.append_call(
            connection,
            ME,
            "companion",
            session_id=claim.task_id,
            call_id=claim.task_id,
            entry=ENTRY,
        )
        forgetting = asyncio.create_task(forget())
        await lock_waiters(watcher)
    await forgetting

    assert len(await ledger(db)) == 2
    assert all(row["user_id"].startswith("erased-") for row in await ledger(db))
    assert (await dump(db))["spending"] == []


async def test_calls_without_a_price_are_counted(db: Database) -> None:
    claim = await begun(db)
    await enter(db, claim, ENTRY, replace(ENTRY, no=1, usd=None, prices=None))

    assert await usage.without_price(db) == 1


async def test_a_task_that_ends_leaves_no_reservation(db: Database) -> None:
    claim = await begun(db)
    await finish(db, claim)
    task = await actions.get_task(db, ME, claim.task_id)

    assert task.status == "completed"
    assert await budgets.balances(db, ME, NO_RULES) == []


def test_slots_are_all_used() -> None:
    used = {UUID(int=number).int % usage.SLOTS for number in range(100)}

    assert used == set(range(usage.SLOTS))


def test_an_outcome_has_no_calls_unless_it_is_given_some() -> None:
    assert Outcome("completed", []).ledger == ()
