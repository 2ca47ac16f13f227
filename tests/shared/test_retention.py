"""Retention: what goes, what stays, and that nobody has to wait for it."""

import asyncio
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import text

from shared.ending import end_all
from shared.records import NewEvent, Step
from shared.retention import prune, prune_for_ever
from shared.settings import Settings
from shared.store import cancels, leases, retention, sessions
from shared.store.database import Database
from tests.shared.sessions import LEASE, ME, claimed, completed, finish, new_session, say
from tests.shared.tables import dump
from tests.waiting import until, within

MONTH = timedelta(days=30)


async def age(db: Database, days: int) -> None:
    """Let so many days go by."""
    for statement in (
        "update events set at = at - make_interval(days => :days)",
        "update steps set created_at = created_at - make_interval(days => :days)",
        "update early_cancels set created_at = created_at - make_interval(days => :days)",
        "update tasks set finished_at = finished_at - make_interval(days => :days)",
    ):
        await db.run(text(statement), {"days": days})


async def run_task(db: Database, session: UUID, events: int = 3) -> None:
    """An ended task with so many events (its first and last among them) and one step."""
    await say(db, session)
    claim = await claimed(db, session)
    step = Step(0, "tool", "look", "pure", "hash-0", "done", {"text": "seen"})
    between = [NewEvent("turn_start", {})] * (events - 2)
    await leases.write(db, claim, between, [step], lease_seconds=LEASE)
    await leases.end(db, claim, completed())


async def log_of(db: Database, session: UUID) -> list[int]:
    events = await sessions.events_after(db, ME, session, after=0, limit=10_000)
    return [event.seq for event in events]


async def bounds(db: Database, session: UUID) -> tuple[int, int]:
    found = await sessions.get(db, ME, session)
    return found.first_seq, found.head_seq


async def count(db: Database, table: str) -> int:
    row = await db.row(text(f"select count(*) from {table}"))
    assert row is not None
    return int(row[0])


async def test_old_events_of_ended_tasks_go(db: Database) -> None:
    session = await new_session(db, started=True)  # 1, 2
    await run_task(db, session)  # 3, 4, 5
    await age(db, 31)
    await run_task(db, session)  # 6, 7, 8

    assert await retention.with_old_events(db, [session], MONTH) == [session]
    assert await retention.prune_events(db, session, MONTH) == 5
    assert await retention.prune_events(db, session, MONTH) == 0
    assert await retention.with_old_events(db, [session], MONTH) == []
    assert await log_of(db, session) == [6, 7, 8]
    assert await bounds(db, session) == (6, 8)


async def test_all_may_go_and_numbers_go_on(db: Database) -> None:
    session = await new_session(db, started=True)
    await age(db, 31)
    assert await retention.prune_events(db, session, MONTH) == 2
    assert (await log_of(db, session), await bounds(db, session)) == ([], (3, 2))

    await run_task(db, session)
    assert (await log_of(db, session), await bounds(db, session)) == ([3, 4, 5], (3, 5))


async def test_events_of_an_open_task_and_behind_it_stay(db: Database) -> None:
    session = await new_session(db, started=True)  # 1, 2
    task = await say(db, session)  # 3
    claim = await claimed(db, session)
    await leases.write(db, claim, [NewEvent("task_started", {})] * 3, lease_seconds=LEASE)
    await say(db, session)  # 7
    await age(db, 31)

    assert await retention.prune_events(db, session, MONTH) == 2
    assert await retention.prune_events(db, session, MONTH) == 0
    assert (await log_of(db, session), await bounds(db, session)) == ([3, 4, 5, 6, 7], (3, 7))
    await leases.release(db, claim.fence)
    again = await claimed(db, session)
    assert (again.task_id, len(again.events)) == (task, 3)


async def test_few_at_a_time(db: Database) -> None:
    session = await new_session(db, started=True)
    for _ in range(3):
        await run_task(db, session, events=4)
    await age(db, 31)
    counts = [await retention.prune_events(db, session, MONTH, rows=5) for _ in range(4)]

    assert counts == [5, 5, 4, 0]
    assert await bounds(db, session) == (15, 14)


async def test_the_journal_of_tasks_that_ended_goes(db: Database) -> None:
    old, new, running = [await new_session(db, started=True) for _ in range(3)]
    await run_task(db, old)
    await say(db, running)
    claim = await claimed(db, running)
    step = Step(0, "tool", "look", "pure", "hash-0", "done", {"text": "seen"})
    await leases.write(db, claim, [], [step], lease_seconds=LEASE)
    await age(db, 8)
    await run_task(db, new)
    ids = [old, new, running]

    assert await retention.prune_steps(db, ids, timedelta(days=7)) == 1
    assert await retention.prune_steps(db, ids, timedelta(days=7)) == 0
    rows = await db.rows(text("select session_id from steps"))
    assert {row[0] for row in rows} == {new, running}


async def test_cancels_that_nothing_followed_are_forgotten(db: Database) -> None:
    one, other = await new_session(db), await new_session(db)
    await cancels.cancel_action(db, ME, one, "a")
    await cancels.cancel_action(db, ME, one, "b")
    await cancels.cancel_action(db, ME, other, "a")
    await age(db, 2)
    await cancels.cancel_action(db, ME, one, "c")

    assert await retention.prune_cancels(db, [one, other]) == 2
    assert await retention.prune_cancels(db, [one, other]) == 0
    rows = await db.rows(text("select early_cancels from sessions order by 1"))
    assert [row[0] for row in rows] == [0, 1]
    assert await count(db, "early_cancels") == 1


