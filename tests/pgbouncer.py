"""pgbouncer in transaction mode before a test's Postgres, where the program is installed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from deploy.local.account import unprivileged_account
from deploy.local.errors import ProgramMissingError
from deploy.local.postgres import EmbeddedPostgres
from deploy.local.process import Command
from deploy.local.server import HOST, Server, make_folder


class PgBouncer(Server):
    """A pooler whose few server connections go to another client after each transaction.

    Args:
        postgres: the URL of any database of the server behind it.
        connections: how many connections to the server it shares out per database.

    Raises:
        ProgramMissingError: pgbouncer is not installed.
    """

    def __init__(self, folder: Path, postgres: str, *, connections: int = 4) -> None:
        program = program_path()
        if program is None:
            raise ProgramMissingError("pgbouncer is not installed: apt-get install pgbouncer")
        self.folder = folder
        self._postgres = urlsplit(postgres)
        self._connections = connections
        self._ini = folder / "pgbouncer.ini"
        command = Command(
            name="pgbouncer",
            argv=[program, str(self._ini)],
            log=folder.parent / f"{folder.name}.log",
            account=unprivileged_account(),
            stop_timeout=5.0,
        )
        super().__init__(None, command)

    @property
    def url(self) -> str:
        """The URL of the same database, through the pooler."""
        return self.url_of(self._postgres.path.removeprefix("/"))

    def url_of(self, database: str) -> str:
        """The URL of another database of the server, through the pooler."""
        return f"postgresql://fireside@{HOST}:{self.port}/{database}"

    def prepare(self) -> None:
        """Write the configuration; it has the password, and clients need none."""
        account = self.command.account
        if make_folder(self.folder):
            account.claim(self.folder)
        server = self._postgres
        settings = {
            "listen_addr": HOST,
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": "transaction",
            "default_pool_size": self._connections,
            "max_client_conn": 500,
            "query_wait_timeout": 10,
            "server_login_retry": 1,
            "log_connections": 0,
            "log_disconnections": 0,
        }
        self._ini.write_text(
            f"[databases]\n* = host={server.hostname} port={server.port}"
            f" user={server.username} password={server.password}\n\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in settings.items())
        )
        self._ini.chmod(0o600)
        account.claim(self._ini)

    def probe(self) -> bool:
        """Ask for one row from the server behind it."""
        try:
            with psycopg.connect(self.url, connect_timeout=2, autocommit=True) as connection:
                connection.execute("select 1", prepare=False)
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def pooled(postgres: EmbeddedPostgres, folder: Path) -> Iterator[str]:
    """The URL of a server's database through a pooler of its own, which runs for the block."""
    with PgBouncer(folder / "pgbouncer", postgres.url) as pooler:
        yield pooler.url


def program_path() -> str | None:
    """Where pgbouncer is, or None; Debian puts it where ordinary users don't look."""
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
