"""Who waits, and whose turn it is: each user once, then each user again."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class RoundRobin(Generic[T]):
    """What users wait with, a user's own in the order they came."""

    def __init__(self) -> None:
        self._users: OrderedDict[str, deque[T]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._users)

    def __iter__(self) -> Iterator[T]:
        """All of it, user by user."""
        return (item for waiting in self._users.values() for item in waiting)

    def add(self, user: str, item: T) -> None:
        """Have a user wait with something, behind what it waits with already."""
        self._users.setdefault(user, deque()).append(item)

    def remove(self, user: str, item: T) -> None:
        """Forget what a user waited with, if it still does."""
        waiting = self._users.get(user, deque())
        if item in waiting:
            waiting.remove(item)
            if not waiting:
                del self._users[user]

    def serve(self, user: str, item: T) -> None:
        """Take out what was served; its user comes last from now on."""
        self.remove(user, item)
        if user in self._users:
            self._users.move_to_end(user)

    def pop(self) -> T:
        """Serve what is next; raises KeyError where nobody waits."""
        user = next(iter(self._users), "")
        item = self._users[user][0]
        self.serve(user, item)
        return item

    def first(self, count: int) -> list[T]:
        """What is next, in the order of the turns; it stays where it is."""
        found: list[T] = []
        rounds = [iter(waiting) for waiting in self._users.values()]
        while rounds and len(found) < count:
            rounds = [one for one in rounds if _take(one, found)]
        return found[:count]


def _take(waiting: Iterator[T], found: list[T]) -> bool:
    try:
        found.append(next(waiting))
    except StopIteration:
        return False
    return True
