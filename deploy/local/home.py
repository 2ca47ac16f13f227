"""The folder that keeps everything of one installation: data, logs, passwords, and the lock
against a second launcher.
"""

import contextlib
import fcntl
import os
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.local.errors import DataFolderError
from deploy.local.server import make_folder

FIRST_ROOM = 200 << 20  # bytes that a first start needs, with some to live on
ROOM = 50 << 20  # bytes that any later start needs
LARGEST_LOG = 8 * 1024 * 1024  # bytes
_LAST_RUN = 30.0  # seconds that the servers of a killed launcher may need to end


@dataclass(frozen=True)
class Home:
    """The folder `path`; each server has a folder of its own in it."""

    path: Path

    @property
    def postgres(self) -> Path:
        """Where Postgres keeps its data and password."""
        return self.path / "postgres"

    @property
    def valkey(self) -> Path:
        """Where Valkey keeps its data and password."""
        return self.path / "valkey"

    @property
    def settings(self) -> Path:
        """A file for shells with where the servers are; it is there as long as they run."""
        return self.path / "env"

    def keep_settings(self, settings: Mapping[str, str]) -> None:
        """Write the file, with passwords in it and for this user alone."""
        unfinished = self.settings.with_suffix(".new")
        unfinished.unlink(missing_ok=True)  # of a launcher that was killed, whatever its mode
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as to:
            to.writelines(f"{name}={shlex.quote(value)}\n" for name, value in settings.items())
        unfinished.replace(self.settings)

    def forget_settings(self) -> None:
        """Remove the file: nobody is to take the next run's servers for this one's."""
        with contextlib.suppress(OSError):
            self.settings.unlink()

    def log(self, name: str) -> Path:
        """Return the log file of a child."""
        return self.path / "logs" / f"{name}.log"

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """Make the folder if needed, see that it can be used, and hold its lock; gives the lock's
        handle.

        DataFolderError if it is no folder, cannot be written, has no room, or another launcher
        runs on it.
        """
        make_folder(self.path)
        try:
            handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DataFolderError(f"cannot write in {self.path}: {error.strerror}") from error
        try:
            self._take(handle)
            self._check_room()
            make_folder(self.path / "logs")
            self._shorten_logs()
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
            yield handle
        finally:
            os.close(handle)

    def require_alone(self) -> None:
        """Raise DataFolderError if another launcher runs on the folder; makes nothing."""
        try:
            handle = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return  # none has run on it yet, or opening it will tell what is wrong
        try:
            self._take(handle)
        finally:
            os.close(handle)

    def _take(self, handle: int) -> None:
        """Take the lock; wait for it only while the launcher that had it is dead and its servers
        end.
        """
        deadline = time.monotonic() + _LAST_RUN
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(handle, 32, 0).decode(errors="replace").strip()
                if (not holder.isdigit() or _lives(int(holder))) or time.monotonic() > deadline:
                    raise DataFolderError(
                        f"Fireside is already running on {self.path} (process {holder or '?'})"
                    ) from None
                time.sleep(0.05)
            else:
                return

    def _check_room(self) -> None:
        free = shutil.disk_usage(self.path).free
        needed = ROOM if (self.postgres / "data").exists() else FIRST_ROOM
        if free < needed:
            raise DataFolderError(
                f"the disk of {self.path} is full: "
                f"{free >> 20} MB are free, {needed >> 20} MB are needed"
            )

    def _shorten_logs(self) -> None:
        for log in (self.path / "logs").glob("*.log"):
            if log.stat().st_size > LARGEST_LOG:
                log.replace(log.with_suffix(".log.old"))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
