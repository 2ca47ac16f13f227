"""CPU time and memory of process trees, from /proc (Linux)."""

import os
from collections.abc import Iterable
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def tree(pid: int) -> list[int]:
    """The process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        todo += children.get(one, [])
    return found


def cpu_seconds(roots: Iterable[int]) -> float:
    """User and system time of the trees, that of reaped children included, in seconds."""
    ticks = 0
    for root in roots:
        for pid in tree(root):
            if fields := _stat(pid):
                ticks += sum(int(value) for value in fields[11:15])
    return ticks / _TICKS


def pss_megabytes(roots: Iterable[int]) -> float:
    """Proportional set size of the trees: shared pages counted once, in MB."""
    kilobytes = 0
    for root in roots:
        for pid in tree(root):
            try:
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue
            lines = (line.split() for line in rollup.splitlines())
            kilobytes += sum(int(line[1]) for line in lines if line[0] == "Pss:")
    return kilobytes * 1024 / 1e6


def ended(pids: Iterable[int]) -> list[int]:
    """Those of these processes that run no more, reaped or not."""
    return [pid for pid in pids if (_stat(pid) or ["X"])[0] in "XZ"]


def rss_megabytes(pids: Iterable[int]) -> float:
    """Resident size of these processes alone: pages that they share are counted for each, in MB."""
    pages = 0
    for pid in pids:
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:
            continue
    return pages * _PAGE / 1e6


def busy_seconds() -> float:
    """What all processors of the machine have worked so far, in seconds."""
    ticks = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle, waiting = ticks[3:5]
    return (sum(ticks) - idle - waiting) / _TICKS


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, from the state on; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
