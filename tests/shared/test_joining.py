"""Tasks that join another one, in the tables: taken once, under the fence, ended together."""

import asyncio
from dataclasses import replace
from uuid import UUID

import pytest
from sqlalchemy import text

from shared.errors import LeaseLost
from shared.records import MAX_SAY, Claim, Fence, Joined, NewAction, NewEvent, OnBusy
from shared.store import actions, cancels, leases, sessions
from shared.store.database import Database
from tests.shared.invariants import broken
from tests.shared.sessions import ME, claimed, completed, finish, new_session
from tests.shared.test_leases import lapse


async def waiting(db: Database, session: UUID, said: str, on_busy: OnBusy) -> UUID:
    action = NewAction({"type": "say", "text": said}, on_busy)
    return (await actions.accept(db, ME, session, action)).task_id


async def running(db: Database, session: UUID) -> Claim:
    """A session that runs a `say`."""
    await waiting(db, session, "first", "enqueue")
    return await claimed(db, session)


@pytest.fixture
async def session(db: Database) -> UUID:
    return await new_session(db, started=True)


async def test_only_what_asked_for_it_joins(db: Database, session: UUID) -> None:
    claim = await running(db, session)
    steer = await waiting(db, session, "a", "steer")
    await waiting(db, session, "b", "enqueue")
    follow_up = await waiting(db, session, "c", "follow_up")
    await actions.accept(db, ME, session, NewAction({"type": "continue"}, "steer"))

    assert await leases.join(db, claim, ["steer"], 1) == [Joined(steer, "a", 1)]
    assert await leases.join(db, claim, ["steer"], 1) == [Joined(steer, "a", 1)]
    assert await leases.join(db, claim, ["steer"], 2) == []
    assert await leases.join(db, claim, ["steer", "follow_up"], 3) == [Joined(follow_up, "c", 3)]


async def test_what_came_before_the_task_does_not_join_it(db: Database, session: UUID) -> None:
    claim = await running(db, session)
    await waiting(db, session, "early", "steer")
    interrupt = await waiting(db, session, "now", "interrupt")
    await finish(db, claim)
    claim = await claimed(db, session)

    assert claim.task_id == interrupt
    assert await leases.join(db, claim, ["steer"], 1) == []


async def test_joined_tasks_end_in_the_run_s_transaction(db: Database, session: UUID) -> None:
    claim = await running(db, session)
    steer = await waiting(db, session, "a", "steer")
    left = await waiting(db, session, "b", "steer")
    await leases.join(db, claim, ["steer"], 1)
    events = [
        NewEvent("task_completed", {"result": {}, "usage": {}}),
        NewEvent("task_completed", {"result": {"joined": str(claim.task_id)}}, steer),
    ]
    outcome = replace(completed(), events=events, result={"text": "x"}, joined=[steer])
    written = await leases.end(db, claim, outcome)

    assert written.open_tasks == 1
    task = await actions.get_task(db, ME, steer)
    assert (task.status, task.result) == (
        "completed",
        {"text": "x", "joined": str(claim.task_id)},
    )
    log = await sessions.events_after(db, ME, session, after=written.first_seq - 1, limit=9)
    assert [event.task_id for event in log] == [claim.task_id, steer]
    assert await broken(db) == []
    # What was taken in and not answered has its own turn.
    later = await claimed(db, session)
    assert (later.task_id, later.joined) == (left, ())


async def test_a_worker_without_the_lease_takes_nothing(db: Database, session: UUID) -> None:
    zombie = await running(db, session)
    steer = await waiting(db, session, "a", "steer")
    await lapse(db, session)
    claim = await claimed(db, session)
    for fence in (zombie.fence, Fence(session, claim.fence.epoch, UUID(int=0))):
        with pytest.raises(LeaseLost):
            await leases.join(db, replace(zombie, fence=fence), ["steer"], 1)

    assert [one.task_id for one in await leases.join(db, claim, ["steer"], 1)] == [steer]


async def test_a_takeover_finds_what_joined(db: Database, session: UUID) -> None:
    first = await running(db, session)
    steer = await waiting(db, session, "a", "steer")
    await leases.join(db, first, ["steer"], 4)
    await lapse(db, session)

    assert (await claimed(db, session)).joined == [Joined(steer, "a", 4)]


async def test_a_cancel_and_a_join_at_once_agree(db: Database, session: UUID) -> None:
    claim = await running(db, session)
    for no in range(1, 11):
        steer = await waiting(db, session, "a", "steer")
        joined, (_, events) = await asyncio.gather(
            leases.join(db, claim, ["steer"], no), cancels.cancel_task(db, ME, steer)
        )
        status = (await actions.get_task(db, ME, steer)).status
        assert (status, len(events)) == (("queued", 0) if joined else ("cancelled", 1))
    assert await broken(db) == []


async def test_collected_says_are_one_action(db: Database, session: UUID) -> None:
    claim = await running(db, session)
    first, *others = [await waiting(db, session, said, "collect") for said in "abc"]
    other = await waiting(db, session, "d", "enqueue")
    late = await waiting(db, session, "e", "collect")
    await finish(db, claim)
    claim = await claimed(db, session)

    assert (claim.task_id, claim.action["text"]) == (first, "a\n\nb\n\nc")
    assert [(one.task_id, one.no) for one in claim.joined] == [(task, 0) for task in others]
    # A later attempt has the same words, whatever has come meanwhile.
    await lapse(db, session)
    again = await claimed(db, session)
    assert (again.action, again.joined) == (claim.action, claim.joined)
    await leases.end(db, again, replace(completed(), joined=others))
    claim = await claimed(db, session)
    assert (claim.task_id, claim.action["text"]) == (other, "d\n\ne")
    assert [one.task_id for one in claim.joined] == [late]


async def test_collecting_stops_at_the_length_of_one_say(db: Database, session: UUID) -> None:
    claim = await running(db, session)
    long = "x" * (MAX_SAY // 2)
    for _ in range(3):
        await waiting(db, session, long, "collect")
    await finish(db, claim)
    claim = await claimed(db, session)

    assert len(claim.action["text"]) <= MAX_SAY
    assert claim.joined == []


async def test_the_tables_stay_sound_after_a_cancelled_collect(db: Database, session: UUID) -> None:
    claim = await running(db, session)
    tasks = [await waiting(db, session, said, "collect") for said in "abc"]
    await cancels.cancel_task(db, ME, tasks[1])
    await finish(db, claim)
    claim = await claimed(db, session)

    assert claim.action["text"] == "a\n\nc"
    await leases.end(db, claim, replace(completed(), joined=[tasks[2]]))
    row = await db.row(text("select open_tasks from sessions where id = :s"), {"s": session})
    assert row is not None
    assert row[0] == 0
