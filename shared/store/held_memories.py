"""What is held of a character's memories from one recall to the next.

A character with a long past has thousands of memories, which are the same for each cue but for
their likeness to it: to read them again takes most of the time of a recall.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import count
from sys import getsizeof, intern
from typing import Any

from shared.memories import MemoryColumns, MemoryMatches
from shared.store.columns import split_keys

MOST = 2_500
"""So many are held at the most: there may be some among them that were deleted long ago."""

_ROW_BYTES = 580
"""What a memory takes without its text: its key and its values, their places in the columns and in
those that were asked for last, and what the ranking makes of it (108)."""

_WORD_BYTES = 25
"""What each of its words takes: its place among those that have the word, and a share of that."""


class HeldMemories:
    """The memories of one character that were created up to `until`, as they were while its row was
    the one of `since`; none as long as that is None. `bytes` is about what they take."""

    __slots__ = (
        *("_columns", "_having", "_places", "_values", "bytes", "since", "until"),
        *("_last", "_last_keys", "_last_order", "_last_places"),
    )

    def __init__(self) -> None:
        self.drop()

    def drop(self) -> None:
        """Hold nothing: the next recall reads everything."""
        self.since: datetime | None = None
        self.until: datetime | None = None
        self.bytes = 0
        self._places: dict[bytes, int] = {}
        # The garbage collector passes over tuples of what can hold nothing itself, and not over
        # lists of it.
        self._columns: list[tuple[Any, ...]] = []
        self._values: dict[Any, Any] = {}
        self._having: dict[str, tuple[int, ...]] = {}  # the places of those that have a word
        # Mostly the same are recallable as the last time: until the window is cut.
        self._last_keys = b""
        self._last_order: Sequence[int] | None = None
        self._last_places: Sequence[int] = ()
        self._last = MemoryColumns()

    def take(
        self, since: datetime | None, until: datetime | None, columns: Sequence[Sequence[Any]]
    ) -> None:
        """Take up what a recall has read; instead of what was held where that is no longer so.

        Args:
            columns: those of `MemoryColumns` down to `said_at`, and the words of each memory, a
                line each.
        """
        if since is None or since != self.since or len(self._places) > MOST:
            self.drop()
        self.since, self.until = since, until
        keys, sessions, kinds, nos, parts, roles, speakers, texts, weights, *times, words = columns
        if not keys:
            return
        first = len(self._places)
        new = (
            *(keys, [session or None for session in self._once(sessions)], self._once(kinds)),
            *([no or None for no in nos], parts, self._once(roles), self._once(speakers)),
            *(texts, self._once(weights), *times, self._note(words, first)),
        )
        self._places.update(zip(keys, count(first)))
        held = self._columns or [()] * len(new)
        self._columns = [(*column, *values) for column, values in zip(held, new, strict=True)]
        self.bytes += _ROW_BYTES * len(keys) + sum(map(getsizeof, texts))
        self.bytes += _WORD_BYTES * sum(self._columns[-1][first:])

    def _note(self, words: Sequence[str], first: int) -> list[int]:
        """Note in which of the memories from a place on each word is; how many words each has."""
        new: defaultdict[str, list[int]] = defaultdict(list)
        lengths = []
        for place, lines in enumerate(words, first):
            of_one = lines.split("\n") if lines else ()
            for word in of_one:
                new[word].append(place)
            lengths.append(len(of_one))
        for word, places in new.items():
            # Characters talk about much the same things.
            self._having[intern(word)] = (*self._having.get(word, ()), *places)
        return lengths

    def _once(self, values: Iterable[Any]) -> Iterable[Any]:
        """A thousand memories are told by two speakers, and most weigh the same."""
        return [self._values.setdefault(value, value) for value in values]

    def match(
        self, keys: bytes, words: Sequence[str], likeness: Sequence[float | None] | None
    ) -> MemoryMatches | None:
        """How the memories with these keys, 16 bytes each, match a cue with these words; None where
        one is not held. They come in the order in which they were read.

        Args:
            likeness: that of each, in the order of the keys; None where the cue has no vector.
        """
        if keys != self._last_keys:
            try:
                places = [self._places[key] for key in split_keys(keys)]
            except KeyError:
                return None
            self._see(places)
            self._last_keys = keys
        if likeness is None:
            likeness = [None] * len(self._last_places)
        elif self._last_order is not None:
            likeness = [likeness[at] for at in self._last_order]
        return MemoryMatches(self._last, self._hits(self._last_places, words), likeness)

    def _see(self, places: Sequence[int]) -> None:
        """Make columns of the memories at these places, if they are not there already: statements
        find the same ones in different orders."""
        in_order = sorted(places)
        if in_order != self._last_places:
            columns = [tuple([column[at] for at in in_order]) for column in self._columns]
            self._last_places, self._last = in_order, MemoryColumns(*columns)
        self._last_order = None
        if in_order != places:
            self._last_order = sorted(range(len(places)), key=places.__getitem__)

    def _hits(self, places: Sequence[int], words: Sequence[str]) -> Sequence[Sequence[str]]:
        """Which of the words the memory at each place has."""
        found = [0] * len(self._places)
        for no, word in enumerate(words):
            bit = 1 << no
            for place in self._having.get(word, ()):
                found[place] |= bit
        alike = {
            bits: tuple([word for no, word in enumerate(words) if bits >> no & 1])
            for bits in set(found)
        }
        return [alike[found[place]] for place in places]
