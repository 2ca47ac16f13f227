"""Budgets: what an operator writes, what is left, and when no further action is accepted."""

import asyncio
from dataclasses import replace
from decimal import Decimal

import pytest
from sqlalchemy import text

from shared.allowance import NO_RULES, Budget, BudgetRules, read_budget
from shared.errors import BudgetSpent, SettingsError
from shared.records import Claim, LedgerEntry, NewAction, NewSession
from shared.store import actions, budgets, cancels, claims, leases, sessions
from shared.store.database import Database
from tests.shared.sessions import LEASE, ME, completed, finish, new_session

SAY = NewAction({"type": "say", "text": "hi"})
ONE = BudgetRules(per_user=Budget(Decimal(1)), reserve=Decimal("0.25"), economy=Decimal("0.8"))
KEY = "0198c0de-0000-4000-8000-000000000001"


async def claimed(db: Database, session: object, rules: BudgetRules = ONE) -> Claim:
    found = await claims.claim(
        db,
        session,  # type: ignore[arg-type] # a session's id
        lease_seconds=LEASE,
        history=100,
        rules=rules,
    )
    assert found is not None
    return found


async def pay(db: Database, claim: Claim, usd: str, no: int = 0) -> None:
    entry = LedgerEntry(no, "m/m", "reply", "done", reported=True, input=1, usd=Decimal(usd))
    await leases.write(db, claim, [], [], lease_seconds=LEASE, ledger=[entry])


@pytest.mark.parametrize(
    ("written", "budget"),
    [
        (None, None),
        ("100", Budget(Decimal(100))),
        ("0", Budget(Decimal(0))),
        ("20/month", Budget(Decimal(20), "month")),
        ("0.5/day", Budget(Decimal("0.5"), "day")),
    ],
)
def test_a_budget_as_an_operator_writes_it(written: str | None, budget: Budget | None) -> None:
    assert read_budget(written) == budget


@pytest.mark.parametrize(
    "written", ["", "-1", "1e3", "nan", "5/week", "5/", "/day", "5 /day", "1.", "²", "1" * 13]
)
def test_what_is_no_budget(written: str) -> None:
    with pytest.raises(SettingsError, match="must be US dollars"):
        read_budget(written)


async def test_without_a_budget_nothing_is_reserved(db: Database) -> None:
    session = await new_session(db, started=True)
    await actions.accept(db, ME, session, SAY, rules=NO_RULES)

    claim = await claimed(db, session, NO_RULES)

    assert (claim.left_usd, claim.economy) == (None, False)
    assert await budgets.left(db, ME, NO_RULES) is None
    row = await db.row(text("select count(reserved) from tasks"))
    assert row is not None
    assert row[0] == 0


async def test_open_tasks_are_reserved_for_and_then_settled(db: Database) -> None:
    session = await new_session(db, started=True)
    for _ in range(4):
        await actions.accept(db, ME, session, SAY, rules=ONE)

    with pytest.raises(BudgetSpent):
        await actions.accept(db, ME, session, SAY, rules=ONE)
    (balance,) = await budgets.balances(db, ME, ONE)
    assert balance == budgets.Balance("", Decimal(1), "total", Decimal(0), Decimal(1), None)
    assert balance.left == 0
    claim = await claimed(db, session)
    assert claim.left_usd == 1
    await pay(db, claim, "0.05")
    await finish(db, claim)
    (balance,) = await budgets.balances(db, ME, ONE)

    assert (balance.spent, balance.reserved) == (Decimal("0.05"), Decimal("0.75"))
    accepted = await actions.accept(db, ME, session, SAY, rules=ONE)
    assert accepted.fresh
    (balance,) = await budgets.balances(db, ME, ONE)
    assert balance.reserved == Decimal("0.80")  # what the user's tasks cost, as far as is known


async def test_a_cancelled_task_gives_its_reservation_back(db: Database) -> None:
    session = await new_session(db, started=True)
    accepted = await actions.accept(db, ME, session, SAY, rules=ONE)
    await cancels.cancel_task(db, ME, accepted.task_id)

    (balance,) = await budgets.balances(db, ME, ONE)

    assert balance.left == 1


