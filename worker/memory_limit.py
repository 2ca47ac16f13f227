"""How much memory this process may take, and what it does without when it has taken it (Linux)."""

import asyncio
import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import structlog

from shared.errors import SettingsError
from shared.settings import Settings
from worker.agent_cache import AgentCache
from worker.heap import trim
from worker.slots import Slots

log = structlog.get_logger(__name__)

LOOK_SECONDS = 0.25
"""How often the process looks how much it has."""

LOWEST_PART = 0.95
"""Below this part of the limit sessions are let in again, so that it does not go to and fro."""

PART_OF_CONTAINER = 0.9
"""What of a container's memory is the limit where none is set: beyond all of it the kernel ends the
process, and with it whatever it runs."""

SESSION_BYTES = 100_000
"""What a session in flight takes, with its history, its prompt and the answer as it grows."""

LITELLM_BYTES = 150_000_000
"""What litellm takes, which is imported beside the first tasks."""

FEWEST_SESSIONS = 10
"""A worker that could not run so many is not worth its start."""

_PAGE = os.sysconf("SC_PAGE_SIZE")
_UNLIMITED = 1 << 60


@dataclass(frozen=True, slots=True)
class Share:
    """What of the memory a worker may use: in all, how many sessions at once, and its cache.

    `limit` is None where there is none.
    """

    limit: int | None
    slots: int
    cache_bytes: int


def resident_bytes() -> int:
    """What this process has of the machine's memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def container_bytes(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The memory of the container that this process is in; None where it has no bound."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            found = int((root / name).read_text())
            return found if found < _UNLIMITED else None
    return None


def share_of(settings: Settings, *, resident: int, container: int | None) -> Share:
    """What the settings and the container leave to a worker that has `resident` bytes already.

    Raises:
        SettingsError: it is too little to run anything.
    """
    limit = settings.worker_memory
    if container is not None:
        most = int(container * PART_OF_CONTAINER)
        if limit is not None and limit > most:
            log.warning("the container has less memory than the limit", limit=limit, used=most)
        limit = min(limit or most, most)
    if limit is None:
        return Share(None, settings.max_in_flight, settings.cache_bytes)
    needed = resident + (LITELLM_BYTES if settings.model_path == "litellm" else 0)
    left = limit - needed
    if left < FEWEST_SESSIONS * SESSION_BYTES:
        raise SettingsError(
            f"FIRESIDE_WORKER_MEMORY: {limit:,} bytes are too few, this worker needs "
            f"{needed + FEWEST_SESSIONS * SESSION_BYTES:,}"
            + (" (FIRESIDE_MODEL_PATH=direct needs less)" if needed > resident else "")
        )
    share = Share(
        limit,
        min(settings.max_in_flight, left // SESSION_BYTES),
        min(settings.cache_bytes, left // 4),
    )
    if share.slots < settings.max_in_flight:
        log.warning("fewer tasks at once, for memory is short", tasks=share.slots, limit=limit)
    return share


class MemoryWatch:
    """Keeps a process below its limit: it lets in no more sessions, and forgets what it can.

    Args:
        limit: in bytes.
    """

    def __init__(self, limit: int, slots: Slots, cache: AgentCache) -> None:
        self._limit = limit
        self._slots = slots
        self._cache = cache
        self.short = False

    async def watch_for_ever(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self.look(resident_bytes()):
                # What Python has freed goes back to the machine: else it would count for ever.
                await asyncio.to_thread(trim)

    def look(self, resident: int) -> bool:
        """Take note of how much the process has; whether that is too much."""
        if resident > self._limit:
            self._cache.shrink()
            if not self.short:
                self._change(short=True, resident=resident)
        elif self.short and resident < self._limit * LOWEST_PART:
            self._change(short=False, resident=resident)
        return self.short

    def _change(self, *, short: bool, resident: int) -> None:
        self.short = short
        self._slots.hold_back(short)
        figures = {
            "resident": resident,
            "limit": self._limit,
            "in_flight": self._slots.taken,
            "cached": len(self._cache),
        }
        if short:
            log.warning("memory limit reached: sessions wait, the cache shrinks", **figures)
        else:
            log.info("below the memory limit: sessions are let in again", **figures)
