"""Accepting and cancelling actions."""

import asyncio
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy import text

from shared.errors import IdempotencyConflict, NotFound, SessionBusy
from shared.records import Accepted, Event, NewAction, Outcome, Task
from shared.records import NewEvent as New
from shared.store import actions, cancels, claims, leases, sessions
from shared.store.database import Database
from tests.shared.invariants import broken
from tests.shared.locks import lock_waiters
from tests.shared.sessions import ME, claimed, finish, new_session, say
from tests.shared.tables import dump

SAY = NewAction({"type": "say", "text": "hi"})


async def log(db: Database, session: UUID, after: int = 0) -> list[Event]:
    return await sessions.events_after(db, ME, session, after=after, limit=1000)


async def status(db: Database, task: UUID) -> str:
    return (await actions.get_task(db, ME, task)).status


async def test_an_accepted_action(db: Database) -> None:
    session = await new_session(db, started=True)
    (*_, newest) = await log(db, session)

    accepted = await actions.accept(db, ME, session, replace(SAY, client_action_id="k"))

    (event,) = await log(db, session, after=newest.seq)
    task = await actions.get_task(db, ME, accepted.task_id)
    assert event == Event(
        seq=newest.seq + 1,
        type="task_queued",
        task_id=accepted.task_id,
        at=event.at,
        data={"action": SAY.action, "client_action_id": "k", "position": 0},
    )
    assert accepted == Accepted(
        task_id=event.task_id or uuid4(),
        session_id=session,
        seq=event.seq,
        position=0,
        status="queued",
        fresh=True,
        events=(event,),
    )
    assert task == Task(
        id=accepted.task_id,
        session_id=session,
        status="queued",
        claims=0,
        leased=False,
        result=None,
        error=None,
        usage=None,
        created_at=task.created_at,
        started_at=None,
        finished_at=None,
    )
    assert await broken(db) == []


async def test_actions_are_numbered_in_their_order(db: Database) -> None:
    session = await new_session(db)

    accepted = [await actions.accept(db, ME, session, SAY) for _ in range(4)]

    assert [(one.seq, one.position) for one in accepted] == [(2, 1), (3, 2), (4, 3), (5, 4)]
    assert [(one.seq, one.type, one.data) for one in await log(db, session, after=1)] == [
        (
            one.seq,
            "task_queued",
            {"action": SAY.action, "client_action_id": None, "position": one.position},
        )
        for one in accepted
    ]
    assert await broken(db) == []


async def test_the_same_key_gives_the_same_task(db: Database) -> None:
    session = await new_session(db)
    new = replace(SAY, client_action_id="k")
    first = await actions.accept(db, ME, session, new)
    before = await dump(db)

    again = await actions.accept(db, ME, session, new)

    assert again == replace(first, fresh=False, events=())
    assert await dump(db) == before


async def test_the_same_key_gives_the_task_as_it_is_now(db: Database) -> None:
    session = await new_session(db, started=True)
    new = replace(SAY, client_action_id="k")
    first = await actions.accept(db, ME, session, new)

    claim = await claimed(db, session)
    running = await actions.accept(db, ME, session, new)
    await finish(db, claim)
    over = await actions.accept(db, ME, session, new)

    assert running == replace(first, fresh=False, events=(), status="running")
    assert over == replace(first, fresh=False, events=(), status="completed")


@pytest.mark.parametrize(
    "other",
    [
        NewAction({"type": "say", "text": "ho"}, client_action_id="k"),
        NewAction({"type": "say"}, client_action_id="k"),
        NewAction({"type": "say", "text": "hi"}, on_busy="interrupt", client_action_id="k"),
        NewAction({"type": "say", "text": "hi"}, on_busy="reject", client_action_id="k"),
    ],
)
async def test_a_key_of_another_action(db: Database, other: NewAction) -> None:
    session = await new_session(db)
    await actions.accept(db, ME, session, replace(SAY, client_action_id="k"))
    before = await dump(db)

    with pytest.raises(IdempotencyConflict, match=r"^this key was used for another action$"):
        await actions.accept(db, ME, session, other)

    assert await dump(db) == before


async def test_a_key_belongs_to_its_session(db: Database) -> None:
    new = replace(SAY, client_action_id="k")
    one = await actions.accept(db, ME, await new_session(db), new)
    other = await actions.accept(db, ME, await new_session(db), new)

    assert one.task_id != other.task_id
    assert [one.fresh, other.fresh] == [True, True]


