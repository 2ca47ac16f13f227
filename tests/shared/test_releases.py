"""Old and new processes over one database, as an upgrade has them for some minutes."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import text

from deploy.local.postgres import EmbeddedPostgres
from shared.errors import NewerRelease
from shared.migrate import migrate
from shared.records import EVENT_VERSION, STEP_VERSION, NewEvent, Step
from shared.schema import head_revision
from shared.settings import load_settings
from shared.store import actions, cancels, leases, sweeps
from shared.store.database import Database
from tests.shared.invariants import broken
from tests.shared.releases import FOLDER, Release
from tests.shared.sessions import LEASE, MAKE_DUE_ONCE, ME, claimed, finish, new_session, say
from tests.shared.tables import dump
from tests.waiting import until

SCHEMAS = sorted(folder.name.removeprefix("schema_") for folder in FOLDER.glob("schema_*"))
"""The schemas of the releases that may still run beside this one."""


@pytest.fixture(params=SCHEMAS)
def old(request: pytest.FixtureRequest, db: Database) -> Release:
    return Release(request.param, db)


async def lapse(db: Database, session: UUID) -> None:
    """The worker of this session has died some seconds ago."""
    ago = text("update sessions set lease_until = clock_timestamp() - interval '1 s' where id = :s")
    await db.run(ago, {"s": session})


async def status(db: Database, task: UUID) -> str:
    return (await actions.get_task(db, ME, task)).status


async def test_begun_by_the_old_and_finished_by_the_new(db: Database, old: Release) -> None:
    session = await new_session(db, started=True)
    task = await old.accept(session)
    first = await old.claim(session)
    assert first is not None
    assert await old.write(first, "task_started", "agent_start", step=0)
    await lapse(db, session)

    claim = await claimed(db, session)
    assert (claim.task_id, claim.attempt) == (task, 2)
    assert [event.type for event in claim.events] == ["task_started", "agent_start"]
    assert [(step.no, step.status) for step in claim.steps] == [(0, "done")]
    assert not await old.write(first, "turn_start", step=1)
    assert not await old.end(first)
    assert await old.heartbeat(first) == set()
    await finish(db, claim)
    assert await status(db, task) == "completed"
    assert await broken(db) == []


async def test_begun_by_the_new_and_finished_by_the_old(db: Database, old: Release) -> None:
    session = await new_session(db, started=True)
    task = await say(db, session)
    first = await claimed(db, session)
    step = Step(0, "tool", "look", "pure", "hash-0", "done", {"text": "seen"})
    await leases.write(
        db, first, [NewEvent("task_started", {"attempt": 1})], [step], lease_seconds=LEASE
    )
    assert await leases.release(db, first.fence)

    claim = await old.claim(session)
    assert claim is not None
    assert (claim.task, claim.attempt, len(claim.steps), len(claim.events)) == (task, 2, 1, 1)
    assert await old.end(claim)
    assert await status(db, task) == "completed"
    assert await broken(db) == []


async def test_accepted_by_the_old_gateway_and_run_by_the_new_worker(
    db: Database, old: Release
) -> None:
    session = await new_session(db)
    tasks = [await old.accept(session, "one"), await say(db, session), await old.accept(session)]
    cancelled = await old.accept(session)
    assert await old.cancel(cancelled) == "cancelled"
    await finish(db, await claimed(db, session))
    for task in tasks:
        claim = await claimed(db, session)
        assert claim.task_id == task
        assert await old.cancel(task) == "running"
        assert (await leases.heartbeat(db, [claim.fence], lease_seconds=LEASE)).cancelled
        await finish(db, claim)
    assert await broken(db) == []


async def test_heartbeats_and_sweeps_side_by_side(db: Database, old: Release) -> None:
    ours, theirs, lost, waiting = [await new_session(db) for _ in range(4)]
    mine = await claimed(db, ours)
    old_one = await old.claim(theirs)
    old_lost = await old.claim(lost)
    assert old_one is not None
    assert old_lost is not None
    await db.run(text("update sessions set lease_until = null where id = :s"), {"s": lost})
    taken = await claimed(db, lost)
    await db.run(MAKE_DUE_ONCE)

    assert await old.heartbeat(old_one, old_lost) == {theirs}
    fences = [mine.fence, taken.fence]
    assert (await leases.heartbeat(db, fences, lease_seconds=LEASE)).held == {ours, lost}
    swept = [*await sweeps.sweep(db), *await old.sweep()]
    assert swept == [waiting]
    assert await old.release(old_one)
    await db.run(MAKE_DUE_ONCE)
    swept = [*await old.sweep(), *await sweeps.sweep(db)]
    assert sorted(swept) == sorted([waiting, theirs])


@pytest.fixture
def unmigrated(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """A database without a schema."""
    yield postgres_server.create_database("releases")
    postgres_server.drop_database("releases")


@pytest.fixture(params=SCHEMAS)
def schema(request: pytest.FixtureRequest) -> str:
    """The schema of the release before."""
    return str(request.param)


@pytest.fixture
async def before(unmigrated: str, schema: str) -> AsyncIterator[Database]:
    """A pool on a database with the schema of the release before."""
    migrate(unmigrated, schema)
    settings = load_settings().model_copy(update={"database_url": SecretStr(unmigrated)})
    db = Database.from_settings(settings)
    yield db
    await db.close()


async def test_a_migration_beside_an_old_worker_that_runs(
    before: Database, unmigrated: str, schema: str
) -> None:
    old = Release(schema, before)
    sessions = [await old.session() for _ in range(3)]
    for session in sessions:
        await old.accept(session)
    claim = await old.claim(sessions[0])
    assert claim is not None
    migrating = asyncio.create_task(asyncio.to_thread(migrate, unmigrated))
    written = 0
    while not migrating.done() or written < 5:
        assert await old.write(claim, "turn_start", step=written)
        assert await old.heartbeat(claim) == {sessions[0]}
        await old.sweep()
        written += 1
    await migrating

    assert await before.revision() == head_revision()
    await old.accept(sessions[0], "later")
    assert await old.end(claim)
    await finish(before, await claimed(before, sessions[0]))
    other = await old.claim(sessions[1])
    assert other is not None
    assert await old.end(other)
    await finish(before, await claimed(before, sessions[2]))
    assert await broken(before) == []
    rows = await before.rows(text("select distinct version from events"))
    assert [row.version for row in rows] == [EVENT_VERSION]


@pytest.mark.parametrize("schema", SCHEMAS[:-1])  # what is new since the last one waits for nobody
async def test_a_migration_lets_others_pass_while_it_waits(
    before: Database, unmigrated: str, schema: str
) -> None:
    """Somebody's long transaction has read a table; nobody queues up behind the migration."""
    old = Release(schema, before)
    session = await old.session()
    with psycopg.connect(unmigrated) as reader:
        reader.execute("select count(*) from sessions")
        migrating = asyncio.create_task(asyncio.to_thread(migrate, unmigrated))
        await _waits_for_a_table(unmigrated)
        for number in range(10):
            # Behind one that waits for the reader this would wait until its time-out.
            await old.accept(session, str(number))
        assert not migrating.done()
        reader.commit()
    await migrating

    assert await before.revision() == head_revision()


