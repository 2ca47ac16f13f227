"""Children one by one: how they end, with whom they die, and what is done about a bad start."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from deploy.local.account import Account, unprivileged_account
from deploy.local.errors import (
    DataFolderError,
    GivenUpError,
    LaunchError,
    PortInUseError,
    StartFailedError,
)
from deploy.local.ports import free_port, is_free, require_free
from deploy.local.postgres import NOT_DURABLE, EmbeddedPostgres
from deploy.local.process import Child, Command, run
from deploy.local.server import ROOT, Server, keep_secret
from deploy.local.supervisor import Policy, Supervisor
from deploy.local.warden import MARK, Warden, marked
from tests.deploy.launches import PATIENCE, Watch

Shell = Callable[..., Command]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Makes commands that run a line of shell and log to NAME.log."""

    def command(line: str, *, name: str = "child", start_timeout: float = 20) -> Command:
        log = tmp_path / f"{name}.log"
        return Command(name=name, argv=["sh", "-c", line], log=log, start_timeout=start_timeout)

    return command


class Says(Child):
    """Ready as soon as it has printed a line."""

    def probe(self) -> bool:
        return bool(self.output())


def test_a_child_that_will_not_end_is_killed_with_its_group(shell: Shell) -> None:
    child = Says(shell("trap '' TERM; sleep 600 & echo $!; while :; do wait; done"))
    with child:
        grandchild = Watch({int(child.output()[0]): "sleep"})
        child.stop(timeout=0.05)

    assert child.returncode == -signal.SIGKILL
    assert grandchild.left_after(PATIENCE) == []


def test_what_a_child_leaves_in_its_group_ends_with_it(shell: Shell, tmp_path: Path) -> None:
    child = Says(shell(f"sleep 600 & echo $!; until [ -e {tmp_path}/go ]; do sleep 0.01; done"))
    child.start()
    left = Watch({int(child.output()[0]): "sleep"})
    (tmp_path / "go").touch()

    assert child.wait(PATIENCE)
    assert left.left_after(PATIENCE) == []


def test_a_start_that_ends_or_lasts_too_long_says_why(shell: Shell) -> None:
    with pytest.raises(
        StartFailedError, match=r"^child ended with exit code 3 .*: an error: cold$"
    ):
        Never(shell("echo 'an error: cold'; echo bye; exit 3")).start()
    with pytest.raises(StartFailedError, match=r"starting: fireside: it can't start$"):
        Never(shell('echo warn_of_error; echo "fireside: it can\'t start"; exit 1')).start()
    with pytest.raises(StartFailedError, match=r"^slow was not ready after 0 s"):
        Never(shell("sleep 600", name="slow", start_timeout=0.05)).start()


class Never(Child):
    """Never ready."""

    def probe(self) -> bool:
        return False


def test_a_program_that_is_missing_says_so(tmp_path: Path) -> None:
    command = Command(name="absent", argv=["/nowhere/program"], log=tmp_path / "log")

    assert run(command) == (127, ["cannot run /nowhere/program: No such file or directory"])


def test_sigpipe_is_not_ignored_by_children(shell: Shell) -> None:
    code, output = run(shell("grep SigIgn /proc/self/status"))

    assert code == 0
    assert not int(output[0].split()[1], 16) & (1 << (signal.SIGPIPE - 1))


def test_children_are_stopped_in_reverse_order(shell: Shell, tmp_path: Path) -> None:
    supervisor = Supervisor(report=lambda _: None)
    names = ("first", "second", "third")
    for name in names:
        trap = f"trap 'echo {name} >> {tmp_path}/order; exit' TERM"
        child = Says(shell(f"{trap}; echo up; while :; do sleep 0.01; done", name=name))
        supervisor.add(child)
        supervisor.wait_ready(child)

    supervisor.stop()

    assert (tmp_path / "order").read_text().split() == ["third", "second", "first"]


def test_a_crashing_child_is_given_up_after_its_attempts(shell: Shell) -> None:
    told: list[str] = []
    policy = Policy(first_pause=0.001, attempts=2)
    supervisor = Supervisor(report=told.append, policy=policy)
    supervisor.add(Child(shell("exit 7")))

    with pytest.raises(GivenUpError, match="child ended 3 times in a row, last with exit code 7"):
        supervisor.run()

    crashes = [line for line in told if "unexpectedly" in line]
    assert crashes == ["child ended unexpectedly with exit code 7; starting it again"] * 2


def test_pauses_grow_up_to_a_limit() -> None:
    policy = Policy(first_pause=1, longest_pause=5)

    assert [policy.pause(n) for n in (1, 2, 3, 4, 9)] == [1, 2, 4, 5, 5]


def test_the_warden_ends_what_its_launcher_leaves(shell: Shell, tmp_path: Path) -> None:
    mark = "0123456789abcdef"
    os.mkfifo(never := tmp_path / "never")
    # No other program is run after the line: meanwhile the environment could not be read.
    detached = f"{MARK}={mark} setsid sh -c 'echo $$; read word < {never}' & wait"
    child = Says(shell(f"trap 'echo asked > {tmp_path}/asked; exit' TERM; {detached}"))
    warden = Warden(mark)
    child.start()
    warden.watch(child)
    stray = int(child.output()[0])
    assert marked(mark) == {stray}
    watch = Watch({stray: "sh"})

    warden.close()

    assert watch.left_after(PATIENCE) == []
    assert child.wait(PATIENCE)
    assert (tmp_path / "asked").read_text() == "asked\n"


