"""Python imports this at its start where this folder is on PYTHONPATH (see bench.stalls).

Each uvloop of the process gets a tick every 10 ms while it is watched. How late the worst one came,
how much processor time its thread had used since the one before, and how long the longest garbage
collection took, stand in a file of doubles that the bench reads and sets back. A process that would
else be idle pays up to 10 ms of CPU a second for the ticks, so it is watched only when it is asked
for: the first double of the file says so.
"""

import gc
import mmap
import os
import struct
import time
from pathlib import Path

import uvloop

TICK = 0.01  # seconds
REST = 0.25  # seconds between two looks whether to watch
FIGURES = struct.Struct("dddd")
WATCHING = 1.0


class _Record:
    """The file of this process."""

    def __init__(self, folder: Path, watching: float) -> None:
        path = folder / str(os.getpid())
        path.write_bytes(FIGURES.pack(watching, 0.0, 0.0, 0.0))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), FIGURES.size)

    def watches(self) -> bool:
        """Whether anybody wants to know."""
        return bool(FIGURES.unpack_from(self._memory)[0] == WATCHING)

    def note(self, *seconds: float) -> None:
        """Keep the worst of each figure: late, busy, collecting."""
        watching, *worst = FIGURES.unpack_from(self._memory)
        if watching == WATCHING:
            FIGURES.pack_into(self._memory, 0, watching, *map(max, seconds, worst))


def _watch_collections(record: _Record) -> None:
    began = 0.0

    def collecting(phase: str, info: dict[str, int]) -> None:
        nonlocal began
        if phase == "start":
            began = time.monotonic()
        else:
            record.note(0.0, 0.0, time.monotonic() - began)

    gc.callbacks.append(collecting)


def _watch(record: _Record) -> None:
    class WatchedLoop(uvloop.Loop):
        """A loop that ticks."""

        def __init__(self) -> None:
            super().__init__()
            self._due = self._busy = 0.0
            self.call_soon(self._begin)

        def _begin(self) -> None:
            wait = TICK if record.watches() else REST
            self._due, self._busy = time.monotonic() + wait, time.thread_time()
            self.call_later(wait, self._tick)

        def _tick(self) -> None:
            record.note(time.monotonic() - self._due, time.thread_time() - self._busy, 0.0)
            self._begin()

    # new_event_loop() and run() both look the class up here.
    uvloop.Loop = WatchedLoop  # type: ignore[misc] # to replace the class is the point


if folder := os.environ.get("BENCH_STALLS"):
    kept = _Record(Path(folder), float(os.environ.get("BENCH_STALLS_WATCHED", "0")))
    _watch(kept)
    _watch_collections(kept)
