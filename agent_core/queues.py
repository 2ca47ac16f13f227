"""Messages that wait for a running agent."""

from __future__ import annotations

from collections import deque
from typing import Literal

from agent_core.messages import Message

QueueMode = Literal["one-at-a-time", "all"]


class MessageQueue:
    """A queue that gives one message at a time, or all at once, as its mode says."""

    __slots__ = ("_waiting", "mode")

    def __init__(self, mode: QueueMode = "one-at-a-time") -> None:
        self.mode: QueueMode = mode
        self._waiting: deque[Message] | None = None  # most agents never have one

    def __len__(self) -> int:
        return len(self._waiting or ())

    def put(self, message: Message) -> None:
        """Add a message."""
        if self._waiting is None:
            self._waiting = deque()
        self._waiting.append(message)

    def take(self) -> list[Message]:
        """Remove and return what is next; an empty list if nothing waits."""
        if not self._waiting:
            return []
        if self.mode == "one-at-a-time":
            return [self._waiting.popleft()]
        return self.clear()

    def clear(self) -> list[Message]:
        """Remove and return all that waits."""
        waiting = list(self._waiting or ())
        self._waiting = None
        return waiting

    def peek(self) -> list[Message]:
        """Return all that waits, without removing it."""
        return list(self._waiting or ())