async def test_what_was_accepted_before_is_found_though_nothing_is_left(db: Database) -> None:
    session = await new_session(db, started=True)
    keyed = replace(SAY, client_action_id="a")
    accepted = await actions.accept(db, ME, session, keyed, rules=ONE)
    await pay(db, await claimed(db, session), "2")

    again = await actions.accept(db, ME, session, keyed, rules=ONE)

    assert (again.task_id, again.fresh) == (accepted.task_id, False)
    with pytest.raises(BudgetSpent):
        await actions.accept(db, ME, session, SAY, rules=ONE)
    with pytest.raises(BudgetSpent):
        await actions.accept(db, ME, session, replace(SAY, on_busy="interrupt"), rules=ONE)
    with pytest.raises(BudgetSpent):
        await sessions.create(db, ME, NewSession("companion"), "Ember", rules=ONE)
    row = await db.row(text("select count(*) from sessions"))
    assert row is not None
    assert row[0] == 1
    other = await new_session(db, "other")
    assert (await actions.accept(db, "other", other, SAY, rules=ONE)).fresh


async def test_a_claim_knows_what_is_left_and_when_to_be_thrifty(db: Database) -> None:
    session = await new_session(db, started=True)
    for _ in range(3):
        await actions.accept(db, ME, session, SAY, rules=ONE)
    found = []
    for usd in ("0.5", "0.3", "0.7"):
        claim = await claimed(db, session)
        found.append((claim.left_usd, claim.economy))
        await pay(db, claim, usd)
        await leases.end(db, claim, completed())

    assert found == [(1, False), (Decimal("0.5"), False), (Decimal("0.2"), True)]
    assert await budgets.left(db, ME, ONE) == Decimal("-0.5")


async def test_a_key_has_a_budget_of_its_own_beside_its_users(db: Database) -> None:
    rules = replace(ONE, per_key=Budget(Decimal("0.1"), "day"))
    session = await new_session(db, started=True)
    with_key = replace(SAY, key_id=KEY)
    await actions.accept(db, ME, session, with_key, rules=rules)
    claim = await claimed(db, session, rules)
    assert (claim.key_id, claim.left_usd) == (KEY, Decimal("0.1"))
    await pay(db, claim, "0.2")
    await finish(db, claim)

    with pytest.raises(BudgetSpent):
        await actions.accept(db, ME, session, with_key, rules=rules)
    assert (await actions.accept(db, ME, session, SAY, rules=rules)).fresh
    user, key = await budgets.balances(db, ME, rules, key_id=KEY)
    assert (user.spent, user.renews_at) == (Decimal("0.2"), None)
    assert (key.key_id, key.spent, key.period) == (KEY, Decimal("0.2"), "day")
    assert key.renews_at is not None
    # The next day.
    await db.run(text("update spending set day = day - 1"))
    assert await budgets.left(db, ME, rules, key_id=KEY) == Decimal("0.1")


async def test_budgets_of_single_users_go_before_the_rules(db: Database) -> None:
    await budgets.put(db, ME, None)
    await budgets.put(db, "poor", Budget(Decimal(0), "month"))
    await budgets.put(db, ME, Budget(Decimal(3)), key_id=KEY)

    assert await budgets.left(db, ME, ONE) is None
    assert await budgets.left(db, ME, ONE, key_id=KEY) == 3
    assert await budgets.left(db, "poor", NO_RULES) == 0
    assert await budgets.left(db, "other", ONE) == 1
    assert [(one.user_id, one.key_id, one.budget) for one in await budgets.page(db)] == [
        (ME, "", None),
        (ME, KEY, Budget(Decimal(3))),
        ("poor", "", Budget(Decimal(0), "month")),
    ]
    assert [one.user_id for one in await budgets.page(db, "poor")] == ["poor"]
    assert await budgets.clear(db, ME)
    assert not await budgets.clear(db, ME)
    assert await budgets.left(db, ME, ONE) == 1


async def test_sessions_of_one_user_that_act_at_once_do_not_wait_for_each_other(
    db: Database,
) -> None:
    made = [await new_session(db, started=True) for _ in range(8)]
    rules = replace(ONE, per_user=Budget(Decimal(100)))

    await asyncio.gather(
        *(actions.accept(db, ME, session, SAY, rules=rules) for session in made for _ in range(3))
    )

    (balance,) = await budgets.balances(db, ME, rules)
    assert balance.reserved == 24 * Decimal("0.25")
