"""What is held of a character's memories from one recall to the next.

A character with a long past has thousands of memories, which are the same for each cue but for
their words of it and their likeness to it: to read them again takes most of the time of a recall.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import count
from sys import getsizeof
from typing import Any

from shared.store.columns import split_keys

MOST = 2_500
"""So many are held at the most: there may be some among them that were deleted long ago."""

_ROW_BYTES = 570
"""What a memory takes without its text: its key and its values, and their places in the columns
and in those that were asked for last."""


class HeldMemories:
    """The memories of one character that were created up to `until`, as they were while its row was
    the one of `since`; none as long as that is None. `bytes` is about what they take."""

    __slots__ = (
        *("_columns", "_last", "_last_keys", "_names", "_places"),
        *("bytes", "since", "until"),
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
        self._names: dict[str, str] = {}
        # Mostly the same are recallable as the last time: until the window is cut.
        self._last_keys = b""
        self._last: Sequence[Sequence[Any]] = ()

    def take(
        self, since: datetime | None, until: datetime | None, columns: Sequence[Sequence[Any]]
    ) -> None:
        """Take up what a recall has read; instead of what was held where that is no longer so.

        Args:
            columns: the key of each memory, and the fields of `Standing` down to `length`.
        """
        if since is None or since != self.since or len(self._places) > MOST:
            self.drop()
        self.since, self.until = since, until
        keys, ids, sessions, kinds, nos, parts, roles, speakers, texts, *others = columns
        if not keys:
            return
        new = (
            *(ids, [session or None for session in self._once(sessions)], self._once(kinds)),
            *([no or None for no in nos], parts, self._once(roles), self._once(speakers)),
            *(texts, *others),
        )
        held = self._columns or [()] * len(new)
        self._places.update(zip(keys, count(len(held[0]))))
        self._columns = [(*column, *values) for column, values in zip(held, new, strict=True)]
        self.bytes += _ROW_BYTES * len(keys) + sum(map(getsizeof, texts))

    def _once(self, names: Iterable[str]) -> Iterable[str]:
        """A thousand memories are told by two speakers."""
        return [self._names.setdefault(name, name) for name in names]

    def columns(self, keys: bytes) -> Sequence[Sequence[Any]] | None:
        """The fields of the memories with these keys, 16 bytes each, by column; None where one is
        not held."""
        if keys != self._last_keys:
            try:
                places = [self._places[key] for key in split_keys(keys)]
            except KeyError:
                return None
            self._last = [tuple([column[at] for at in places]) for column in self._columns]
            self._last_keys = keys
        return self._last
