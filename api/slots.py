"""How many streams this process serves at once, in all and for one user."""

from collections import Counter

from api.problems import Problem

FULL = "rate_limited"
"""The code of the problem that no place is free."""


class StreamSlots:
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

    def one(self) -> "Place":
        """One stream's place, held by a `with`; raises Problem `rate_limited` where all are
        taken."""
        return Place(self, None)

    def one_of(self, user_id: str) -> "Place":
        """One stream's place of a user, likewise."""
        return Place(self, user_id)

    def take(self, user_id: str | None) -> None:
        """Take a place of all, or of a user's; raises Problem `rate_limited`."""
        if user_id is None:
            if self._open >= self._limit:
                raise Problem(FULL, "This server has too many open streams.")
            self._open += 1
            return
        if self._open_of[user_id] >= self._limit_per_user:
            raise Problem(FULL, "You have too many open streams.")
        self._open_of[user_id] += 1

    def give_back(self, user_id: str | None) -> None:
        """Give back what was taken."""
        if user_id is None:
            self._open -= 1
            return
        self._open_of[user_id] -= 1
        if not self._open_of[user_id]:
            del self._open_of[user_id]


class Place:
    """A place of one stream; thousands are held at once, and a generator takes ten times as much
    memory."""

    __slots__ = ("_slots", "_user_id")

    def __init__(self, slots: StreamSlots, user_id: str | None) -> None:
        self._slots = slots
        self._user_id = user_id

    def __enter__(self) -> None:
        self._slots.take(self._user_id)

    def __exit__(self, *_: object) -> None:
        self._slots.give_back(self._user_id)
