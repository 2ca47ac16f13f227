"""What a worker has rebuilt of the sessions that it ran last, and read of their characters'
memories: their next task reads none of it.

Postgres stays the truth: an entry says which version of a session or a character it is, and is used
only as far as the row agrees. There is nothing to save: whatever is lost from here is read again.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar
from uuid import UUID

from shared.store.held_memories import HeldMemories
from worker.shelf import Shelf
from worker.transcript import Transcript

T = TypeVar("T")

_ENTRY_BYTES = 600
"""What an entry without messages takes: its records, the key, its place in the order."""

_MESSAGE_BYTES = 41
"""What the interpreter adds to the bytes of one message: an object's head, and a pointer to it."""

_LOOK_SECONDS = 30.0

_LARGEST_PART = 8
"""An entry that would take more than this part of all bytes would drive out too many others."""


class AgentCache:
    """The least recently used go first; sessions and memories have half of the room each, and what
    is free of the other half.

    A session's entry is taken out while the session runs, and put back only after an end that was
    committed: a run that fails or loses its lease leaves none behind. A character's is taken out
    while its memories are read.

    Args:
        most: how many sessions, and how many characters, are held; 0 holds none.
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
        self.counts: Counter[str] = Counter()
        self._sessions = Shelf[Transcript](self.counts)
        self._characters = Shelf[HeldMemories](self.counts)

    def __len__(self) -> int:
        """How many sessions are held."""
        return len(self._sessions)

    @property
    def bytes(self) -> int:
        """What all entries take."""
        return self._sessions.bytes + self._characters.bytes

    @property
    def holds_any(self) -> bool:
        """Whether it may hold anything at all."""
        return self._most > 0 and self._most_bytes > 0

    def take(self, session_id: UUID) -> Transcript | None:
        """Take out what is held of a session that is about to be claimed."""
        self.drop_idle()
        return self._sessions.take(session_id)

    def keep(self, session_id: UUID, transcript: Transcript) -> None:
        """Hold a session as it stands in Postgres now."""
        self._sessions.take(session_id)
        if transcript.known is not None:
            self._keep(self._sessions, session_id, transcript, size_of(transcript))

    def take_memories(self, character_id: UUID) -> HeldMemories:
        """Take out what is held of a character's memories; maybe nothing."""
        self.drop_idle()
        return self._characters.take(character_id) or HeldMemories()

    def keep_memories(self, character_id: UUID, held: HeldMemories) -> None:
        """Hold what a recall has read."""
        self._characters.take(character_id)
        if held.since is not None:
            self._keep(self._characters, character_id, held, _ENTRY_BYTES + held.bytes)

    def drop_idle(self) -> None:
        """Hold no longer what nobody has used for too long."""
        due = self._clock() - self._idle_seconds
        self._sessions.drop_used_before(due)
        self._characters.drop_used_before(due)

    async def drop_idle_for_ever(self) -> None:
        """Do so also while nothing runs, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self.drop_idle()

    def shrink(self) -> None:
        """Hold half as many bytes as now: the process needs them otherwise."""
        rest = self.bytes // 2
        self._characters.fit_bytes(self._characters.bytes // 2, "memory")
        self._sessions.fit_bytes(rest - self._characters.bytes, "memory")

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

    def _keep(self, shelf: Shelf[T], key: UUID, held: T, size: int) -> None:
        if not self.holds_any:
            return
        if size * _LARGEST_PART > self._most_bytes:
            self.counts["evicted_bytes"] += 1
            return
        shelf.put(key, held, size, self._clock())
        self.drop_idle()
        free = self._most_bytes - self._sessions.bytes
        self._characters.fit(self._most, max(free, self._most_bytes // 2))
        self._sessions.fit(self._most, self._most_bytes - self._characters.bytes)


def size_of(transcript: Transcript) -> int:
    """The bytes of memory that an entry takes."""
    messages = transcript.messages
    return _ENTRY_BYTES + sum(map(len, messages)) + _MESSAGE_BYTES * len(messages)
