"""A fenced write whose answer was lost: sent again, it takes effect once."""

import asyncio
from uuid import UUID

import psycopg
import pytest

from shared.errors import LeaseLost, StoreUnavailable
from shared.records import Claim, Event, NewEvent, Outcome, Step
from shared.store import leases, outcomes, sessions
from shared.store.database import Database
from shared.store.outcomes import Progress
from tests.shared.invariants import broken
from tests.shared.locks import lock_waiters
from tests.shared.sessions import LEASE, ME, claimed, completed, new_session, say
from tests.wire import When, Wire

EVENTS = [NewEvent("turn_start", {}), NewEvent("turn_end", {})]
STEPS = [Step(0, "model", "m", "pure", "hash", "done", {"no": 0})]


async def log_of(db: Database, session: UUID) -> list[Event]:
    return await sessions.events_after(db, ME, session, after=0, limit=100)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_write_whose_answer_was_lost(
    db: Database, cut_db: Database, wire: Wire, when: When
) -> None:
    claim = await claimed(db, await new_session(db))
    progress = Progress()
    first = await leases.write(cut_db, claim, EVENTS[:1], lease_seconds=LEASE, writes=0)
    progress.count(EVENTS[:1], first)
    wire.cut(when, "/* write */")

    with pytest.raises(StoreUnavailable):
        await leases.write(cut_db, claim, EVENTS, STEPS, lease_seconds=LEASE, writes=1)
    await say(db, claim.fence.session_id)  # the gateway's events are not the lease's
    found = await outcomes.of_write(db, claim, progress)

    if when == "before":
        assert found is None
        found = await leases.write(db, claim, EVENTS, STEPS, lease_seconds=LEASE, writes=1)
    else:
        with pytest.raises(LeaseLost):
            await leases.write(db, claim, EVENTS, STEPS, lease_seconds=LEASE, writes=1)
    assert found is not None
    log = await log_of(db, claim.fence.session_id)
    assert [e.seq for e in log if e.at == found.at] == [found.first_seq, found.first_seq + 1]
    assert found.open_tasks == 2
    assert [e.type for e in log].count("turn_start") == 2
    assert await broken(db) == []


async def test_a_write_of_steps_alone(db: Database, cut_db: Database, wire: Wire) -> None:
    claim = await claimed(db, await new_session(db))
    wire.cut("after", "/* write */")
    with pytest.raises(StoreUnavailable):
        await leases.write(cut_db, claim, [], STEPS, lease_seconds=LEASE, writes=0)

    found = await outcomes.of_write(db, claim, Progress())

    assert found is not None
    assert (found.first_seq, found.open_tasks) == (2, 1)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_end_whose_answer_was_lost(
    db: Database, cut_db: Database, wire: Wire, when: When
) -> None:
    session = await new_session(db)
    await say(db, session)
    claim = await claimed(db, session)
    wire.cut(when, "/* end */")
    with pytest.raises(StoreUnavailable):
        await leases.end(cut_db, claim, completed(), writes=0)

    found = await outcomes.of_end(db, claim, Progress())

    if when == "before":
        assert found is None
        found = await leases.end(db, claim, completed(), writes=0)
    else:
        other = await claimed(db, session)  # another worker goes on with the next task
        with pytest.raises(LeaseLost):
            await leases.end(db, claim, completed(), writes=0)
        again = await outcomes.of_end(db, claim, Progress())
        await leases.end(db, other, completed())
        assert again == found
    assert found is not None
    ended = [e for e in await log_of(db, session) if e.type == "task_completed"]
    assert (ended[0].seq, ended[0].at) == (found.first_seq, found.at)
    assert found.open_tasks == 1
    assert await broken(db) == []


async def test_two_copies_that_arrive_together_are_one(
    db: Database, watcher: psycopg.AsyncConnection[object]
) -> None:
    session = await new_session(db)
    claim = await claimed(db, session)

    def copy() -> asyncio.Task[object]:
        return asyncio.create_task(leases.write(db, claim, EVENTS, lease_seconds=LEASE, writes=0))

    async with watcher.transaction():
        await watcher.execute("select from sessions for update")
        copies = [copy() for _ in range(4)]
        await lock_waiters(watcher, len(copies))
    results = await asyncio.gather(*copies, return_exceptions=True)

    assert sorted(type(one).__name__ for one in results) == ["LeaseLost"] * 3 + ["Written"]
    assert [e.type for e in await log_of(db, session)] == ["task_queued", "turn_start", "turn_end"]


async def test_whoever_lost_the_lease_finds_no_outcome(db: Database) -> None:
    session = await new_session(db)
    claim = await claimed(db, session, lease=-1)
    await leases.write(db, claim, EVENTS, lease_seconds=-1, writes=0)
    other = await claimed(db, session)

    async def nothing_found(of: Claim) -> bool:
        found = [await outcomes.of_write(db, of, Progress(1, 3))]
        return [*found, await outcomes.of_end(db, of, Progress(1, 3))] == [None, None]

    assert await nothing_found(claim)
    await leases.write(db, other, EVENTS, lease_seconds=LEASE, writes=0)
    await leases.end(db, other, completed(), writes=1)
    assert await nothing_found(claim)
    await sessions.delete(db, ME, session)
    assert await nothing_found(other)


async def test_an_end_after_the_write_that_it_does_not_know_of_is_refused(db: Database) -> None:
    claim = await claimed(db, await new_session(db))
    await leases.write(db, claim, EVENTS, lease_seconds=LEASE, writes=0)

    with pytest.raises(LeaseLost):
        await leases.end(db, claim, completed(), writes=0)

    outcome = Outcome("completed", [NewEvent("task_completed", {})])
    assert (await leases.end(db, claim, outcome, writes=1)).open_tasks == 0
