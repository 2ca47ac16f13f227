"""Things by key, as many as there is room for: the least recently used go first."""

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar
from uuid import UUID

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    held: T
    size: int
    used_at: float


class Shelf(Generic[T]):
    """Entries in the order in which they were put there; `bytes` is what all of them take.

    Args:
        counts: where what goes before it is taken out is counted, as `evicted_` and the reason.
    """

    def __init__(self, counts: Counter[str]) -> None:
        self._entries: OrderedDict[UUID, _Entry[T]] = OrderedDict()
        self._counts = counts
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def take(self, key: UUID) -> T | None:
        """Take an entry out, if it is there."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        self.bytes -= entry.size
        return entry.held

    def put(self, key: UUID, held: T, size: int, now: float) -> None:
        """Put an entry there, in place of what was there by its key."""
        self.take(key)
        self._entries[key] = _Entry(held, size, now)
        self.bytes += size

    def drop_used_before(self, due: float) -> None:
        """Drop what nobody has used since then."""
        while self._entries and next(iter(self._entries.values())).used_at < due:
            self._evict("idle")

    def fit(self, most: int, most_bytes: int) -> None:
        """Drop what is too much."""
        while len(self._entries) > most:
            self._evict("count")
        self.fit_bytes(most_bytes, "bytes")

    def fit_bytes(self, most: int, reason: str) -> None:
        """Drop what takes too much."""
        while self._entries and self.bytes > most:
            self._evict(reason)

    def _evict(self, reason: str) -> None:
        self.take(next(iter(self._entries)))
        self._counts[f"evicted_{reason}"] += 1
