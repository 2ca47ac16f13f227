"""Which account a server that refuses root runs under; an ordinary user's is the user's own."""

import functools
import os
import subprocess
import sys
from enum import StrEnum
from pathlib import Path

SHIM = Path(__file__).with_name("shim.py")
NOBODY = 65534


class Account(StrEnum):
    """How a child runs: as we are, as another number in a user namespace, or as nobody."""

    SELF = "self"
    NAMESPACE = "namespace"
    NOBODY = "nobody"

    def claim(self, folder: Path) -> None:
        """Give a folder that we have just made to this account; nothing for the first two."""
        if self is Account.NOBODY:
            os.chown(folder, NOBODY, NOBODY)

    @property
    def uid(self) -> int:
        """The owner that files of this account have, seen from here."""
        return NOBODY if self is Account.NOBODY else os.geteuid()


def shim_command(account: Account, *, parent: int, signum: int) -> list[str]:
    """Return what stands before a program's own command line."""
    return [
        *(sys.executable, "-I", "-S", str(SHIM)),
        *("--parent", str(parent), "--signal", str(int(signum)), "--account", str(account), "--"),
    ]


@functools.cache
def unprivileged_account() -> Account:
    """Choose the account for a program that refuses root; tries the kernel once.

    A user namespace is preferred: the files stay root's own, so no folder has to be opened to
    others. Where it is forbidden (many containers), the program runs as nobody.
    """
    if os.geteuid() != 0:
        return Account.SELF
    trial = [*shim_command(Account.NAMESPACE, parent=0, signum=0), "true"]
    allowed = subprocess.run(trial, capture_output=True, timeout=20).returncode == 0
    return Account.NAMESPACE if allowed else Account.NOBODY
