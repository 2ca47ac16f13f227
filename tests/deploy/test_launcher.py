"""The launcher with real servers: what the user sees, what is kept, and that nothing is left
behind.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from deploy.local.postgres import NOT_DURABLE, EmbeddedPostgres
from deploy.local.server import ROOT, answers
from shared.migrate import migrate
from tests.deploy.launches import CRASHING, MIGRATING, PATIENCE, PROGRAMS, Launch, Watch


def test_it_comes_up_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    with Launch(tmp_path / "home") as launch:
        url = launch.line_with("ready after").split()[-1]
        launch.ready()
        assert url == f"http://127.0.0.1:{launch.port}/"
        assert answers(f"{url}healthz", timeout=PATIENCE)
        tree = Watch(launch.tree())

        launch.signal(signal.SIGINT)
        ended = launch.ended()

    assert (ended.code, ended.errors) == (0, [])
    assert ended.lines[-2:] == ["fireside: stopping ...", "fireside: stopped"]
    assert tree.left_after(PATIENCE) == []


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_it_ends_while_starting(home: Path, signum: signal.Signals) -> None:
    with Launch(home, migrate=["sleep", "600"]) as launch:
        launch.line_with("starting")
        tree = Watch(launch.tree())
        launch.signal(signum)

        assert launch.ended().code == 0
    assert tree.left_after(PATIENCE) == []


def test_a_second_start_finds_what_the_first_has_left(home: Path) -> None:
    for _ in range(2):
        with Launch(home, migrate=MIGRATING) as launch:
            launch.ready()
            launch.signal(signal.SIGTERM)
            assert launch.ended().code == 0

    printed = (home / "logs" / "migrate.log").read_text().splitlines()
    assert printed == ["runs: (1,)", "runs: (2,)"]


def test_a_killed_launcher_leaves_no_process(home: Path) -> None:
    with Launch(home) as launch:
        launch.ready()
        parts = ("postgres -D", "io worker", "valkey-server", "gateway", "worker", "sleep 600")
        watch = Watch(launch.tree_with(*parts))
        launch.signal(signal.SIGKILL)

        assert watch.left_after(PATIENCE) == []
    with Launch(home, migrate=MIGRATING) as again:
        again.ready()


def test_it_is_ready_when_the_worker_of_this_run_is(home: Path, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with Launch(home, worker=[*PROGRAMS["worker"], str(go)]) as launch:
        launch.tree_with("standin.py worker", "standin.py gateway")
        # The gateway lists what a worker of an earlier run has announced.
        while not answers(f"http://127.0.0.1:{launch.port}/v1/agents"):
            time.sleep(0.01)
        assert not launch.says_more_within(1.0, after="starting")
        go.touch()
        launch.ready()


def test_a_worker_whose_log_leaves_it_out_is_ready_when_agents_are_listed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRESIDE_LOG_LEVEL", "warning")
    with Launch(home, worker=[*PROGRAMS["worker"], str(tmp_path / "never")]) as launch:
        launch.ready()


def settings_of(file: Path) -> dict[str, str]:
    """What a shell has that reads the file."""
    script = 'set -a; . "$0"; exec env -0'
    read = subprocess.run(["sh", "-c", script, file], env={}, stdout=subprocess.PIPE, check=True)
    return dict(one.split("=", 1) for one in read.stdout.decode().rstrip("\0").split("\0"))


def test_operators_find_its_servers_in_a_file_while_it_runs(home: Path) -> None:
    home = home.rename(home.with_name("the user's home"))
    file = home / "env"
    with Launch(home) as launch:
        line = launch.line_with("make run")
        settings = settings_of(file)
        with psycopg.connect(settings["DATABASE_URL"]) as connection:
            assert connection.execute("select 1").fetchone() == (1,)
        ran = subprocess.run(
            ["make", "-s", "-o", ".venv/.ready", "run", "CMD=shared.migrate"],
            cwd=ROOT,
            env={**os.environ, "FIRESIDE_HOME": str(home)},
            capture_output=True,
            text=True,
        )
        launch.signal(signal.SIGTERM)
        assert launch.ended().code == 0

    assert line == f'fireside: commands: make run CMD="api.keys list"; settings: {file}'
    assert settings["REDIS_URL"].startswith("redis://")
    assert (settings["FIRESIDE_AUTH"], settings["PORT"]) == ("none", str(launch.port))
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert not file.exists()


def test_nobody_else_reads_the_file(home: Path) -> None:
    with Launch(home) as launch:
        launch.ready()
        assert (home / "env").stat().st_mode & 0o777 == 0o600
        launch.signal(signal.SIGKILL)
    with Launch(home) as again:
        again.ready()
        assert (home / "env").stat().st_mode & 0o777 == 0o600
        assert [path.name for path in home.glob("env*")] == ["env"]


def test_a_command_without_a_running_server_says_so(tmp_path: Path) -> None:
    ran = subprocess.run(
        ["make", "-s", "-o", ".venv/.ready", "run", "CMD=api.keys list"],
        cwd=ROOT,
        env={**os.environ, "FIRESIDE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )

    assert ran.returncode != 0
    assert f"fireside: nothing runs on {tmp_path}: make up starts it" in ran.stderr


def test_a_command_that_is_not_named_is_asked_for() -> None:
    ran = subprocess.run(
        ["make", "-s", "-o", ".venv/.ready", "run"], cwd=ROOT, capture_output=True, text=True
    )

    assert ran.returncode != 0
    assert 'fireside: say which command: make run CMD="api.keys list"\n' in ran.stderr


def test_a_crashed_child_is_started_again(home: Path) -> None:
    with Launch(home) as launch:
        launch.ready()
        for name, part in (
            ("postgres", "postgres -D"),
            ("valkey", "valkey"),
            ("gateway", "gateway"),
        ):
            pid = launch.child(part)
            os.kill(pid, signal.SIGKILL)
            assert "signal 9" in launch.line_with(f"{name} ended unexpectedly")
            launch.line_with(f"{name} is running again")
            assert launch.child(part) != pid
        launch.signal(signal.SIGTERM)

        assert launch.ended().code == 0


def test_a_child_that_always_crashes_is_given_up(home: Path) -> None:
    with Launch(home, worker=[*CRASHING, str(home / "crash")]) as launch:
        launch.ready()
        tree = Watch(launch.tree())
        (home / "crash").touch()
        ended = launch.ended()

    assert ended.code == 1
    log = home / "logs" / "worker.log"
    assert ended.errors[0] == (
        f"fireside: worker ended 4 times in a row, last with exit code 1 (log: {log})"
    )
    assert ended.errors[-1] == "  no room on the hearth"
    assert tree.left_after(PATIENCE) == []


def test_a_child_that_crashes_at_once_stops_the_start(home: Path) -> None:
    with Launch(home, gateway=CRASHING) as launch:
        ended = launch.ended()

    assert ended.code == 1
    assert ended.errors == [
        "fireside: gateway ended with exit code 1 instead of starting: no room on the hearth "
        f"(log: {home / 'logs' / 'gateway.log'})"
    ]


def test_vectors_are_made_where_an_embedding_model_is_named(home: Path) -> None:
    with Launch(home, embeddings="hashing") as launch:
        launch.ready()
        pid = launch.child("standin.py embed")
        os.kill(pid, signal.SIGKILL)
        assert "signal 9" in launch.line_with("embed ended unexpectedly")
        launch.line_with("embed is running again")
        assert launch.child("standin.py embed") != pid
        launch.signal(signal.SIGTERM)

        assert launch.ended().code == 0


def test_without_an_embedding_model_a_line_says_so(home: Path) -> None:
    with Launch(home, embeddings="none") as launch:
        line = launch.line_with("memories")
        launch.ready()

        assert line == (
            "fireside: memories are found by their words alone: FIRESIDE_EMBEDDINGS is none"
        )
        assert not any("standin.py embed" in name for name in launch.tree().values())


def test_the_rest_goes_on_without_a_process_that_makes_vectors(home: Path) -> None:
    with Launch(home, embeddings="hashing", embed=CRASHING) as launch:
        launch.ready()
        line = launch.line_with("going on without it")
        assert answers(f"http://127.0.0.1:{launch.port}/healthz", timeout=PATIENCE)
        launch.signal(signal.SIGTERM)
        ended = launch.ended()

    assert (ended.code, ended.errors) == (0, [])
    assert line == (
        "fireside: embed ended 4 times in a row, last with exit code 1: no room on the hearth; "
        f"going on without it (log: {home / 'logs' / 'embed.log'})"
    )


def test_failing_migrations_stop_the_start(home: Path) -> None:
    with Launch(home, migrate=CRASHING) as launch:
        ended = launch.ended()

    log = home / "logs" / "migrate.log"
    assert ended.code == 1
    assert ended.errors == [
        f"fireside: the database could not be migrated: no room on the hearth (log: {log})"
    ]


def test_a_release_that_is_gone_back_to_starts(home: Path) -> None:
    migrating = [sys.executable, "-m", "shared.migrate"]
    with EmbeddedPostgres(home / "postgres", settings=NOT_DURABLE) as postgres:
        migrate(postgres.url)
        with psycopg.connect(postgres.url) as connection:
            connection.execute("update alembic_version set version_num = '9999'")
    with Launch(home, migrate=migrating) as launch:
        launch.ready()
        launch.signal(signal.SIGTERM)

        assert launch.ended().code == 0
    assert "newer than this release" in (home / "logs" / "migrate.log").read_text()


def test_a_second_launcher_on_the_same_folder_is_refused(home: Path) -> None:
    with Launch(home) as first:
        first.ready()
        for port in (None, first.port):
            with Launch(home, port=port) as second:
                ended = second.ended()

            assert ended.code == 1
            assert ended.errors == [
                f"fireside: Fireside is already running on {home} (process {first.pid})"
            ]
        first.signal(signal.SIGTERM)
        assert first.ended().code == 0
