"""The last step before a child's own program: runs alone, without our packages, then execs it.

    python -I -S shim.py --parent PID --signal N [--account ACCOUNT] -- PROGRAM ARGS...

It asks the kernel (Linux) to signal this process when its parent's thread dies, and changes the
account for programs that refuse to run as root. A small program instead of `preexec_fn`, because
running Python between fork and exec is unsafe in a process with threads. Exit code 126: cannot
change the account, 127: cannot run the program.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000
NOBODY = 65534  # the kernel's overflow id, nobody's id on every common Linux


def main(argv: list[str]) -> None:
    """Read the arguments, prepare the process and exec; never returns."""
    split = argv.index("--")
    options = dict(zip(argv[:split:2], argv[1:split:2], strict=True))
    program = argv[split + 1 :]
    try:
        change_account(options.get("--account", "self"))
    except OSError as error:
        fail(126, f"cannot change to the account for {program[0]}: {error.strerror}")
    die_with(int(options["--parent"]), int(options["--signal"]))
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and exec would pass that on
    try:
        os.execvp(program[0], program)
    except OSError as error:
        fail(127, f"cannot run {program[0]}: {error.strerror}")


def change_account(account: str) -> None:
    """Become a user other than root; "namespace" keeps root's files reachable under another
    number.
    """
    if account == "namespace":
        owner, group = os.geteuid(), os.getegid()
        call_libc("unshare", CLONE_NEWUSER)
        write("/proc/self/setgroups", "deny")
        write("/proc/self/gid_map", f"{NOBODY} {group} 1")
        write("/proc/self/uid_map", f"{NOBODY} {owner} 1")
    elif account == "nobody":
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def die_with(parent: int, signum: int) -> None:
    """Ask for `signum` at the parent's death; must follow a change of account, which clears it."""
    if signum and sys.platform == "linux":
        call_libc("prctl", PR_SET_PDEATHSIG, signum)
        if os.getppid() != parent:  # it died before we asked
            fail(1, "the launcher is gone")


def call_libc(name: str, *arguments: int) -> None:
    """Call a C function that Python 3.11 has no binding for; OSError with its errno if it fails."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def write(path: str, text: str) -> None:
    """Write one of the kernel's files, which take their content in a single write."""
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def fail(code: int, message: str) -> None:
    """Say why on standard error, which is the child's log, and end."""
    print(message, file=sys.stderr, flush=True)
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
