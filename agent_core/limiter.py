"""How many calls of a model run at once, and whose turn it is."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Protocol

from agent_core.completion import stream_completion
from agent_core.models import Model
from agent_core.streaming import AssistantMessageEvent, LlmContext, StreamFn, StreamOptions


class Limiter(Protocol):
    """Lets calls pass; `model` is "provider/id"."""

    def slot(self, model: str, user: str) -> AbstractAsyncContextManager[None]:
        """Wait for a slot and hold it."""


class FairLimiter:
    """A limit for each model; who waits is served round robin by user, so that one who asks
    for much does not keep the others waiting.

    `limits` maps "provider/id" to a number of calls, `default` is for all others.
    """

    def __init__(self, limits: Mapping[str, int] | None = None, *, default: int = 64) -> None:
        self._limits = dict(limits or {})
        self._default = default
        self._gates: dict[str, _Gate] = {}

    @asynccontextmanager
    async def slot(self, model: str, user: str) -> AsyncIterator[None]:
        """Wait for a slot and hold it."""
        gate = self._gates.get(model)
        if gate is None:
            gate = self._gates[model] = _Gate(self._limits.get(model, self._default))
        await gate.enter(user)
        try:
            yield
        finally:
            gate.leave()
            if gate.is_idle():
                self._gates.pop(model, None)


class _Gate:
    """The slots of one model."""

    def __init__(self, limit: int) -> None:
        self._free = max(1, limit)
        self._limit = self._free
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    def is_idle(self) -> bool:
        return self._free == self._limit and not self._waiting

    async def enter(self, user: str) -> None:
        if self._free and not self._waiting:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(user, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # the slot was given in the same moment: pass it on
            else:
                self._forget(user, turn)
            raise

    def leave(self) -> None:
        """Give the slot to the next user's oldest call, or keep it free."""
        while self._waiting:
            user, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[user] = turns
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _forget(self, user: str, turn: asyncio.Future[None]) -> None:
        turns = self._waiting.get(user)
        if turns is None or turn not in turns:
            return
        turns.remove(turn)
        if not turns:
            del self._waiting[user]


def limited(stream_fn: StreamFn | None, limiter: Limiter, user: str) -> StreamFn:
    """Return a stream function whose calls hold a slot for as long as they stream."""

    async def stream(
        model: Model, context: LlmContext, options: StreamOptions
    ) -> AsyncGenerator[AssistantMessageEvent, None]:
        async with limiter.slot(model.name, user):
            events = stream_completion(model, context, options, stream_fn=stream_fn)
            async with aclosing(events):
                async for event in events:
                    yield event

    return stream
