"""Retries that wait, sessions in quarantine, and attempts that do not count."""

import asyncio
from dataclasses import replace
from uuid import UUID

import pytest
from sqlalchemy import create_engine, text

from shared.migrate import _alone
from shared.records import Claim, Step
from shared.store import cancels, claims, leases, quarantine, sessions, sweeps
from shared.store.database import Database, driver_url
from tests.shared.invariants import broken
from tests.shared.sessions import LEASE, ME, claimed, completed, finish, new_session, say

STEP = Step(0, "model", "gpt", "pure", "abc", "done", {"text": "hello"})
CLOCK = text(
    """
    update sessions set
        lease_until = lease_until - make_interval(secs => :n),
        ready_at = ready_at - make_interval(secs => :n),
        hint_at = hint_at - make_interval(secs => :n)
    where id = :s
    """
)


async def passes(db: Database, session: UUID, seconds: float) -> None:
    """Let so much time pass for a session."""
    await db.run(CLOCK, {"s": session, "n": seconds})


async def again(db: Database, session: UUID, after: int | None = None) -> Claim | None:
    """What a worker does at a hint."""
    return await claims.claim(
        db, session, lease_seconds=LEASE, history=9, back_off=1.0, quarantine_after=after
    )


async def alone(db: Database, back_off: float = 1.0) -> Claim | None:
    return await claims.claim_quarantined(db, lease_seconds=LEASE, history=9, back_off=back_off)


async def lost(db: Database, session: UUID, times: int) -> Claim:
    """A session whose task was claimed so often; each lease has run out, and the back-off too."""
    claim = None
    for _ in range(times):
        claim = await again(db, session)
        await passes(db, session, LEASE + claims.LONGEST_BACK_OFF + 1)
    assert claim is not None
    return claim


async def quarantined(db: Database) -> UUID:
    session = await new_session(db)
    await lost(db, session, 2)
    assert await again(db, session, after=2) is None
    return session


async def row(db: Database, session: UUID) -> tuple[bool, bool, bool, int, int]:
    """Whether it is in quarantine, leased and made to wait; claims and attempts of its head."""
    found = await db.row(
        text(
            """
            select s.quarantined, s.lease_token is not null, s.ready_at is not null,
                t.claims, t.attempts
            from sessions s left join tasks t on t.session_id = s.id and t.status = 'running'
            where s.id = :s
            """
        ),
        {"s": session},
    )
    assert found is not None
    return found[0], found[1], found[2], found[3], found[4]


# -- back-off -----------------------------------------------------------------------------------


async def test_an_attempt_waits_longer_the_more_were_lost(db: Database) -> None:
    session = await new_session(db)
    waits = []
    for _ in range(9):
        assert await again(db, session) is not None
        found = await db.row(
            text("select coalesce(extract(epoch from ready_at - lease_until), 0) from sessions")
        )
        assert found is not None
        waits.append(found[0])
        await passes(db, session, LEASE)
        if waits[-1] >= 16:  # a machine may stand still for shorter ones
            assert await again(db, session) is None
            assert await sweeps.sweep(db) == []
        await passes(db, session, float(waits[-1]))

    assert waits == [0, 0, 1, 2, 4, 8, 16, 30, 30]


async def test_what_waits_is_swept_when_its_time_has_come(db: Database) -> None:
    session = await new_session(db)
    await lost(db, session, 7)
    assert await again(db, session) is not None
    await passes(db, session, LEASE + claims.LONGEST_BACK_OFF / 2)
    assert await sweeps.sweep(db) == []
    await passes(db, session, claims.LONGEST_BACK_OFF / 2)

    assert await sweeps.sweep(db) == [session]


async def test_a_finished_step_ends_the_waiting(db: Database) -> None:
    session = await new_session(db)
    await lost(db, session, 2)
    claim = await again(db, session)
    assert claim is not None
    begun = replace(STEP, status="started")
    await leases.write(db, claim, [], [begun], lease_seconds=LEASE)
    assert (await row(db, session))[2] is True
    await leases.write(db, claim, [], [STEP], lease_seconds=LEASE)
    assert (await row(db, session))[2] is False
    await passes(db, session, LEASE)

    claim = await again(db, session)
    assert claim is not None
    assert claim.attempts == 1


@pytest.mark.parametrize("how", ["end", "release"])
async def test_an_end_and_a_hand_over_end_the_waiting(db: Database, how: str) -> None:
    session = await new_session(db)
    await say(db, session)
    await lost(db, session, 3)
    claim = await again(db, session)
    assert claim is not None
    if how == "end":
        await leases.end(db, claim, completed())
    else:
        await leases.release(db, claim.fence)

    claim = await again(db, session)
    assert claim is not None
    assert claim.attempts == (1 if how == "end" else 4)
    assert await broken(db) == []


# -- quarantine ---------------------------------------------------------------------------------


async def test_a_task_that_lost_too_many_attempts_is_not_taken_but_put_apart(db: Database) -> None:
    session = await new_session(db)
    await lost(db, session, 2)

    assert await again(db, session, after=2) is None

    assert await row(db, session) == (True, False, False, 2, 2)
    await passes(db, session, 60)
    assert await again(db, session) is None
    assert await sweeps.sweep(db) == []
    assert await broken(db) == []