def test_the_death_signal_reaches_postgres_without_a_warden(tmp_path: Path) -> None:
    """Also through the change of account, which clears it if it comes later."""
    script = (
        "import sys; from pathlib import Path; from deploy.local.postgres import EmbeddedPostgres\n"
        "server = EmbeddedPostgres(Path(sys.argv[1])).start(); print(server.pid, flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "pg")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as launcher:
        assert launcher.stdout is not None
        watch = Watch({int(launcher.stdout.readline()): "postgres"})
        launcher.kill()

    assert watch.left_after(PATIENCE) == []
    log = (tmp_path / "pg" / "postgres.log").read_text()
    assert "received fast shutdown request" in log


def test_a_lock_whose_number_another_process_has_does_not_hinder(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "pg", settings=NOT_DURABLE) as server:
        lock = server.data / "postmaster.pid"
        left = lock.read_text()
        server.kill()
        lock.write_text(left.replace(str(server.pid), str(os.getpid()), 1))
        server.start()
        with psycopg.connect(server.url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_half_made_cluster_is_not_used(tmp_path: Path) -> None:
    unfinished = tmp_path / "pg" / "data.unfinished"
    unfinished.mkdir(parents=True, mode=0o700)
    (unfinished / "PG_VERSION").write_text("18\n")
    server = EmbeddedPostgres(tmp_path / "pg", settings=NOT_DURABLE)
    os.chown(tmp_path / "pg", server.command.account.uid, -1)

    with server:
        assert (server.data / "postgresql.conf").exists()
    assert not unfinished.exists()


def test_two_postgres_servers_do_not_share_a_folder(postgres_server: EmbeddedPostgres) -> None:
    other = EmbeddedPostgres(postgres_server.folder, patience=0.1)

    with pytest.raises(
        DataFolderError, match=rf"another Postgres \(process {postgres_server.pid}\)"
    ):
        other.start()


def test_a_free_port_is_not_one_of_the_kernels() -> None:
    ports = {free_port() for _ in range(20)}

    assert len(ports) > 10
    assert all(15_000 <= port < 32_768 for port in ports)
    assert all(is_free("127.0.0.1", port) for port in ports)


def test_a_server_that_was_too_slow_for_its_port_takes_another(tmp_path: Path) -> None:
    class Once(Server):
        """Fails as a server does whose port has just been taken; the second port is good."""

        def prepare(self) -> None:
            tried.append(self.port)
            line = (
                "echo ready; sleep 600" if len(tried) > 1 else "echo Address already in use; exit 1"
            )
            self.command = replace(self.command, argv=["sh", "-c", line])

        def probe(self) -> bool:
            return self.output() == ["ready"]

    tried: list[int] = []
    command = Command(name="once", argv=(), log=tmp_path / "log")
    with Once(None, command) as server:
        assert server.port == tried[1] != tried[0]
    tried.clear()
    with pytest.raises(StartFailedError, match="Address already in use"):
        Once(free_port(), command).start()


def test_an_address_that_is_not_ours_or_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(PortInUseError):
        require_free("127.0.0.1", other.getsockname()[1])
    with pytest.raises(LaunchError, match=r"cannot listen on 192\.0\.2\.1 port 8000"):
        require_free("192.0.2.1", 8000)


@pytest.mark.parametrize("content", ["", "two words", "pässword"])
def test_a_password_file_with_something_else(tmp_path: Path, content: str) -> None:
    (tmp_path / "password").write_text(content)

    with pytest.raises(DataFolderError, match="does not hold a password"):
        keep_secret(tmp_path / "password")


def test_passwords_are_for_their_owner_alone(postgres_server: EmbeddedPostgres) -> None:
    secret = keep_secret(postgres_server.folder / "password")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres_server.url.replace(secret, "guess"))

    assert (postgres_server.folder / "password").stat().st_mode & 0o777 == 0o600
    assert secret not in Path(f"/proc/{postgres_server.pid}/cmdline").read_text()


def test_postgres_has_no_power_over_the_machine(postgres_server: EmbeddedPostgres) -> None:
    status = Path(f"/proc/{postgres_server.pid}/status").read_text()
    capabilities = next(line for line in status.splitlines() if line.startswith("CapEff"))

    assert int(capabilities.split()[1], 16) == 0
    as_root = {Account.NAMESPACE, Account.NOBODY}
    assert unprivileged_account() in (as_root if os.geteuid() == 0 else {Account.SELF})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to run Postgres as somebody else")
def test_as_root_where_namespaces_are_forbidden() -> None:
    """Postgres runs as nobody, who must be able to enter the folders above; none is opened for
    it.
    """
    with tempfile.TemporaryDirectory() as top:
        closed = Path(top) / "folder"
        server = EmbeddedPostgres(closed, settings=NOT_DURABLE, account=Account.NOBODY)
        with pytest.raises(DataFolderError, match=f"cannot enter {top}: put FIRESIDE_HOME"):
            server.start()
        Path(top).chmod(0o711)
        with server:
            owner = Path(f"/proc/{server.pid}").stat().st_uid
            assert (owner, server.data.stat().st_uid) == (65_534, 65_534)
        other = EmbeddedPostgres(closed, account=Account.SELF)
        with pytest.raises(DataFolderError, match="belongs to user 65534, not to 0"):
            other.start()
