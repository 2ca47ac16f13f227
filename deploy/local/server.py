"""A child that listens on a port of this machine, and the folder and password that it keeps."""

import http.client
import os
import secrets
import urllib.parse
from pathlib import Path

import deploy
from deploy.local.errors import DataFolderError
from deploy.local.ports import free_port
from deploy.local.process import Child, Command

HOST = "127.0.0.1"
ROOT = Path(deploy.__file__).parents[1]  # where our packages are


class Server(Child):
    """A child with a port: the one asked for, or a free one that stays the same over restarts."""

    def __init__(self, port: int | None, command: Command) -> None:
        super().__init__(command)
        self._any_port = port is None
        self._was_ready = False
        self.port = port or free_port()

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait as Child does; from then on the port is known to others and is kept."""
        super().wait_ready(timeout)
        self._was_ready = True

    def retry(self, output: list[str]) -> bool:
        """Take another port if somebody was quicker, unless the port is already known to others."""
        taken = any("address already in use" in line.lower() for line in output)
        if taken and self._any_port and not self._was_ready:
            self.port = free_port()
            return True
        return False


class HttpServer(Server):
    """A server that is ready when a GET of `path` is answered with 200."""

    path = "/"

    def probe(self) -> bool:
        """Ask once."""
        return answers(f"http://{HOST}:{self.port}{self.path}")


def answers(url: str, *, timeout: float = 2.0) -> bool:
    """Tell whether a GET of an http URL is answered with 200 within `timeout` seconds."""
    return fetch(url, timeout=timeout) is not None


def fetch(url: str, *, timeout: float = 2.0) -> bytes | None:
    """Return the body that a GET of an http URL is answered with, None unless with status 200."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or HOST, parts.port, timeout=timeout)
    try:
        connection.request("GET", parts.path or "/")
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return body if response.status == http.client.OK else None


def make_folder(folder: Path) -> bool:
    """Make a folder that only its owner may enter; False if it is there, DataFolderError if it
    cannot be.
    """
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        if folder.is_dir():
            return False
        raise DataFolderError(f"{folder} is a file, but a folder is needed there") from None
    except OSError as error:
        raise DataFolderError(f"cannot make the folder {folder}: {error.strerror}") from error
    return True


def keep_secret(file: Path) -> str:
    """Return the password kept in a file, after making one (256 bits, mode 0600) if there is
    none.
    """
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        secret = _read(file)
        if not secret.replace("-", "").replace("_", "").isalnum() or not secret.isascii():
            raise DataFolderError(f"{file} does not hold a password") from None
        return secret
    except OSError as error:
        raise DataFolderError(f"cannot write {file}: {error.strerror}") from error
    secret = secrets.token_urlsafe(32)
    with os.fdopen(handle, "w", encoding="ascii") as opened:
        opened.write(secret + "\n")
    return secret


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        raise DataFolderError(f"cannot read {file}: {error.strerror}") from error
