"""How many streams this process serves at once, in all and for one user."""

import contextlib
from collections import Counter
from collections.abc import Iterator

from api.problems import Problem


class Slots:
    """Counts open WebSockets and event streams against their limits."""

    def __init__(self, limit: int, limit_per_user: int) -> None:
        self._limit = limit
        self._limit_per_user = limit_per_user
        self._open = 0
        self._open_of: Counter[str] = Counter()

    @property
    def open(self) -> int:
        """Streams that are open now."""
        return self._open

    def check(self, user_id: str) -> None:
        """Raise Problem `rate_limited` where one more stream of this user would be too many."""
        with self.one(), self.one_of(user_id):
            pass

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Hold one stream's place; raises Problem `rate_limited` where all are taken."""
        if self._open >= self._limit:
            raise Problem("rate_limited", "This server has too many open streams.")
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    @contextlib.contextmanager
    def one_of(self, user_id: str) -> Iterator[None]:
        """Hold one stream's place of a user; raises Problem `rate_limited`."""
        if self._open_of[user_id] >= self._limit_per_user:
            raise Problem("rate_limited", "You have too many open streams.")
        self._open_of[user_id] += 1
        try:
            yield
        finally:
            self._open_of[user_id] -= 1
            if not self._open_of[user_id]:
                del self._open_of[user_id]
