"""What a worker has rebuilt of the sessions that it ran last: their next task reads none of it.

Postgres stays the truth: an entry says which version of a session it is, and a claim uses it only
as far as the row agrees. There is nothing to save: whatever is lost from here is read again.
"""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from worker.transcript import Transcript

_ENTRY_BYTES = 600
"""What an entry without messages takes: its records, the key, its place in the order."""

_MESSAGE_BYTES = 41
"""What the interpreter adds to the bytes of one message: an object's head, and a pointer to it."""

_LOOK_SECONDS = 30.0

_LARGEST_PART = 8
"""An entry that would take more than this part of all bytes would drive out too many others."""


@dataclass(frozen=True, slots=True)
class _Entry:
    transcript: Transcript
    size: int
    used_at: float


class AgentCache:
    """The least recently used sessions go first.

    A session's entry is taken out while the session runs, and put back only after an end that was
    committed: a run that fails or loses its lease leaves none behind.

    Args:
        most: how many sessions are held; 0 holds none.
        most_bytes: how much memory all entries may take together.
        idle_seconds: how long an entry is held that nobody uses.

    `counts` are `hit`, `part` (held, but another worker had gone on since), `miss`, and for what
    was held no longer `evicted_count`, `evicted_bytes`, `evicted_idle`, `evicted_memory`.
    """

    def __init__(
        self,
        *,
        most: int,
        most_bytes: int,
        idle_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._idle_seconds = idle_seconds
        self._clock = clock
        self._entries: OrderedDict[UUID, _Entry] = OrderedDict()
        self.bytes = 0
        self.counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def holds_any(self) -> bool:
        """Whether it may hold anything at all."""
        return self._most > 0 and self._most_bytes > 0

    def take(self, session_id: UUID) -> Transcript | None:
        """Take out what is held of a session that is about to be claimed."""
        self.drop_idle()
        entry = self._entries.get(session_id)
        if entry is None:
            return None
        self._drop(session_id)
        return entry.transcript

    def keep(self, session_id: UUID, transcript: Transcript) -> None:
        """Hold a session as it stands in Postgres now."""
        self._drop(session_id)
        if transcript.known is None or not self.holds_any:
            return
        size = size_of(transcript)
        if size * _LARGEST_PART > self._most_bytes:
            self.counts["evicted_bytes"] += 1
            return
        self._entries[session_id] = _Entry(transcript, size, self._clock())
        self.bytes += size
        self._make_room()

    def drop_idle(self) -> None:
        """Hold no longer what nobody has used for too long."""
        due = self._clock() - self._idle_seconds
        while self._entries and next(iter(self._entries.values())).used_at < due:
            self._evict("idle")

    async def drop_idle_for_ever(self) -> None:
        """Do so also while nothing runs, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self.drop_idle()

    def shrink(self) -> None:
        """Hold half as many bytes as now: the process needs them otherwise."""
        rest = self.bytes // 2
        while self._entries and self.bytes > rest:
            self._evict("memory")

    def count(self, held: Transcript | None, *, after: int | None, read: int) -> None:
        """Count what a claim made of an entry.

        Args:
            after: the message that the claim read on from, None where it read all.
            read: how many messages it read.
        """
        if held is None or after is None:
            self.counts["miss"] += 1
        else:
            self.counts["part" if read else "hit"] += 1

    def _make_room(self) -> None:
        self.drop_idle()
        while len(self._entries) > self._most:
            self._evict("count")
        while self.bytes > self._most_bytes:
            self._evict("bytes")

    def _evict(self, reason: str) -> None:
        self._drop(next(iter(self._entries)))
        self.counts[f"evicted_{reason}"] += 1

    def _drop(self, session_id: UUID) -> None:
        entry = self._entries.pop(session_id, None)
        if entry is not None:
            self.bytes -= entry.size


def size_of(transcript: Transcript) -> int:
    """The bytes of memory that an entry takes."""
    messages = transcript.messages
    return _ENTRY_BYTES + sum(map(len, messages)) + _MESSAGE_BYTES * len(messages)