async def test_finished_steps_keep_a_task_out_of_quarantine(db: Database) -> None:
    session = await new_session(db)
    for no in range(4):
        claim = await again(db, session, after=1)
        assert claim is not None
        await leases.write(db, claim, [], [replace(STEP, no=no)], lease_seconds=LEASE)
        await passes(db, session, LEASE)


async def test_a_cancelled_task_needs_no_quarantine(db: Database) -> None:
    session = await new_session(db)
    claim = await lost(db, session, 2)
    await cancels.cancel_task(db, ME, claim.task_id)

    found = await again(db, session, after=2)
    assert found is not None
    assert found.cancel_requested


async def test_what_is_in_quarantine_runs_alone_to_its_end_and_the_session_goes_on(
    db: Database,
) -> None:
    session = await quarantined(db)
    after = await say(db, session)
    claim = await alone(db)
    assert claim is not None
    assert (claim.fence.session_id, claim.attempt, claim.attempts) == (session, 3, 3)
    assert await row(db, session) == (True, True, True, 3, 3)

    await finish(db, claim)

    assert (await row(db, session))[:3] == (False, False, False)
    assert (await claimed(db, session)).task_id == after
    assert await broken(db) == []


async def test_one_session_at_a_time_is_out_of_quarantine(db: Database) -> None:
    waiting = [await quarantined(db) for _ in range(5)]
    order = []
    for _ in waiting:
        found = await asyncio.gather(*(alone(db) for _ in range(6)))
        (claim,) = (one for one in found if one is not None)
        assert await alone(db) is None
        order.append(claim.fence.session_id)
        await finish(db, claim)

    assert order == waiting
    assert await alone(db) is None


async def test_one_that_is_lost_in_quarantine_waits_and_lets_others_go_first(db: Database) -> None:
    first, second = await quarantined(db), await quarantined(db)
    assert await alone(db, back_off=20) is not None
    await passes(db, first, LEASE)

    claim = await alone(db)
    assert claim is not None
    assert claim.fence.session_id == second
    await finish(db, claim)
    assert await alone(db) is None
    await passes(db, first, 20)
    claim = await alone(db)
    assert claim is not None
    assert (claim.fence.session_id, claim.attempts) == (first, 4)


async def test_a_session_is_reserved_for_one_process(db: Database) -> None:
    assert await quarantine.reserve(db, seconds=60) is None
    first, second = await quarantined(db), await quarantined(db)
    found = await asyncio.gather(*(quarantine.reserve(db, seconds=60) for _ in range(6)))
    assert set(found) - {None} <= {first, second}
    assert first in found

    assert await quarantine.reserve(db, seconds=60) is None
    for session in (first, second):
        await passes(db, session, 60)
    claim = await alone(db)
    assert claim is not None
    assert await quarantine.reserve(db, seconds=60) is None
    await finish(db, claim)
    assert await quarantine.reserve(db, seconds=60) is not None
    assert await quarantine.count(db) == 1


async def test_the_quarantine_goes_on_while_a_migration_runs(
    db: Database, postgres_url: str
) -> None:
    session = await quarantined(db)
    engine = create_engine(driver_url(postgres_url))
    with _alone(engine):
        assert await quarantine.reserve(db, seconds=0) == session
        claim = await alone(db)
    engine.dispose()

    assert claim is not None
    assert claim.fence.session_id == session


async def test_a_deleted_session_leaves_the_quarantine(db: Database) -> None:
    session = await quarantined(db)
    await sessions.delete(db, ME, session)

    assert await quarantine.count(db) == 0
    assert await quarantine.reserve(db, seconds=60) is None
    assert await alone(db) is None


# -- attempts that do not count ------------------------------------------------------------------


async def test_an_attempt_that_its_worker_outlived_does_not_count(db: Database) -> None:
    session = await new_session(db)
    frozen = await lost(db, session, 1)
    successor = await lost(db, session, 1)
    assert (frozen.attempts, successor.attempts) == (1, 2)

    assert await leases.forgive(db, frozen)
    assert await leases.forgive(db, successor)
    assert not await leases.forgive(db, successor)

    claim = await again(db, session)
    assert claim is not None
    assert (claim.attempt, claim.attempts) == (3, 1)


async def test_nothing_is_taken_back_that_was_not_counted(db: Database) -> None:
    session = await new_session(db)
    zombie = await claimed(db, session)
    await leases.write(db, zombie, [], [STEP], lease_seconds=LEASE)
    await passes(db, session, LEASE)
    claim = await claimed(db, session)
    assert not await leases.forgive(db, zombie)
    await finish(db, claim)

    assert not await leases.forgive(db, claim)


async def test_who_takes_back_for_ever_is_not_believed_for_ever(db: Database) -> None:
    session = await new_session(db)
    forgiven = [
        await leases.forgive(db, await lost(db, session, 1))
        for _ in range(leases.MOST_FORGIVEN + 2)
    ]

    assert forgiven == [True] * leases.MOST_FORGIVEN + [False] * 2
    assert (await row(db, session))[3:] == (leases.MOST_FORGIVEN + 2, 2)
