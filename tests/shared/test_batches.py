"""Batches in the tables: which ranges go out, that each comes back once, and that none is lost."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from shared.allowance import NO_RULES, Budget, BudgetRules
from shared.consolidation import MESSAGES, Consolidated, KnownMemory, Remembered
from shared.records import Accepted, Claim, Lasting, LedgerEntry
from shared.store import batches, claims, consolidation, leases, sessions
from shared.store.batches import Batch
from shared.store.consolidation import Due
from shared.store.database import Database
from tests.shared.sessions import LEASE, ME, claimed, completed, finish, new_session, say
from tests.shared.tables import dump
from tests.shared.times import now

MODEL = "openai/small"
NOTHING = Remembered([], "", 0)
PAID = LedgerEntry(0, MODEL, "consolidation", "done", True, input=9, output=1, usd=Decimal(2))

_ROW = text(
    """
    select consolidate_at <= clock_timestamp() as due, consolidate_at is null as never,
        extract(epoch from consolidate_at - clock_timestamp())::float8 as seconds, consolidated
    from sessions where id = :session
    """
)


async def turn(db: Database, session: UUID, messages: int = 2, user: str = ME) -> None:
    """A task that says so much, in a session that is quiet from then on."""
    await say(db, session, user=user)
    said = [{"role": ("user", "assistant")[n % 2], "content": f"word {n}"} for n in range(messages)]
    outcome = replace(completed(), messages=said, lasting=Lasting(remembers=True))
    await leases.end(db, await claimed(db, session), outcome, idle_seconds=0.0)


async def quiet(db: Database, user: str = ME) -> UUID:
    """A session in which two messages were not read."""
    session = await new_session(db, user, started=True)
    await turn(db, session, user=user)
    return session


async def order(
    db: Database,
    session: UUID,
    *,
    batched: bool = True,
    idle_seconds: float = 0.0,
    user: str = ME,
    rules: BudgetRules = NO_RULES,
) -> Accepted | None:
    due = Due(session, user)
    return await consolidation.order(
        db, due, idle_seconds=idle_seconds, batched=batched, rules=rules
    )


async def row_of(db: Database, session: UUID) -> Any:
    return await db.row(_ROW, {"session": session})


async def lines(db: Database) -> list[Any]:
    return (await dump(db))["consolidation_lines"]


async def made(db: Database) -> Batch:
    """The batch of all lines that wait, taken."""
    assert await batches.make(db, MODEL, gather=0.0) is not None
    batch = await batches.take(db)
    assert batch is not None
    return batch


async def answered(db: Database, session: UUID, output: str | None = "{}") -> UUID:
    """A line that has its answer."""
    assert await order(db, session) is None
    batch = await made(db)
    (line,) = await batches.lines(db, batch)
    await batches.know(db, line, NOTHING, 9)
    await batches.answer(db, batch, line.id, output, PAID)
    return line.id


async def ordered(db: Database, session: UUID) -> Claim:
    accepted = await order(db, session)
    assert accepted is not None
    return await claimed(db, accepted.session_id)


async def end(db: Database, claim: Claim) -> None:
    """The end of a consolidation that has found nothing."""
    session, action = UUID(claim.action["session_id"]), claim.action
    done = Consolidated(session, action["first"], action["last"])
    outcome = replace(completed(), lasting=Lasting(consolidated=done))
    await leases.end(db, claim, outcome, idle_seconds=0.0)


async def test_what_nobody_waits_for_goes_with_a_batch(db: Database) -> None:
    session = await quiet(db)

    assert await order(db, session) is None

    (line,) = await lines(db)
    assert (line["session_id"], line["first"], line["last"]) == (str(session), 1, 2)
    assert (line["state"], line["batch_id"]) == ("out", None)
    assert 24 * 3600 < (await row_of(db, session)).seconds < 26 * 3600


@pytest.mark.parametrize("why", ["off", "cut", "busy", "hurried"])
async def test_what_somebody_waits_for_is_read_at_once(db: Database, why: str) -> None:
    session = await quiet(db)
    if why == "cut":
        await turn(db, session, MESSAGES - 2)
    if why == "busy":
        await say(db, session)
    # A session that is hurried by another one was used a moment ago.
    idle_seconds = 600.0 if why == "hurried" else 0.0

    accepted = await order(db, session, batched=why != "off", idle_seconds=idle_seconds)

    assert accepted is not None
    assert await lines(db) == []


async def test_orders_at_once_are_one_line(db: Database) -> None:
    session = await quiet(db)

    found = await asyncio.gather(*(order(db, session) for _ in range(6)))

    assert found == [None] * 6
    assert len(await lines(db)) == 1


async def test_a_line_is_waited_for_while_the_session_goes_on(db: Database) -> None:
    session = await quiet(db)
    await order(db, session)
    await turn(db, session)

    assert await order(db, session) is None
    assert len(await lines(db)) == 1
    assert (await row_of(db, session)).seconds > 3600

    await turn(db, session, MESSAGES)
    claim = await ordered(db, session)
    assert (claim.action["first"], claim.action["last"]) == (1, MESSAGES + 4)
    assert "line" not in claim.action


async def test_another_session_of_the_character_is_not_kept_waiting(db: Database) -> None:
    session = await quiet(db)
    await order(db, session)

    await new_session(db)

    assert (await row_of(db, session)).due
    claim = await ordered(db, session)
    assert "line" not in claim.action


async def test_lines_are_gathered(db: Database) -> None:
    await order(db, await quiet(db))

    assert await batches.make(db, MODEL, gather=60.0) is None
    await order(db, await quiet(db))
    assert await batches.make(db, MODEL, gather=60.0, lines=2) is not None
    assert await batches.make(db, MODEL, gather=0.0) is None
    assert len({line["batch_id"] for line in await lines(db)}) == 1


async def test_processes_at_once_make_one_batch_and_one_takes_it(db: Database) -> None:
    for _ in range(3):
        await order(db, await quiet(db))

    found = await asyncio.gather(*(batches.make(db, MODEL, gather=0.0) for _ in range(5)))
    taken = await asyncio.gather(*(batches.take(db) for _ in range(5)))

    assert sum(one is not None for one in found) == 1
    assert sum(one is not None for one in taken) == 1
    assert len((await dump(db))["consolidation_batches"]) == 1


async def test_an_answer_becomes_a_task_and_is_paid_once(db: Database) -> None:
    session = await quiet(db)
    assert await order(db, session) is None
    batch = await made(db)
    (line,) = await batches.lines(db, batch)
    assert (line.first, line.last, line.known) == (1, 2, None)
    known = Remembered([KnownMemory(uuid4(), "fact", "The user sails.")], "They met.", 0)
    assert await batches.know(db, line, known, 9)

    await asyncio.gather(
        *(batches.answer(db, batch, line.id, "{}", replace(PAID, output=n)) for n in range(4))
    )

    assert (await row_of(db, session)).due
    claim = await ordered(db, session)
    assert claim.action["line"] == str(line.id)
    assert await batches.read(db, ME, line.id) == batches.Answered(known, "{}")
    assert await batches.read(db, "other", line.id) is None
    (paid,) = (await dump(db))["usage"]
    assert (paid["user_id"], paid["usd"], paid["agent"]) == (ME, 2, "memory-keeper")
    assert (paid["session_id"], paid["task_id"]) == (str(claim.fence.session_id), str(line.id))
    assert sum(row["total"] for row in (await dump(db))["spending"]) == 2
    await end(db, claim)
    assert (await row_of(db, session)).never


async def test_an_answer_is_used_once(db: Database) -> None:
    session = await quiet(db)
    await answered(db, session)
    first = await ordered(db, session)
    assert "line" in first.action
    await finish(db, first)  # it kept nothing

    second = await ordered(db, session)

    assert "line" not in second.action


async def test_an_answer_is_used_though_nothing_is_left(db: Database) -> None:
    """It was paid for; a call that it should need after all is not made."""
    spent = BudgetRules(per_user=Budget(PAID.usd or Decimal(0)))
    session = await quiet(db)
    line = await answered(db, session)

    made = await order(db, session, rules=spent)

    assert made is not None
    claim = await claims.claim(db, made.session_id, lease_seconds=LEASE, history=100, rules=spent)
    assert claim is not None
    assert (claim.action["line"], claim.left_usd) == (str(line), Decimal(0))
    await finish(db, claim)  # it kept nothing
    assert await order(db, session, rules=spent) is None


async def test_a_line_without_an_answer_is_read_at_once(db: Database) -> None:
    session = await quiet(db)
    await answered(db, session, None)

    assert (await row_of(db, session)).due
    assert "line" not in (await ordered(db, session)).action


async def test_the_end_of_a_batch_gives_back_what_has_no_answer(db: Database) -> None:
    first, second = await quiet(db), await quiet(db)
    for session in (first, second):
        await order(db, session)
    batch = await made(db)
    one, _ = await batches.lines(db, batch)
    await batches.know(db, one, NOTHING, 9)
    await batches.answer(db, batch, one.id, "{}", None)

    assert await batches.end(db, batch) == 1
    assert await batches.end(db, batch) == 0

    assert await batches.take(db) is None
    with_answers = []
    for session in (first, second):
        claim = await ordered(db, session)
        with_answers.append("line" in claim.action)
        await end(db, claim)
    assert sorted(with_answers) == [False, True]


async def test_what_was_read_meanwhile_is_not_read_again(db: Database) -> None:
    session = await quiet(db)
    await order(db, session)
    batch = await made(db)
    (line,) = await batches.lines(db, batch)
    await turn(db, session, MESSAGES)
    await end(db, await ordered(db, session))

    await batches.answer(db, batch, line.id, "{}", PAID)

    assert (await row_of(db, session)).never
    assert len((await dump(db))["usage"]) == 1
    assert await order(db, session) is None


async def test_messages_that_were_taken_back_are_not_learned_from(db: Database) -> None:
    session = await quiet(db)
    await answered(db, session)
    await db.run(text("update sessions set head_message = null where id = :s"), {"s": session})
    await turn(db, session)

    claim = await ordered(db, session)

    assert "line" not in claim.action
    assert claim.action["last"] == 4


async def test_the_answer_for_someone_who_is_gone_is_paid_by_nobody(db: Database) -> None:
    session = await quiet(db)
    await order(db, session)
    batch = await made(db)
    (line,) = await batches.lines(db, batch)
    await db.run(text("delete from consolidation_lines"))

    for _ in range(2):
        await batches.answer(db, batch, line.id, "canary", PAID)

    (paid,) = (await dump(db))["usage"]
    assert paid["user_id"].startswith("erased-")
    assert "canary" not in str(await dump(db))
    assert not await batches.know(db, line, NOTHING, 9)


async def test_lines_go_with_their_session(db: Database) -> None:
    session = await quiet(db)
    await order(db, session)

    await sessions.delete(db, ME, session)

    assert await lines(db) == []


async def test_old_ones_are_deleted(db: Database) -> None:
    await order(db, await quiet(db))
    await made(db)
    await order(db, await quiet(db))

    assert await batches.prune(db) == 0
    assert await batches.prune(db, timedelta(0)) == 2
    assert await lines(db) == []


async def test_the_longer_it_takes_the_less_it_is_asked_after(db: Database) -> None:
    await order(db, await quiet(db))
    batch = await made(db)
    for age, seconds in (("1 minute", 60), ("1 hour", 360), ("20 hours", 900)):
        before = await now(db)
        made_at = f"clock_timestamp() - interval '{age}'"
        await db.run(text(f"update consolidation_batches set made_at = {made_at}"))
        await batches.later(db, batch, pause=60.0)
        after = await now(db)
        row = await db.row(text("select next_at from consolidation_batches"))
        assert row is not None
        # It is older by what has passed since then, of which a tenth counts.
        asked_at = row.next_at - timedelta(seconds=seconds)
        assert before <= asked_at <= after + (after - before) / 10