async def _waits_for_a_table(url: str) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as watcher:

        async def waits() -> bool:
            cursor = await watcher.execute(
                "select 1 from pg_locks where not granted and mode = 'AccessExclusiveLock'"
            )
            return await cursor.fetchone() is not None

        await until(waits)


@pytest.mark.parametrize("schema", ["0001"])
async def test_a_migration_that_was_broken_off_is_run_again(
    before: Database, unmigrated: str
) -> None:
    with psycopg.connect(unmigrated, autocommit=True) as connection:
        connection.execute("alter table sessions add column quarantined boolean default false")
        connection.execute("create index tasks_dead on tasks (finished_at) where status = 'dead'")
        connection.execute(
            "update pg_index set indisvalid = false where indexrelid = 'tasks_dead'::regclass"
        )
    await asyncio.to_thread(migrate, unmigrated)

    invalid = await before.rows(text("select 1 from pg_index where not indisvalid"))
    assert (await before.revision(), list(invalid)) == (head_revision(), [])


@pytest.mark.parametrize(("table", "newest"), [("steps", STEP_VERSION), ("events", EVENT_VERSION)])
async def test_a_task_of_a_newer_release_is_left_to_it(
    db: Database, table: str, newest: int
) -> None:
    session = await new_session(db)
    first = await claimed(db, session)
    step = Step(0, "tool", "look", "pure", "hash-0", "done", {"text": "seen"})
    await leases.write(db, first, [NewEvent("task_started", {})], [step], lease_seconds=LEASE)
    await leases.release(db, first.fence)
    await _set_version(db, table, newest + 1)
    untouched = await dump(db)
    for _ in range(3):
        with pytest.raises(NewerRelease, match=str(first.task_id)):
            await claimed(db, session)
    assert await dump(db) == untouched
    assert await sweeps.sweep(db) == [session]  # and so it comes to other workers

    await _set_version(db, table, newest)
    await finish(db, await claimed(db, session))


async def _set_version(db: Database, table: str, version: int) -> None:
    await db.run(text(f"update {table} set version = :v"), {"v": version})


async def test_what_is_written_says_its_version(db: Database) -> None:
    session = await new_session(db)
    task = await say(db, session)
    claim = await claimed(db, session)
    step = Step(0, "tool", "look", "pure", "hash-0", "done", {"text": "seen"})
    await leases.write(db, claim, [NewEvent("task_started", {})], [step], lease_seconds=LEASE)
    await cancels.cancel_task(db, ME, task)
    found: list[Any] = []
    for table in ("events", "steps"):
        found += await db.rows(text(f"select version, count(*) from {table} group by 1"))

    assert [tuple(row) for row in found] == [(EVENT_VERSION, 4), (STEP_VERSION, 1)]