@pytest.mark.parametrize("on_busy", ["enqueue", "interrupt", "reject"])
async def test_many_times_at_once_is_once(
    db: Database,
    watcher: psycopg.AsyncConnection[Any],
    monkeypatch: pytest.MonkeyPatch,
    on_busy: Any,
) -> None:
    # All have a connection at once, and not one more each quarter of a second.
    monkeypatch.setattr("shared.store.lending.PATIENCE_SECONDS", 0)
    session = await new_session(db, started=True)
    new = NewAction(SAY.action, on_busy=on_busy, client_action_id="k")
    async with watcher.transaction():
        await watcher.execute("select from sessions where id = %s for update", (session,))
        accepting = [asyncio.create_task(actions.accept(db, ME, session, new)) for _ in range(20)]
        await lock_waiters(watcher, 20)

    accepted = await asyncio.gather(*accepting)

    (first,) = [one for one in accepted if one.fresh]
    assert [one for one in accepted if not one.fresh] == [
        replace(first, fresh=False, events=())
    ] * 19
    assert await db.row(text("select count(*) from tasks")) == (2,)
    assert await broken(db) == []


async def test_many_at_once_are_numbered_without_gaps(db: Database) -> None:
    one, other = await new_session(db), await new_session(db)

    accepted = await asyncio.gather(
        *(actions.accept(db, ME, session, SAY) for session in [one, other] * 20)
    )

    for session in (one, other):
        mine = [a for a in accepted if a.session_id == session]
        assert sorted(a.seq for a in mine) == list(range(2, 22))
        assert sorted(a.position for a in mine) == list(range(1, 21))
    assert await broken(db) == []


async def test_reject(db: Database) -> None:
    session = await new_session(db)
    new = NewAction(SAY.action, on_busy="reject")
    before = await dump(db)

    with pytest.raises(SessionBusy, match=r"^a task of this session is running or waiting$"):
        await actions.accept(db, ME, session, new)
    assert await dump(db) == before
    claim = await claimed(db, session)
    with pytest.raises(SessionBusy):
        await actions.accept(db, ME, session, new)
    await finish(db, claim)

    assert (await actions.accept(db, ME, session, new)).position == 0


async def test_of_many_rejecting_actions_at_once_one_is_accepted(db: Database) -> None:
    session = await new_session(db, started=True)

    results = await asyncio.gather(
        *(
            actions.accept(
                db, ME, session, NewAction(SAY.action, "reject", client_action_id=str(number))
            )
            for number in range(20)
        ),
        return_exceptions=True,
    )

    assert sorted(type(one).__name__ for one in results) == ["Accepted"] + ["SessionBusy"] * 19
    assert await broken(db) == []


async def test_an_interrupt_goes_next_and_tells_the_running_task(db: Database) -> None:
    session = await new_session(db)
    waiting = await say(db, session)
    running = await claimed(db, session)

    first = await actions.accept(db, ME, session, NewAction(SAY.action, "interrupt"))
    second = await actions.accept(db, ME, session, NewAction(SAY.action, "interrupt"))

    assert [first.interrupts, second.interrupts] == [running.task_id, running.task_id]
    assert [first.position, second.position] == [1, 2]
    assert (await leases.heartbeat(db, [running.fence], lease_seconds=9)).cancelled == {session}
    order = []
    await finish(db, running)
    for _ in range(3):
        claim = await claimed(db, session)
        assert not claim.cancel_requested
        order.append(claim.task_id)
        await finish(db, claim)
    assert order == [first.task_id, second.task_id, waiting]
    assert await broken(db) == []


async def test_an_interrupt_reaches_a_task_that_waits_for_its_next_worker(db: Database) -> None:
    session = await new_session(db)
    claim = await claimed(db, session)
    await leases.release(db, claim.fence)

    accepted = await actions.accept(db, ME, session, NewAction(SAY.action, "interrupt"))

    again = await claimed(db, session)
    assert accepted.interrupts == again.task_id == claim.task_id
    assert again.cancel_requested


async def test_an_interrupt_of_nothing(db: Database) -> None:
    session = await new_session(db)

    accepted = await actions.accept(db, ME, session, NewAction(SAY.action, "interrupt"))

    assert (accepted.interrupts, accepted.position) == (None, 0)
    assert (await claimed(db, session)).task_id == accepted.task_id


