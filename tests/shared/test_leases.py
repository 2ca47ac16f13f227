"""Leases: who may write, what a claim finds, and what happens to those who lost it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from shared.errors import LeaseLost, StoreUnavailable
from shared.records import (
    Claim,
    Event,
    Fence,
    KnownBranch,
    Message,
    NewAction,
    NewEvent,
    NewSession,
    Outcome,
    Step,
    Written,
)
from shared.settings import load_settings
from shared.store import actions, cancels, characters, claims, leases, sessions, sweeps
from shared.store.connection import _ON_CONNECT
from shared.store.database import Database
from shared.store.locks import SWEEP_LOCK
from tests.shared.invariants import broken
from tests.shared.locks import lock_waiters
from tests.shared.sessions import LEASE, ME, claimed, completed, finish, new_session, say
from tests.shared.tables import dump
from tests.shared.times import now
from tests.waiting import within

AN_HOUR = 3600.0
STEP = Step(0, "model", "gpt", "pure", "abc", "done", {"text": "hello"})


async def lapse(db: Database, session: UUID) -> None:
    """Make the lease run out now, as if the clock had jumped."""
    await db.run(
        text("update sessions set lease_until = clock_timestamp() - interval '1 s' where id = :s"),
        {"s": session},
    )


async def taken_over(db: Database, session: UUID) -> tuple[Claim, Claim]:
    """A worker that does not know that it lost the lease, and the one that has it."""
    zombie = await claimed(db, session)
    await leases.write(
        db, zombie, [NewEvent("task_started", {"attempt": 1})], [STEP], lease_seconds=LEASE
    )
    await lapse(db, session)
    return zombie, await claimed(db, session)


async def seconds_left(db: Database, session: UUID) -> float | None:
    row = await db.row(
        text(
            "select extract(epoch from lease_until - clock_timestamp()) from sessions where id = :s"
        ),
        {"s": session},
    )
    assert row is not None
    return None if row[0] is None else float(row[0])


async def test_what_a_first_claim_finds(db: Database) -> None:
    character = await characters.create(db, ME, "companion", "Ember", "Kind.")
    new = NewSession(
        "companion",
        story="cave",
        story_hash="abc",
        character_id=character.id,
        metadata={"lang": "en"},
    )
    session, task, _ = await sessions.create(db, ME, new, "unused")

    claim = await claimed(db, session.id, lease=300)

    assert claim == Claim(
        fence=Fence(session.id, 1, claim.fence.token),
        user_id=ME,
        agent="companion",
        story="cave",
        story_hash="abc",
        character={
            "id": str(character.id),
            "name": "Ember",
            "soul": "Kind.",
            "soul_version": 1,
        },
        metadata={"lang": "en"},
        state={},
        view={"state": {}, "choices": []},
        next_message=1,
        head_message=None,
        task_id=task,
        task_seq=1,
        action={"type": "start"},
        attempt=1,
        attempts=1,
        cancel_requested=False,
        messages=[],
    )
    left = await seconds_left(db, session.id)
    assert left is not None
    assert 200 < left <= 300
    assert (await sessions.get(db, ME, session.id)).status == "running"


async def test_what_a_takeover_finds(db: Database) -> None:
    session = await new_session(db)
    task = await say(db, session)
    await finish(db, await claimed(db, session))
    first = await claimed(db, session)
    steps = [
        STEP,
        Step(1, "tool", "roll", "state", "def", "started"),
        Step(2, "tool", "mail", "external", "ghi", "unknown", {"why": "no key"}),
    ]
    started = NewEvent("task_started", {"attempt": 1})
    begun = NewEvent("agent_start", {})
    one = await leases.write(db, first, [started, begun], steps, lease_seconds=LEASE)
    other = await leases.write(db, first, [NewEvent("turn_start", {})], lease_seconds=LEASE)
    await lapse(db, session)

    second = await claimed(db, session)

    assert second == replace(
        first,
        fence=Fence(session, 3, second.fence.token),
        attempt=2,
        attempts=1,
        steps=steps,
        events=[
            Event(4, "task_started", task, one.at, {"attempt": 1}),
            Event(5, "agent_start", task, one.at, {}),
            Event(6, "turn_start", task, other.at, {}),
        ],
    )
    assert second.fence.token != first.fence.token
    assert await broken(db) == []


async def test_nothing_to_claim(db: Database) -> None:
    session = await new_session(db, started=True)
    before = await dump(db)

    assert await claims.claim(db, session, lease_seconds=3, history=1) is None
    assert await claims.claim(db, uuid4(), lease_seconds=3, history=1) is None
    assert await dump(db) == before


async def test_one_of_twenty_claimers_gets_the_session(db: Database) -> None:
    for _ in range(5):
        session = await new_session(db)

        found = await asyncio.gather(
            *(claims.claim(db, session, lease_seconds=LEASE, history=1) for _ in range(20))
        )

        (claim,) = [one for one in found if one is not None]
        assert (claim.fence.epoch, claim.attempt) == (1, 1)
        assert await broken(db) == []


async def test_one_of_twenty_claimers_takes_over(db: Database) -> None:
    session = await new_session(db)
    await claimed(db, session)
    await lapse(db, session)

    found = await asyncio.gather(
        *(claims.claim(db, session, lease_seconds=LEASE, history=1) for _ in range(20))
    )

    (claim,) = [one for one in found if one is not None]
    assert (claim.fence.epoch, claim.attempt) == (2, 2)


async def test_state_is_read_under_the_lease(
    db: Database, watcher: psycopg.AsyncConnection[Any]
) -> None:
    session = await new_session(db, started=True)
    await say(db, session)
    async with watcher.transaction():
        await watcher.execute(
            """
            update sessions set state = '{"door": "open"}', view = '{"choices": [1]}',
                lease_until = null where id = %s
            """,
            (session,),
        )
        claiming = asyncio.create_task(claimed(db, session))
        await lock_waiters(watcher)

    claim = await claiming

    assert (claim.state, claim.view) == ({"door": "open"}, {"choices": [1]})


async def test_a_task_accepted_while_a_claim_waits_is_seen(
    db: Database, watcher: psycopg.AsyncConnection[Any]
) -> None:
    session = await new_session(db)
    async with db.transaction() as connection:
        accepted = await actions.accept_within(
            connection, ME, session, NewAction({"type": "say", "text": "stop"}, "interrupt")
        )
        claiming = asyncio.create_task(claimed(db, session))
        await lock_waiters(watcher)

    assert (await claiming).task_id == accepted.task_id


async def test_tasks_run_in_their_order(db: Database) -> None:
    session = await new_session(db)
    tasks = [await say(db, session, str(number)) for number in range(3)]
    order = []

    while claim := await claims.claim(db, session, lease_seconds=9, history=1):
        order.append((claim.task_id, claim.task_seq, claim.action.get("text")))
        await finish(db, claim)

    assert order[1:] == [(tasks[n], n + 2, str(n)) for n in range(3)]


async def test_a_task_that_runs_is_not_overtaken(db: Database) -> None:
    session = await new_session(db)
    first = await claimed(db, session)
    await actions.accept(db, ME, session, NewAction({"type": "say"}, "interrupt"))
    await lapse(db, session)

    assert (await claimed(db, session)).task_id == first.task_id


async def test_written_events_and_steps(db: Database) -> None:
    session = await new_session(db)
    claim = await claimed(db, session, lease=1)
    begun = replace(STEP, status="started", output=None)

    written = await leases.write(
        db,
        claim,
        [NewEvent("task_started", {"attempt": 1}), NewEvent("turn_start", {"a\0": "\ud800"})],
        [begun, replace(begun, no=1, name="\ud83d" + "\ude00")],
        lease_seconds=300,
    )
    again = await leases.write(db, claim, [], [STEP], lease_seconds=300)

    left = await seconds_left(db, session)
    assert left is not None
    assert 200 < left <= 300
    assert written == Written(first_seq=2, at=written.at, open_tasks=1)
    assert again == Written(first_seq=4, at=again.at, open_tasks=1)
    assert await sessions.events_after(db, ME, session, after=1, limit=9) == [
        Event(2, "task_started", claim.task_id, written.at, {"attempt": 1}),
        Event(3, "turn_start", claim.task_id, written.at, {"a\ufffd": "\ufffd"}),
    ]
    await lapse(db, session)
    assert (await claimed(db, session)).steps == [
        STEP,
        replace(begun, no=1, name="\U0001f600"),
    ]
    assert await broken(db) == []


async def test_an_end_changes_all_at_once(db: Database) -> None:
    session = await new_session(db)
    opening = await claimed(db, session)
    await leases.end(
        db,
        opening,
        Outcome("completed", [NewEvent("task_completed", {})], [{"role": "assistant", "n": 1}]),
    )
    task, waiting = await say(db, session), await say(db, session)
    claim = await claimed(db, session)

    written = await leases.end(
        db,
        claim,
        Outcome(
            "completed",
            [NewEvent("state_changed", {"n": 1}), NewEvent("task_completed", {"n": 2})],
            messages=[{"role": "user", "n": 2}, {"role": "assistant", "n": 3}],
            steps=[STEP],
            state={"door": "open"},
            view={"state": {"door": "open"}, "choices": []},
            result={"text": "hello"},
            usage={"tokens": 7},
        ),
    )

    assert written == Written(first_seq=5, at=written.at, open_tasks=1)
    assert await sessions.events_after(db, ME, session, after=4, limit=9) == [
        Event(5, "state_changed", task, written.at, {"n": 1}),
        Event(6, "task_completed", task, written.at, {"n": 2}),
    ]
    found = await sessions.messages(db, ME, session, limit=9)
    assert found == [
        Message(1, None, opening.task_id, {"role": "assistant", "n": 1}, found[0].created_at),
        Message(2, 1, task, {"role": "user", "n": 2}, written.at),
        Message(3, 2, task, {"role": "assistant", "n": 3}, written.at),
    ]
    ended = await actions.get_task(db, ME, task)
    assert (ended.status, ended.result, ended.error, ended.usage, ended.finished_at) == (
        "completed",
        {"text": "hello"},
        None,
        {"tokens": 7},
        written.at,
    )
    assert await seconds_left(db, session) is None
    after = await claimed(db, session)
    assert (after.task_id, after.state, after.view, after.messages) == (
        waiting,
        {"door": "open"},
        {"state": {"door": "open"}, "choices": []},
        [one.message for one in found],
    )
    assert (after.next_message, after.head_message) == (4, 3)
    assert await broken(db) == []


async def test_an_end_without_messages_or_state_keeps_those_of_before(db: Database) -> None:
    session = await new_session(db)
    outcome = replace(completed(), messages=[{"n": 1}], state={"a": 1}, view={"b": 2})
    await leases.end(db, await claimed(db, session), outcome)
    await say(db, session)
    await leases.end(
        db,
        await claimed(db, session),
        Outcome("failed", [NewEvent("task_failed", {})], error={"code": "x"}),
    )
    await say(db, session)

    claim = await claimed(db, session)

    assert (claim.state, claim.view, claim.messages, claim.head_message) == (
        {"a": 1},
        {"b": 2},
        [{"n": 1}],
        1,
    )


async def test_a_claim_loads_the_newest_messages(db: Database) -> None:
    session = await new_session(db)
    outcome = replace(completed(), messages=[{"n": number} for number in range(6)])
    await leases.end(db, await claimed(db, session), outcome)
    await say(db, session)

    claim = await claims.claim(db, session, lease_seconds=9, history=3)

    assert claim is not None
    assert (claim.messages, claim.next_message, claim.head_message) == (
        [{"n": 3}, {"n": 4}, {"n": 5}],
        7,
        6,
    )


async def with_messages(db: Database, *counts: int) -> UUID:
    """A session in which one task waits, after ended ones that left so many messages each."""
    session = await new_session(db)
    for count in counts:
        outcome = replace(completed(), messages=[{"n": number} for number in range(count)])
        await leases.end(db, await claimed(db, session), outcome)
        await say(db, session)
    return session


@pytest.mark.parametrize(
    ("known", "history", "found", "after"),
    [
        (None, 9, 5, None),
        (KnownBranch(1, 5), 9, 0, 5),
        (KnownBranch(1, 3), 9, 2, 3),
        (KnownBranch(1, 3), 2, 2, 3),
        (KnownBranch(1, 2), 2, 2, None),
        (KnownBranch(1, 9), 9, 5, None),
        (KnownBranch(2, 5), 9, 5, None),
        (KnownBranch(1, 5), 0, 0, 5),
    ],
)
async def test_a_claim_reads_only_what_the_caller_does_not_know(
    db: Database, known: KnownBranch | None, history: int, found: int, after: int | None
) -> None:
    session = await with_messages(db, 3, 2)

    claim = await claims.claim(db, session, lease_seconds=9, history=history, known=known)

    assert claim is not None
    assert (len(claim.messages), claim.after, claim.head_message) == (found, after, 5)
    assert claim.generation == 1


async def test_a_caller_that_knows_another_branch_is_given_this_one(db: Database) -> None:
    session = await with_messages(db, 3, 2)
    await db.run(
        text("update messages set parent = 2 where no = 4 and session_id = :s"), {"s": session}
    )

    known = KnownBranch(1, 3)
    claim = await claims.claim(db, session, lease_seconds=9, history=9, known=known)

    assert claim is not None
    assert (len(claim.messages), claim.after) == (4, None)


async def test_a_session_without_messages_is_no_branch_of_what_is_known(db: Database) -> None:
    session = await new_session(db)

    claim = await claims.claim(db, session, lease_seconds=9, history=9, known=KnownBranch(1, 1))

    assert claim is not None
    assert (claim.messages, claim.after) == ([], None)


Attempt = Callable[[Database, Claim], Awaitable[object]]


async def _write(db: Database, claim: Claim) -> object:
    return await leases.write(
        db, claim, [NewEvent("turn_start", {})], [replace(STEP, no=9)], lease_seconds=LEASE
    )


async def _end(db: Database, claim: Claim) -> object:
    outcome = replace(completed(), messages=[{"n": 1}], state={"x": 1}, steps=[STEP])
    return await leases.end(db, claim, outcome)


async def _numbered_write(db: Database, claim: Claim) -> object:
    """As workers write: the number says nothing about whose it is, a successor counts as well."""
    return await leases.write(
        db, claim, [NewEvent("turn_start", {})], lease_seconds=LEASE, writes=0
    )


async def _numbered_end(db: Database, claim: Claim) -> object:
    return await leases.end(db, claim, completed(), writes=0)


async def _journal(db: Database, claim: Claim) -> object:
    return await leases.write(db, claim, [], [STEP], lease_seconds=LEASE)


async def _heartbeat(db: Database, claim: Claim) -> object:
    pulse = await leases.heartbeat(db, [claim.fence], lease_seconds=LEASE)
    assert pulse == leases.Pulse(frozenset(), frozenset())
    raise LeaseLost


async def _release(db: Database, claim: Claim) -> object:
    assert await leases.release(db, claim.fence) is False
    raise LeaseLost


@pytest.mark.parametrize(
    "attempt", [_write, _end, _numbered_write, _numbered_end, _journal, _heartbeat, _release]
)
async def test_a_worker_that_lost_its_lease_changes_nothing(db: Database, attempt: Attempt) -> None:
    session = await new_session(db)
    await say(db, session)
    zombie, _ = await taken_over(db, session)
    before = await dump(db)

    with pytest.raises(LeaseLost):
        await attempt(db, zombie)

    assert await dump(db) == before


@pytest.mark.parametrize("attempt", [_write, _end, _journal, _heartbeat, _release])
async def test_a_worker_that_lost_its_lease_and_the_successor_ended(
    db: Database, attempt: Attempt
) -> None:
    session = await new_session(db)
    await say(db, session)
    zombie, successor = await taken_over(db, session)
    await finish(db, successor)
    before = await dump(db)

    for loser in (zombie, successor):
        with pytest.raises(LeaseLost):
            await attempt(db, loser)

    assert await dump(db) == before


@pytest.mark.parametrize("attempt", [_write, _end, _journal, _heartbeat, _release])
async def test_neither_epoch_nor_token_alone_lets_in(db: Database, attempt: Attempt) -> None:
    session = await new_session(db)
    claim = await claimed(db, session)
    before = await dump(db)
    forged = (
        Fence(session, claim.fence.epoch, uuid4()),
        Fence(session, claim.fence.epoch - 1, claim.fence.token),
        Fence(session, claim.fence.epoch + 1, claim.fence.token),
        Fence(uuid4(), claim.fence.epoch, claim.fence.token),
    )

    for fence in forged:
        with pytest.raises(LeaseLost):
            await attempt(db, replace(claim, fence=fence))

    assert await dump(db) == before


@pytest.mark.parametrize("attempt", [_write, _end, _journal, _heartbeat, _release])
async def test_a_session_that_was_deleted_meanwhile(db: Database, attempt: Attempt) -> None:
    session = await new_session(db)
    claim = await claimed(db, session)
    await leases.write(db, claim, [NewEvent("task_started", {})], [STEP], lease_seconds=LEASE)
    await sessions.delete(db, ME, session)
    before = await dump(db)
    assert [before[table] for table in ("sessions", "tasks", "steps", "events")] == [[]] * 4

    with pytest.raises(LeaseLost):
        await attempt(db, claim)

    assert await dump(db) == before


async def test_a_lease_that_ran_out_but_was_not_taken_goes_on(db: Database) -> None:
    session = await new_session(db)
    claim = await claimed(db, session)
    await lapse(db, session)

    await _write(db, claim)

    assert await claims.claim(db, session, lease_seconds=9, history=1) is None
    await lapse(db, session)
    pulse = await leases.heartbeat(db, [claim.fence], lease_seconds=LEASE)
    assert pulse == leases.Pulse(held=frozenset({session}), cancelled=frozenset())
    assert await claims.claim(db, session, lease_seconds=9, history=1) is None


async def test_of_many_writes_and_one_takeover_at_once_all_is_in_order(db: Database) -> None:
    session = await new_session(db)
    for _ in range(5):
        claim = await claimed(db, session)
        await lapse(db, session)
        results = await asyncio.gather(
            *(
                leases.write(db, claim, [NewEvent("turn_start", {})] * 2, lease_seconds=-1)
                for _ in range(8)
            ),
            claims.claim(db, session, lease_seconds=-1, history=1),
            *(
                leases.write(db, claim, [NewEvent("turn_end", {})], lease_seconds=-1)
                for _ in range(8)
            ),
            return_exceptions=True,
        )
        assert {type(one) for one in results} <= {Written, Claim, LeaseLost}
        assert await broken(db) == []


async def test_a_task_ends_once(db: Database) -> None:
    session = await new_session(db)
    claim = await claimed(db, session)

    results = await asyncio.gather(
        *(leases.end(db, claim, completed()) for _ in range(10)), return_exceptions=True
    )

    assert sorted(type(one).__name__ for one in results) == ["LeaseLost"] * 9 + ["Written"]
    assert await broken(db) == []


async def test_a_second_terminal_event_is_refused(db: Database) -> None:
    session = await new_session(db)
    claim = await claimed(db, session)
    before = await dump(db)
    twice = Outcome("failed", [NewEvent("task_failed", {}), NewEvent("task_dead", {})])

    with pytest.raises(IntegrityError):
        await leases.end(db, claim, twice)

    assert await dump(db) == before
    await finish(db, claim)


async def test_a_second_running_task_is_refused(db: Database) -> None:
    session = await new_session(db)
    await say(db, session)
    await claimed(db, session)
    with pytest.raises(IntegrityError, match="tasks_one_running"):
        await db.run(
            text("update tasks set status = 'running' where session_id = :s"), {"s": session}
        )


async def test_attempts_are_counted_since_the_last_finished_step(db: Database) -> None:
    session = await new_session(db)
    claim = await claimed(db, session)
    counted = [(claim.attempt, claim.attempts)]

    for finished in (False, False, True, False, False, True, True, False):
        step = replace(STEP, no=len(counted), status="done" if finished else "started")
        await leases.write(db, claim, [], [step], lease_seconds=LEASE)
        await lapse(db, session)
        claim = await claimed(db, session)
        counted.append((claim.attempt, claim.attempts))

    assert counted == [(1, 1), (2, 2), (3, 3), (4, 1), (5, 2), (6, 3), (7, 1), (8, 1), (9, 2)]


async def test_the_next_task_starts_to_count_anew(db: Database) -> None:
    session = await new_session(db)
    await say(db, session)
    await claimed(db, session)
    await lapse(db, session)
    claim = await claimed(db, session)
    await leases.write(db, claim, [], [STEP], lease_seconds=LEASE)
    await finish(db, claim)

    claim = await claimed(db, session)

    assert (claim.attempt, claim.attempts) == (1, 1)


async def test_a_release_takes_its_attempt_back(db: Database) -> None:
    session = await new_session(db)
    for turn in range(1, 4):
        claim = await claimed(db, session)
        assert (claim.attempt, claim.attempts) == (turn, 1)
        assert await leases.release(db, claim.fence) is True
        assert await seconds_left(db, session) is None
        assert (await sessions.get(db, ME, session)).status == "running"

    await claimed(db, session)
    await lapse(db, session)
    claim = await claimed(db, session)
    assert (claim.attempt, claim.attempts) == (5, 2)
    await leases.release(db, claim.fence)
    claim = await claimed(db, session)
    assert (claim.attempt, claim.attempts) == (6, 2)
    assert await broken(db) == []


async def test_a_heartbeat_renews_what_is_held(db: Database) -> None:
    held = [await claimed(db, await new_session(db), lease=1) for _ in range(3)]
    mine, cancelled, lost = held
    await cancels.cancel_task(db, ME, cancelled.task_id)
    await lapse(db, lost.fence.session_id)
    await claimed(db, lost.fence.session_id, lease=1)

    pulse = await leases.heartbeat(db, [one.fence for one in held], lease_seconds=300)

    assert pulse == leases.Pulse(
        held=frozenset({mine.fence.session_id, cancelled.fence.session_id}),
        cancelled=frozenset({cancelled.fence.session_id}),
    )
    left = [await seconds_left(db, one.fence.session_id) for one in held]
    assert [one is not None and one > 200 for one in left] == [True, True, False]


async def test_a_heartbeat_of_nothing(db: Database) -> None:
    assert await leases.heartbeat(db, [], lease_seconds=3) == leases.Pulse(frozenset(), frozenset())


async def test_a_heartbeat_passes_over_locked_rows(
    db: Database, watcher: psycopg.AsyncConnection[Any]
) -> None:
    locked, free = [await claimed(db, await new_session(db), lease=5) for _ in range(2)]
    async with watcher.transaction():
        await watcher.execute(
            "select from sessions where id = %s for no key update", (locked.fence.session_id,)
        )
        # Whoever waits for the lock does so until the block is over.
        pulse = await within(leases.heartbeat(db, [locked.fence, free.fence], lease_seconds=300))

    assert pulse.held == {locked.fence.session_id, free.fence.session_id}
    left = [await seconds_left(db, one.fence.session_id) for one in (locked, free)]
    assert [one is not None and one > 200 for one in left] == [False, True]


async def test_a_transaction_that_is_frozen_with_a_session_locked_is_ended(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await new_session(db)
    with monkeypatch.context() as own:  # the store's own limits, and the tests' wide ones for us
        own.setattr("shared.store.connection._ON_CONNECT", _ON_CONNECT)
        other = Database.from_settings(load_settings())
        frozen = other.transaction()
        connection = await frozen.__aenter__()
    await connection.execute(text("select from sessions where id = :s for update"), {"s": session})

    claim = await within(claimed(db, session))

    assert claim.attempt == 1
    with pytest.raises(StoreUnavailable):
        await frozen.__aexit__(None, None, None)
    await other.close()
    assert await broken(db) == []


Hinted = tuple[int, float]
"""How often a session was hinted, and after how many seconds it will be again."""


async def hinted(db: Database, session: UUID, seconds: float, since: datetime) -> Hinted:
    """How often it was, and `seconds`, if that was set for its next hint between `since` and now;
    else the seconds from now on."""
    row = await db.row(text("select hints, hint_at from sessions where id = :s"), {"s": session})
    assert row is not None
    until = await now(db)
    if since <= row.hint_at - timedelta(seconds=seconds) <= until:
        return row.hints, seconds
    return row.hints, (row.hint_at - until).total_seconds()


async def due(db: Database, session: UUID, seconds: float = 0) -> None:
    """Make the session's next hint due, since `seconds`; not for long if they are less than
    none."""
    await db.run(
        text(
            """
            update sessions set hint_at = clock_timestamp() - make_interval(secs => :n)
            where id = :s
            """
        ),
        {"s": session, "n": seconds},
    )


async def test_a_session_that_stays_queued_is_hinted_ever_more_rarely(db: Database) -> None:
    since = await now(db)
    session = await new_session(db)
    assert await hinted(db, session, 1, since) == (0, 1)
    await due(db, session, -AN_HOUR)
    assert await sweeps.sweep(db) == []

    for expected in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (5, 30), (5, 30)]:
        await due(db, session)
        since = await now(db)
        assert await sweeps.sweep(db) == [session]
        assert await hinted(db, session, expected[1], since) == expected


async def test_a_claim_ends_the_waiting(db: Database) -> None:
    session = await new_session(db)
    for _ in range(6):
        await due(db, session)
        await sweeps.sweep(db)

    since = await now(db)
    await claimed(db, session, lease=20)  # less than what the next hint was put off by
    assert await sweeps.sweep(db) == []
    assert await hinted(db, session, 20, since) == (0, 20)
    await due(db, session)
    await lapse(db, session)

    since = await now(db)
    assert await sweeps.sweep(db) == [session]
    assert await hinted(db, session, 1, since) == (1, 1)


async def test_what_is_claimed_idle_or_not_yet_due_is_not_swept(db: Database) -> None:
    leased, idle, fresh, waits = [await new_session(db) for _ in range(4)]
    await claimed(db, leased)
    await finish(db, await claimed(db, idle))
    for session in (leased, idle, waits):
        await due(db, session)
    since = await now(db)
    await due(db, fresh, -AN_HOUR)  # its own second is over sooner than a busy machine gets here

    assert await sweeps.sweep(db) == [waits]
    assert await hinted(db, fresh, AN_HOUR, since) == (0, AN_HOUR)


async def test_a_release_and_an_end_make_the_next_task_due_at_once(db: Database) -> None:
    released, ended = await new_session(db), await new_session(db)
    await say(db, ended)
    for session in (released, ended):
        for _ in range(5):
            await due(db, session)
            await sweeps.sweep(db)
    await leases.release(db, (await claimed(db, released)).fence)
    await finish(db, await claimed(db, ended))

    since = await now(db)
    assert await sweeps.sweep(db) == [released, ended]
    assert [await hinted(db, one, 1, since) for one in (released, ended)] == [(1, 1), (1, 1)]


async def test_a_restart_of_postgres_leaves_leases_to_their_workers_for_a_while(
    db: Database,
) -> None:
    """They could not renew them while it was away; what nobody had is for everybody at once."""
    leased, waiting = await new_session(db), await new_session(db)
    await claims.claim(db, leased, lease_seconds=-1, history=1)
    since = await db.row(
        text("select extract(epoch from clock_timestamp() - pg_postmaster_start_time())")
    )
    assert since is not None
    await db.run(text("update sessions set hint_at = clock_timestamp() - interval '1 s'"))

    assert await sweeps.sweep(db, grace=float(since[0]) + 60) == [waiting]
    await due(db, waiting, -AN_HOUR)
    assert await sweeps.sweep(db, grace=float(since[0]) - 1) == [leased]


async def hint_rarely(db: Database) -> None:
    """Whoever is hinted is hinted again only in half a minute: else it is due again while a busy
    machine sweeps the others."""
    await db.run(text("update sessions set hints = 5"))


async def test_a_sweep_takes_the_longest_waiting_first(db: Database) -> None:
    found = [await new_session(db) for _ in range(12)]
    await hint_rarely(db)
    order = [found[(number * 5) % 12] for number in range(12)]
    for number, session in enumerate(order):
        await due(db, session, seconds=100 - number)

    assert await sweeps.sweep(db, limit=5) == order[:5]
    assert await sweeps.sweep(db, limit=5) == order[5:10]
    assert await sweeps.sweep(db, limit=5) == order[10:]


async def test_a_sweep_takes_at_most_200(db: Database) -> None:
    template = await new_session(db)
    await due(db, template, -AN_HOUR)
    await db.run(
        text(
            """
            insert into sessions (user_id, agent, character_id, open_tasks, hint_at)
            select user_id, agent, character_id, 1, clock_timestamp() - interval '1 s'
            from sessions, generate_series(1, 450) where id = :s
            """
        ),
        {"s": template},
    )
    await hint_rarely(db)

    found = [await sweeps.sweep(db) for _ in range(4)]

    assert [len(one) for one in found] == [200, 200, 50, 0]
    assert len({session for one in found for session in one}) == 450


async def test_of_many_sweepers_one_sweeps(db: Database) -> None:
    found = {await new_session(db) for _ in range(10)}
    await hint_rarely(db)
    for session in found:
        await due(db, session)
    async with db.transaction() as connection:
        await connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": SWEEP_LOCK})
        assert await sweeps.sweep(db) == []

    results = await asyncio.gather(*(sweeps.sweep(db) for _ in range(8)))

    assert sorted(session for one in results for session in one) == sorted(found)


async def test_a_sweep_passes_over_locked_sessions(
    db: Database, watcher: psycopg.AsyncConnection[Any]
) -> None:
    locked, free = await new_session(db), await new_session(db)
    await hint_rarely(db)
    for session in (locked, free):
        await due(db, session)
    async with watcher.transaction():
        await watcher.execute("select from sessions where id = %s for update", (locked,))
        assert await sweeps.sweep(db) == [free]

    assert await sweeps.sweep(db) == [locked]