async def test_what_somebody_writes_to_is_left_for_later(
    db: Database, watcher: psycopg.AsyncConnection[Any]
) -> None:
    session = await new_session(db, started=True)
    await cancels.cancel_action(db, ME, session, "a")
    await age(db, 31)
    before = await dump(db)
    async with watcher.transaction():
        await watcher.execute("select 1 from sessions for no key update")
        assert await retention.prune_events(db, session, MONTH) == 0
        assert await retention.prune_cancels(db, [session]) == 0
    assert await dump(db) == before
    assert await retention.prune_events(db, session, MONTH) == 2
    assert await retention.prune_cancels(db, [session]) == 1


async def test_turns_go_through_all_sessions_once_a_round(db: Database) -> None:
    made = sorted([await new_session(db) for _ in range(5)])
    assert await retention.turn(db) is None  # makes the row
    got = [await retention.turn(db, sessions=2, pause=0, rest=60) for _ in range(4)]

    assert got == [made[:2], made[2:4], made[4:], None]
    await db.run(text("update retention set next_at = clock_timestamp()"))
    assert await retention.turn(db, sessions=2, pause=60) == made[:2]
    assert await retention.turn(db, sessions=2) is None  # somebody has just had a turn


async def test_processes_share_a_round(db: Database) -> None:
    made = [await new_session(db) for _ in range(12)]
    await retention.turn(db)

    async def take() -> list[UUID]:
        taken: list[UUID] = []
        for _ in range(20):
            taken += await retention.turn(db, sessions=2, pause=0, rest=60) or []
        return taken

    taken = await asyncio.gather(*(take() for _ in range(4)))
    assert sorted(one for some in taken for one in some) == sorted(made)


async def test_a_round_as_the_processes_do_it(db: Database, settings: Settings) -> None:
    for _ in range(3):
        session = await new_session(db, started=True)
        await run_task(db, session, events=600)
    await cancels.cancel_action(db, ME, session, "a")
    await age(db, 31)
    kept = await new_session(db, started=True)
    pruning = [asyncio.create_task(prune_for_ever(db, settings, every=0.01)) for _ in range(2)]

    async def all_is_gone() -> bool:
        tables = ("events", "steps", "early_cancels")
        return [await count(db, table) for table in tables] == [2, 0, 0]

    await until(all_is_gone)
    await end_all(pruning)

    assert await log_of(db, kept) == [1, 2]


async def test_nothing_goes_where_all_is_kept(db: Database, settings: Settings) -> None:
    session = await new_session(db, started=True)
    await run_task(db, session)
    await age(db, 30_000)
    before = await dump(db)
    for_ever = settings.model_copy(update={"event_days": 0, "step_days": 0})
    await prune(db, [session], for_ever)

    assert await dump(db) == before


async def test_writers_do_not_wait_for_it(
    db: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await new_session(db, started=True)
    await run_task(db, session, events=1700)
    await age(db, 31)
    await say(db, session)
    claim = await claimed(db, session)
    pauses: asyncio.Queue[asyncio.Event] = asyncio.Queue()

    async def pause(_seconds: float) -> None:
        """What lasts until a writer was served."""
        over = asyncio.Event()
        pauses.put_nowait(over)
        await over.wait()

    monkeypatch.setattr("shared.retention.asyncio", SimpleNamespace(sleep=pause))
    pruning = asyncio.create_task(prune(db, [session], settings))
    left = []
    for _ in range(3):
        over = await within(pauses.get())
        await leases.write(db, claim, [NewEvent("turn_start", {})], lease_seconds=LEASE)
        left.append(await bounds(db, session))
        over.set()
    rows = await within(pruning)

    # Each time so many events were gone as one statement deletes, and no more.
    assert left == [(501, 1704), (1001, 1705), (1501, 1706)]
    assert (rows, await bounds(db, session)) == (1703, (1703, 1706))


async def test_writers_and_pruning_side_by_side(db: Database, settings: Settings) -> None:
    session = await new_session(db, started=True)
    await run_task(db, session, events=3000)
    await age(db, 31)
    _, last = await bounds(db, session)
    await say(db, session)
    claim = await claimed(db, session)

    async def pruned() -> None:
        """A round passes over a session that is just being written to; the next one finds it."""
        while (await bounds(db, session))[0] <= last:
            await prune(db, [session], settings)

    pruning = asyncio.create_task(pruned())
    written = 0
    while not pruning.done():
        await leases.write(db, claim, [NewEvent("turn_start", {})], lease_seconds=LEASE)
        written += 1
    await pruning
    await finish(db, claim)

    first, head = await bounds(db, session)
    assert await log_of(db, session) == list(range(first, head + 1))
    assert head - first + 1 == written + 2


@pytest.mark.parametrize("rows", [1, 3])
async def test_a_hole_is_passed_over(db: Database, rows: int) -> None:
    """As a restore leaves one."""
    session = await new_session(db, started=True)
    await db.run(text("update sessions set next_event = next_event + 1000"))
    await run_task(db, session)
    await age(db, 31)
    while await retention.prune_events(db, session, MONTH, rows=rows):
        pass

    assert await bounds(db, session) == (1006, 1005)