async def test_cancel_of_a_waiting_task_ends_it(db: Database) -> None:
    session = await new_session(db, started=True)
    task = await say(db, session)
    (*_, newest) = await log(db, session)

    found, events = await cancels.cancel_task(db, ME, task)

    assert found == session
    assert events == await log(db, session, after=newest.seq)
    assert [(one.seq, one.type, one.task_id, one.data) for one in events] == [
        (newest.seq + 1, "task_cancelled", task, {})
    ]
    ended = await actions.get_task(db, ME, task)
    assert (ended.status, ended.started_at, ended.finished_at is None) == ("cancelled", None, False)
    assert await claims.claim(db, session, lease_seconds=1, history=1) is None
    assert await broken(db) == []


async def test_cancel_of_a_running_task_asks_its_worker(db: Database) -> None:
    session = await new_session(db)
    claim = await claimed(db, session)

    assert await cancels.cancel_task(db, ME, claim.task_id) == (session, [])

    assert await status(db, claim.task_id) == "running"
    assert await leases.heartbeat(db, [claim.fence], lease_seconds=9) == leases.Pulse(
        held=frozenset({session}), cancelled=frozenset({session})
    )
    await leases.release(db, claim.fence)
    assert (await claimed(db, session)).cancel_requested


async def test_cancel_of_a_task_that_is_over_changes_nothing(db: Database) -> None:
    session = await new_session(db)
    claim = await claimed(db, session)
    await finish(db, claim)
    waiting = await say(db, session)
    await cancels.cancel_task(db, ME, waiting)
    before = await dump(db)

    assert await cancels.cancel_task(db, ME, claim.task_id) == (session, [])
    assert await cancels.cancel_task(db, ME, waiting) == (session, [])

    assert await dump(db) == before


async def test_a_cancel_twenty_times_at_once_is_one_event(db: Database) -> None:
    session = await new_session(db)
    task = await say(db, session)

    found = await asyncio.gather(*(cancels.cancel_task(db, ME, task) for _ in range(20)))

    assert sorted(len(events) for _, events in found) == [0] * 19 + [1]
    assert await broken(db) == []


@pytest.mark.parametrize("first", ["claim", "cancel"])
async def test_a_cancel_and_a_claim_at_once(
    db: Database, watcher: psycopg.AsyncConnection[Any], first: str
) -> None:
    session = await new_session(db, started=True)
    task = await say(db, session)
    both: dict[str, asyncio.Task[Any]] = {}
    async with watcher.transaction():
        await watcher.execute("select from sessions where id = %s for update", (session,))
        for count, name in enumerate(sorted(["claim", "cancel"], key=lambda one: one != first)):
            both[name] = asyncio.create_task(
                claims.claim(db, session, lease_seconds=9, history=1)
                if name == "claim"
                else cancels.cancel_task(db, ME, task)
            )
            await lock_waiters(watcher, count + 1)

    claim, (_, events) = await both["claim"], await both["cancel"]

    if first == "claim":
        assert (claim.task_id, await status(db, task), events) == (task, "running", [])
        assert (await leases.heartbeat(db, [claim.fence], lease_seconds=9)).cancelled == {session}
    else:
        assert (claim, await status(db, task), len(events)) == (None, "cancelled", 1)
    assert await broken(db) == []


async def test_cancel_by_the_clients_own_id(db: Database) -> None:
    session = await new_session(db)
    accepted = await actions.accept(db, ME, session, replace(SAY, client_action_id="k"))

    task, events = await cancels.cancel_action(db, ME, session, "k")

    assert task == accepted.task_id
    assert [one.type for one in events] == ["task_cancelled"]
    assert await cancels.cancel_action(db, ME, session, "k") == (task, [])
    assert await broken(db) == []


async def test_a_cancel_that_comes_before_its_action(db: Database) -> None:
    session = await new_session(db, started=True)
    for _ in range(3):
        assert await cancels.cancel_action(db, ME, session, "k") == (None, [])
    assert await broken(db) == []

    other = await actions.accept(db, ME, session, replace(SAY, client_action_id="other"))
    accepted = await actions.accept(db, ME, session, replace(SAY, client_action_id="k"))

    assert other.status == "queued"
    assert accepted == Accepted(
        task_id=accepted.task_id,
        session_id=session,
        seq=other.seq + 1,
        position=1,
        status="cancelled",
        fresh=True,
        level=1,
        events=tuple(await log(db, session, after=other.seq)),
    )
    assert [one.type for one in accepted.events] == ["task_queued", "task_cancelled"]
    assert (await claimed(db, session)).task_id == other.task_id
    assert (await dump(db))["early_cancels"] == []
    assert await broken(db) == []


