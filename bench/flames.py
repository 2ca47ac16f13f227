"""Flame graphs of running processes, by py-spy."""

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

RATE = 200  # samples a second


def py_spy() -> str | None:
    """Where py-spy is: beside this Python, or on the path."""
    return shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")


@contextmanager
def recorded(
    parts: Mapping[str, list[int]], folder: Path, *, seconds: float
) -> Iterator[list[str]]:
    """Record each process for so many seconds; yields a list that ends as one line for each.

    A process that py-spy may not attach to costs its graph, not the run.
    """
    lines: list[str] = []
    program = py_spy()
    if program is None:
        lines.append("no flame graphs: py-spy is not installed (make setup installs it)")
        yield lines
        return
    folder.mkdir(parents=True, exist_ok=True)
    spies = []
    for part, pids in parts.items():
        for number, pid in enumerate(pids):
            graph = folder / f"{part}-{number}.svg"
            argv = [program, "record", "--pid", str(pid), "--output", str(graph)]
            argv += ["--duration", str(round(seconds)), "--rate", str(RATE), "--nonblocking"]
            spy = subprocess.Popen(
                argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            spies.append((graph, spy))
    try:
        yield lines
    finally:
        for graph, spy in spies:
            lines.append(_ended(graph, spy, seconds))


def _ended(graph: Path, spy: subprocess.Popen[str], seconds: float) -> str:
    try:
        _, said = spy.communicate(timeout=seconds + 30)
    except subprocess.TimeoutExpired:
        spy.kill()
        _, said = spy.communicate()
    if spy.returncode == 0 and graph.exists():
        return f"flame graph: {graph}"
    reason = " ".join(said.split())[-200:] or f"exit code {spy.returncode}"
    return f"no flame graph {graph.name}: {reason}"
