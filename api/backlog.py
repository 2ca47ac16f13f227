"""How much is open, and when no more is taken: an estimate that costs no request a query."""

import asyncio
import math
from time import monotonic

import structlog
from redis.asyncio import Redis

from api.problems import Problem
from shared.errors import TooManyTasks
from shared.pace import ends_per_second
from shared.store import turns
from shared.store.database import Database
from shared.trouble import Trouble

log = structlog.get_logger(__name__)

_LONGEST = 60
"""Seconds of the longest `Retry-After`."""

_PAUSE = 20
"""How many times as long as a count took there is none: 100,000 sessions take 0.1 s."""

_LONGEST_PAUSE = 10.0
"""Seconds: a count that took long may have waited for Postgres, and old counts refuse users."""

_UNKNOWN = 5
"""Seconds of a `Retry-After` while nobody knows how fast tasks end."""


class Backlog:
    """The open tasks of all users, as far as this process knows.

    Args:
        most: how many may be open in all.
        most_per_user: how many of one user; None where all that comes is one user's.
    """

    def __init__(self, most: int, most_per_user: int | None) -> None:
        self._most = most
        self._most_per_user = most_per_user
        self._open = 0
        self._accepted = 0
        self._ends_per_second: float | None = None

    @property
    def open(self) -> int:
        """About how many tasks are open: a count of a moment ago, and what came here since."""
        return self._open + self._accepted

    @property
    def most(self) -> int | None:
        """How many open tasks a user may have just now: none where there are too many in all.

        What was accepted before is found by the same statement that counts, so the store is asked
        even then.
        """
        return 0 if self.open >= self._most else self._most_per_user

    def accepted(self) -> None:
        """Count a task that was made here."""
        self._accepted += 1

    def problem(self, refused: TooManyTasks) -> Problem:
        """What a client is told that has too many tasks open, or came when all have."""
        of_all = self.open >= self._most
        position = self.open if of_all else refused.position
        seconds = self._seconds_until_one_ends(position)
        return Problem(
            TooManyTasks.code,
            f"{position} tasks {'' if of_all else 'of yours '}are running or waiting already.",
            {"position": position, "retry_after": seconds},
            {"Retry-After": str(seconds)},
        )

    def _seconds_until_one_ends(self, position: int) -> int:
        """The turns of users are fair: of what ends, each has the part that he has of all."""
        if not self._ends_per_second:
            return _UNKNOWN if self._ends_per_second is None else _LONGEST
        part = min(position / self.open, 1.0) if self.open else 1.0
        seconds = 1 / (self._ends_per_second * part) if part else _LONGEST
        return min(max(math.ceil(seconds), 1), _LONGEST)

    async def refresh(self, db: Database, redis: Redis) -> None:
        """Count what is open, and how fast it ends; raises StoreUnavailable."""
        await self._count(db)
        self._ends_per_second = await ends_per_second(redis)

    async def _count(self, db: Database) -> float:
        """Count what is open; the seconds that it took."""
        began, before = monotonic(), self._accepted
        self._open = await turns.open_in_all(db)
        self._accepted -= before  # what came meanwhile may be in the count, or not
        return monotonic() - began

    async def refresh_for_ever(self, db: Database, redis: Redis, *, every: float) -> None:
        """Refresh until cancelled; where Postgres is away the last count stands.

        Args:
            every: seconds between two counts; more where counting takes long, which a count that
                failed or a Redis that does not answer tells nothing of.
        """
        trouble = Trouble(log, "open tasks not counted")
        while True:
            pause = every
            with trouble.catch():
                took = await self._count(db)
                pause = max(every, min(_PAUSE * took, _LONGEST_PAUSE))
                self._ends_per_second = await ends_per_second(redis)
            await asyncio.sleep(pause)