async def test_an_interrupt_that_was_cancelled_before_interrupts_nothing(db: Database) -> None:
    session = await new_session(db)
    claim = await claimed(db, session)
    await cancels.cancel_action(db, ME, session, "k")

    accepted = await actions.accept(
        db, ME, session, NewAction(SAY.action, "interrupt", client_action_id="k")
    )

    assert (accepted.status, accepted.interrupts) == ("cancelled", None)
    pulse = await leases.heartbeat(db, [claim.fence], lease_seconds=9)
    assert pulse == leases.Pulse(held=frozenset({session}), cancelled=frozenset())


async def test_an_early_cancel_and_its_action_at_once(db: Database) -> None:
    for number in range(10):
        session = await new_session(db, started=True)
        new = replace(SAY, client_action_id=str(number))

        accepted, (task, events) = await asyncio.gather(
            actions.accept(db, ME, session, new),
            cancels.cancel_action(db, ME, session, str(number)),
        )

        assert await status(db, accepted.task_id) == "cancelled"
        assert (task is None) == (accepted.status == "cancelled")
        assert len(events) + len(accepted.events) == 2
        assert await broken(db) == []


async def test_a_stranger_finds_nothing(db: Database) -> None:
    session = await new_session(db)
    task = await say(db, session)
    before = await dump(db)

    with pytest.raises(NotFound, match=r"^no such session$"):
        await actions.accept(db, "stranger", session, SAY)
    with pytest.raises(NotFound, match=r"^no such session$"):
        await actions.accept(db, "stranger", session, replace(SAY, on_busy="reject"))
    with pytest.raises(NotFound, match=r"^no such session$"):
        await cancels.cancel_action(db, "stranger", session, "k")
    with pytest.raises(NotFound, match=r"^no such task$"):
        await cancels.cancel_task(db, "stranger", task)
    with pytest.raises(NotFound, match=r"^no such task$"):
        await actions.get_task(db, "stranger", task)
    with pytest.raises(NotFound, match=r"^no such task$"):
        await actions.get_task(db, ME, uuid4())

    assert await dump(db) == before


async def test_a_deleted_session(db: Database) -> None:
    session = await new_session(db)
    new = replace(SAY, client_action_id="k")
    task = (await actions.accept(db, ME, session, new)).task_id
    await sessions.delete(db, ME, session)

    for on_busy in ("enqueue", "reject"):
        with pytest.raises(NotFound):
            await actions.accept(db, ME, session, replace(new, on_busy=on_busy))
    with pytest.raises(NotFound):
        await cancels.cancel_action(db, ME, session, "k")
    with pytest.raises(NotFound):
        await cancels.cancel_task(db, ME, task)


async def test_a_session_that_is_deleted_while_actions_arrive(db: Database) -> None:
    session = await new_session(db)

    results = await asyncio.gather(
        *(actions.accept(db, ME, session, SAY) for _ in range(8)),
        sessions.delete(db, ME, session),
        *(actions.accept(db, ME, session, SAY) for _ in range(8)),
        return_exceptions=True,
    )

    assert {type(one) for one in results} <= {Accepted, NotFound, type(None)}
    found = await dump(db)
    assert [found[table] for table in ("sessions", "tasks", "events")] == [[], [], []]


async def test_what_a_task_ended_with(db: Database) -> None:
    session = await new_session(db)
    claim = await claimed(db, session)
    await leases.end(
        db,
        claim,
        Outcome(
            "failed",
            [New("task_failed", {"error": {"code": "x"}})],
            result={"text": "a"},
            error={"code": "x"},
            usage={"tokens": 3},
        ),
    )

    task = await actions.get_task(db, ME, claim.task_id)

    assert task == Task(
        id=claim.task_id,
        session_id=session,
        status="failed",
        claims=1,
        leased=False,
        result={"text": "a"},
        error={"code": "x"},
        usage={"tokens": 3},
        created_at=task.created_at,
        started_at=task.started_at,
        finished_at=task.finished_at,
    )
    assert task.started_at is not None
    assert task.finished_at is not None
    assert task.created_at <= task.started_at <= task.finished_at
