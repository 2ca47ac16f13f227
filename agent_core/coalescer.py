"""Fewer, larger deltas for relays: publishing each one costs four times as much."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from agent_core.events import AgentEvent, MessageEnd, MessageStart, MessageUpdate
from agent_core.streaming import TextDelta

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CoalescedDelta:
    """Text that was added to an assistant's message.

    `offset` counts the Unicode code points of the message's text before it; `step` is the
    journal's number of the model call.
    """

    text: str
    offset: int
    step: int | None = None


class DeltaCoalescer:
    """Collects text deltas and emits them together.

    They are emitted `max_delay` seconds after the first of them, when there are about
    `max_tokens` of them, and before `listen` returns from any other event: so what is emitted
    keeps its order. Subscribe `listen` to an agent.
    """

    def __init__(
        self,
        emit: Callable[[CoalescedDelta], Awaitable[None]],
        *,
        max_delay: float = 0.1,
        max_tokens: int = 40,
    ) -> None:
        self._emit = emit
        self._max_delay = max_delay
        self._max_tokens = max_tokens
        self._pieces: list[str] = []
        self._tokens = 0
        self._offset = 0
        self._step: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._late: asyncio.Task[None] | None = None
        self._emitting = asyncio.Lock()

    async def listen(self, event: AgentEvent) -> None:
        """Take an event of the agent."""
        if isinstance(event, MessageUpdate):
            if isinstance(event.assistant_message_event, TextDelta):
                await self._add(event.assistant_message_event.delta, event.step)
            return
        await self.flush()
        if isinstance(event, (MessageStart, MessageEnd)) and event.message.role == "assistant":
            self._offset = 0

    async def flush(self) -> None:
        """Emit what is there."""
        async with self._emitting:
            self._stop_timer()
            if not self._pieces:
                return
            text = "".join(self._pieces)
            delta = CoalescedDelta(text, self._offset, self._step)
            self._pieces = []
            self._tokens = 0
            self._offset += len(text)
            await self._emit(delta)

    async def _add(self, text: str, step: int | None) -> None:
        self._pieces.append(text)
        self._step = step
        # Providers send about a token at a time, some a whole line.
        self._tokens += max(1, len(text) // 4)
        if self._tokens >= self._max_tokens:
            await self.flush()
        elif self._timer is None and self._pieces:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._max_delay, self._flush_late)

    def _flush_late(self) -> None:
        self._timer = None
        self._late = asyncio.get_running_loop().create_task(self._flush_quietly())

    async def _flush_quietly(self) -> None:
        try:
            await self.flush()
        except Exception:  # deltas may be lost: the whole message follows
            logger.warning("emitting deltas failed", exc_info=True)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
