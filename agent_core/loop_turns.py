"""Turns of an event loop for what costs much of its time, so that all else has its turns as well.

A chunk by way of litellm costs about a millisecond of a slow processor. Where hundreds of answers
are read, one chunk of each makes a turn of the loop of a third of a second, and whatever takes
several turns, as a statement does, takes seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from weakref import WeakKeyDictionary

TURN_SECONDS = 0.01
"""A turn of the loop that took longer has fewer let in at the next."""

FEWEST = 4
"""So many are let in at each turn, whatever else makes it long."""

_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, _Turns] = WeakKeyDictionary()


async def next_turn() -> None:
    """Wait for one's turn: the next turn of the loop, or a later one where many wait."""
    await _turns_of(asyncio.get_running_loop()).wait()


def waited_seconds() -> float:
    """How long who is next has waited for its turn on the running loop."""
    return _turns_of(asyncio.get_running_loop()).waited_seconds()


class _Turns:
    """Who waits on a loop, and how many of them fit into one of its turns."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[asyncio.Future[None], float]] = deque()
        self._at_once = FEWEST
        self._turned_at = 0.0
        self._is_turning = False

    async def wait(self) -> None:
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        waiting = turn, time.monotonic()
        self._waiting.append(waiting)
        if not self._is_turning:
            self._is_turning = True
            self._turned_at = waiting[1]
            loop.call_soon(self._turn)
        try:
            await turn
        except asyncio.CancelledError:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            raise

    def waited_seconds(self) -> float:
        return time.monotonic() - self._waiting[0][1] if self._waiting else 0.0

    def _turn(self) -> None:
        now = time.monotonic()
        took, self._turned_at = now - self._turned_at, now
        if took > TURN_SECONDS:
            self._at_once = max(FEWEST, self._at_once * 3 // 4)
        elif len(self._waiting) > self._at_once:
            self._at_once += 1
        for _ in range(min(self._at_once, len(self._waiting))):
            turn, _ = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
        self._is_turning = bool(self._waiting)
        if self._is_turning:
            asyncio.get_running_loop().call_soon(self._turn)


def _turns_of(loop: asyncio.AbstractEventLoop) -> _Turns:
    turns = _turns.get(loop)
    if turns is None:
        turns = _turns[loop] = _Turns()
    return turns
