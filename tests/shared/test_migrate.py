"""The migration: from nothing, again, at once from many processes, and without a database."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from structlog.testing import capture_logs

from deploy.local.postgres import EmbeddedPostgres
from shared.errors import StoreUnavailable
from shared.migrate import migrate
from shared.schema import head_revision, warn_of_newer_schema
from shared.settings import load_settings
from shared.store import locks
from shared.store.database import Database
from tests.shared.tables import TABLES
from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[2]


@pytest.fixture
def empty_url(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """A database without a schema."""
    yield postgres_server.create_database("unmigrated")
    postgres_server.drop_database("unmigrated")


def command(url: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "shared.migrate", *arguments],
        cwd=ROOT,
        env=os.environ | {"DATABASE_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    """What a process wrote until its end, which no machine is too busy for."""
    return process.communicate(timeout=8 * PATIENCE)[0]


def tables_of(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "select table_name from information_schema.tables where table_schema = 'public'"
        ).fetchall()
    return sorted(name for (name,) in rows)


def columns_of(url: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(
            """
            select table_name, column_name, data_type, is_nullable, column_default
            from information_schema.columns where table_schema = 'public' order by 1, 2
            """
        ).fetchall()


async def test_once_and_again(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_url)
    db = Database.from_settings(load_settings())

    assert await db.revision() is None
    migrate(empty_url)
    first = columns_of(empty_url)
    migrate(empty_url)

    assert tables_of(empty_url) == sorted([*TABLES, "alembic_version"])
    assert columns_of(empty_url) == first
    assert await db.revision() == head_revision()
    await db.close()


@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("downgrade", 2)])
def test_who_asks_for_something_else_has_nothing_migrated(
    empty_url: str, argument: str, code: int
) -> None:
    process = command(empty_url, argument)

    assert said(process).startswith("usage: python -m shared.migrate")
    assert (process.returncode, tables_of(empty_url)) == (code, [])


def test_from_many_processes_at_once(empty_url: str) -> None:
    processes = [command(empty_url) for _ in range(4)]

    assert [(said(one), one.returncode) for one in processes] == [("", 0)] * 4
    assert tables_of(empty_url) == sorted([*TABLES, "alembic_version"])
    with psycopg.connect(empty_url) as connection:
        found = connection.execute("select version_num from alembic_version").fetchall()
    assert found == [(head_revision(),)]


def test_nobody_waits_for_a_lock_of_another_kind() -> None:
    numbers = [value for name, value in vars(locks).items() if name.endswith("_LOCK")]

    assert len(numbers) == len(set(numbers)) == 3
    assert 7_316_205_117 not in numbers


def test_a_database_that_is_away(closed_port: int) -> None:
    url = f"postgresql://me:hunter2@127.0.0.1:{closed_port}/none"

    with pytest.raises(StoreUnavailable, match=r"^migration failed: .*refused"):
        migrate(url)
    process = command(url)
    output = said(process)

    assert process.returncode == 1
    assert output.startswith("fireside: migration failed: ")
    assert output.count("\n") == 1
    assert "hunter2" not in output


def test_a_wrong_url() -> None:
    process = command("mysql://me:hunter2@host/db")

    assert said(process) == "fireside: DATABASE_URL: must begin with postgresql://\n"
    assert process.returncode == 1


def test_a_database_that_does_not_exist(postgres_server: EmbeddedPostgres) -> None:
    with pytest.raises(StoreUnavailable, match=r'database "nowhere" does not exist$'):
        migrate(postgres_server.url_of("nowhere"))


@pytest.fixture
def newer_url(empty_url: str) -> str:
    """A database that a later release has migrated."""
    migrate(empty_url)
    with psycopg.connect(empty_url) as connection:
        connection.execute("update alembic_version set version_num = '9999'")
    return empty_url


def test_a_schema_of_a_later_release_is_left_as_it_is(newer_url: str) -> None:
    before = columns_of(newer_url)
    with capture_logs() as logs:
        migrate(newer_url)

    assert [(one["schema"], one["log_level"]) for one in logs] == [("9999", "warning")]
    assert columns_of(newer_url) == before
    with psycopg.connect(newer_url) as connection:
        found = connection.execute("select version_num from alembic_version").fetchall()
    assert found == [("9999",)]


def test_the_command_succeeds_over_a_later_schema_and_says_so(newer_url: str) -> None:
    process = command(newer_url)
    output = said(process)

    assert process.returncode == 0
    assert "the schema is newer than this release" in output
    assert output.count("\n") == 1


def test_a_revision_that_nobody_knows_is_one_clear_line(empty_url: str) -> None:
    migrate(empty_url)
    with psycopg.connect(empty_url) as connection:
        connection.execute("update alembic_version set version_num = '0000x'")
    process = command(empty_url)
    output = said(process)

    assert process.returncode == 1
    assert output.startswith("fireside: migration failed: ")
    assert "0000x" in output
    assert output.count("\n") == 1


def test_only_a_newer_schema_is_warned_of() -> None:
    with capture_logs() as logs:
        for revision in (None, "", "0001", head_revision(), "9999"):
            warn_of_newer_schema(revision)

    assert [(one["schema"], one["log_level"]) for one in logs] == [("9999", "warning")]


def test_only_who_migrates_loads_alembic() -> None:
    code = "import sys, api.app, worker.start; print('alembic' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ran.stdout == "False\n"


def test_up_to_a_revision(empty_url: str) -> None:
    migrate(empty_url, "0001")

    assert "lineage" not in tables_of(empty_url)
    migrate(empty_url)
    assert "lineage" in tables_of(empty_url)
