"""How one-shot commands end: real processes, broken off while they wait."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared.command import exit_code_of
from shared.errors import InvalidRequest
from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[2]


@contextmanager
def started(command: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    with hearing_ctrl_c():
        process = subprocess.Popen(
            [sys.executable, "-m", *command.split()],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    with process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def hearing_ctrl_c() -> Iterator[None]:
    """What this process ignores, those that it starts ignore, too: a shell has what it runs in the
    background ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture
def silent_server() -> Iterator[socket.socket]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        yield server


@pytest.mark.parametrize(
    "command",
    [
        "api.keys list",
        "shared.budgets list",
        "shared.dead_tasks list",
        "shared.lineage",
        "shared.migrate",
        "worker.embed --words",
    ],
)
def test_ctrl_c_ends_a_command_without_a_word(command: str, silent_server: socket.socket) -> None:
    port = silent_server.getsockname()[1]
    with started(command, DATABASE_URL=f"postgresql://me@127.0.0.1:{port}/db") as process:
        connection, _ = silent_server.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=PATIENCE)

    assert (process.returncode, said) == (130, "")


def test_ctrl_c_ends_the_check_of_stories_without_a_word() -> None:
    command = "worker.ink --paths 100000000 nothing.ink stories/last-lamp"
    with started(command, PYTHONUNBUFFERED="1") as process:
        assert process.stdout is not None
        assert "there is no story" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=PATIENCE)

    assert (process.returncode, said) == (130, "")


def test_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        raise InvalidRequest("no such thing")

    assert [exit_code_of(lambda: None), exit_code_of(lambda: 7), exit_code_of(refuse)] == [0, 7, 1]
    assert capsys.readouterr() == ("", "fireside: no such thing\n")


def test_what_a_terminal_has_no_letters_for_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    def list_labels() -> None:
        "\u65e5\u672c".encode("latin-1")

    assert exit_code_of(list_labels) == 1
    assert "'latin-1' codec can't encode" in capsys.readouterr().err
