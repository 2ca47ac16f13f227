"""Python imports this at its start where this folder is on PYTHONPATH (see bench.stalls).

Each uvloop of the process gets a tick every 10 ms. How late the worst one came, how much processor
time its thread had used since the one before, and how long the longest garbage collection took,
stand in a file of three doubles that the bench reads and sets back; that costs about 0.2 ms of CPU
a second.
"""

import gc
import mmap
import os
import struct
import time
from pathlib import Path

import uvloop

TICK = 0.01  # seconds
FIGURES = struct.Struct("ddd")


class _Record:
    """The file of this process."""

    def __init__(self, folder: Path) -> None:
        path = folder / str(os.getpid())
        path.write_bytes(bytes(FIGURES.size))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), FIGURES.size)

    def note(self, *seconds: float) -> None:
        """Keep the worst of each figure: late, busy, collecting."""
        worst = FIGURES.unpack_from(self._memory)
        if any(one > other for one, other in zip(seconds, worst, strict=True)):
            FIGURES.pack_into(self._memory, 0, *map(max, seconds, worst))


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
            self._due, self._busy = time.monotonic() + TICK, time.thread_time()
            self.call_later(TICK, self._tick)

        def _tick(self) -> None:
            record.note(time.monotonic() - self._due, time.thread_time() - self._busy, 0.0)
            self._begin()

    # new_event_loop() and run() both look the class up here.
    uvloop.Loop = WatchedLoop  # type: ignore[misc] # to replace the class is the point


if folder := os.environ.get("BENCH_STALLS"):
    kept = _Record(Path(folder))
    _watch(kept)
    _watch_collections(kept)
