"""The documented backup and restore, by Postgres' own tools over a schema that has gone on."""

import contextlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict

from deploy.local.postgres import EmbeddedPostgres, binaries
from deploy.local.server import ROOT
from shared.migrate import migrate
from shared.schema import head_revision

OLD = "0008"
"""The schema of the backup."""


@pytest.fixture
def url(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    yield postgres_server.create_database("fireside")
    postgres_server.drop_database("fireside")
    postgres_server.create_database("fireside")  # poolers of other tests are asked for it


class Machine:
    """Runs the lines of the document here: what they run in containers, over this database."""

    def __init__(self, url: str, redis_url: str, folder: Path) -> None:
        where = conninfo_to_dict(url)
        postgres = {
            "PGHOST": str(where["host"]),
            "PGPORT": str(where["port"]),
            "PGPASSWORD": str(where["password"]),
        }
        self._user = str(where["user"])
        self._env = {**os.environ, **postgres, "DATABASE_URL": url, "REDIS_URL": redis_url}
        self._folder = folder
        self.stopped: set[str] = set()
        self.up = False

    def run(self, line: str) -> None:
        match shlex.split(line)[2:]:
            case ["exec", "-T", "postgres", tool, "-U", "fireside", *rest]:
                self._run([str(binaries() / tool), "-U", self._user], rest)
            case ["run", "--rm", "--no-deps", "migrate"]:
                self._run([sys.executable, "-m", "shared.migrate"], [])
            case ["run", "--rm", "--no-deps", "web", "python", *rest]:
                self._run([sys.executable], rest)
            case ["stop", *services]:
                self.stopped |= set(services)
            case ["up", "-d"]:
                self.up = True
            case other:
                raise AssertionError(f"not understood: {other}")

    def _run(self, begin: list[str], rest: list[str]) -> None:
        files: dict[str, Path] = {}
        if rest[-2:-1] in (["<"], [">"]):
            files[rest[-2]] = self._folder / rest[-1]
            rest = rest[:-2]
        ran = subprocess.run(
            [*begin, *rest],
            cwd=ROOT,
            env=self._env,
            input=files["<"].read_bytes() if "<" in files else None,
            capture_output=True,
        )
        assert ran.returncode == 0, ran.stderr.decode()
        if ">" in files:
            files[">"].write_bytes(ran.stdout)


def documented() -> tuple[list[str], list[str]]:
    """The lines that back up, and those that restore."""
    text = (ROOT / "docs" / "deployment.md").read_text()
    section = text.split("\n## Backup\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    backup, restore = (block for block in blocks if block.startswith("docker compose"))
    return backup.splitlines(), restore.splitlines()


def test_a_backup_of_an_older_release_is_restored_as_documented(
    url: str, redis_url: str, tmp_path: Path
) -> None:
    backup, restore = documented()
    machine = Machine(url, redis_url, tmp_path)
    migrate(url, OLD)
    with psycopg.connect(url) as connection:
        connection.execute("insert into catalog (kind, name, title) values ('agent', 'a', 'Kept')")
    for line in backup:
        machine.run(line)
    migrate(url)
    with psycopg.connect(url) as connection:
        connection.execute("update catalog set title = 'Changed'")
        # What a later migration may add: an old table can't be dropped from under it.
        connection.execute("create table later (session_id uuid references sessions)")
    with contextlib.closing(psycopg.connect(url)):  # of a process that was forgotten
        for line in restore:
            machine.run(line)

    with psycopg.connect(url) as connection:
        assert connection.execute("select title from catalog").fetchall() == [("Kept",)]
        found = connection.execute("select version_num, to_regclass('later') from alembic_version")
        assert found.fetchall() == [(head_revision(), None)]
    assert machine.up


def test_nothing_of_ours_runs_while_it_is_restored() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    ours = {name for name, one in services.items() if "worker.env" in str(one) or name == "web"}
    stop, *_ = documented()[1]

    assert ours <= set(shlex.split(stop)[3:])
