"""The events of a run, given one by one as they are asked for. What runs is not known here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from types import TracebackType

from agent_core.errors import AbortedError
from agent_core.events import AgentEvent, Emit
from agent_core.messages import Message


class AgentEventStream:
    """The events of a run, and its result.

    The run goes on only as far as it is read: after an event it waits until the next one is
    asked for. Who stops reading early should call `aclose` (or use `async with`), which ends
    the run and its tools.
    """

    def __init__(self, start: Callable[[Emit], Awaitable[list[Message]]]) -> None:
        self._start = start
        self._handoff = _Handoff()
        self._task: asyncio.Future[list[Message]] | None = None
        self._over = False

    def __aiter__(self) -> AsyncIterator[AgentEvent]:
        return self

    async def __anext__(self) -> AgentEvent:
        if self._over:
            raise StopAsyncIteration
        task = self._running()
        try:
            event = await self._handoff.take()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        if event is None:
            self._over = True
            task.result()
            raise StopAsyncIteration
        return event

    async def result(self) -> list[Message]:
        """Run to the end and return the new messages; raises AbortedError after `aclose`."""
        async for _ in self:
            pass
        if self._task is None or self._task.cancelled():
            raise AbortedError("The run was closed before its end")
        return self._task.result()

    async def aclose(self) -> None:
        """End the run, if it is not over, and wait for its tools to be cancelled."""
        self._over = True
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})

    async def __aenter__(self) -> AgentEventStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        task = getattr(self, "_task", None)
        if task is not None and not task.done():
            with suppress(RuntimeError):  # the event loop may be closed
                task.cancel()

    def _running(self) -> asyncio.Future[list[Message]]:
        if self._task is None:
            self._task = asyncio.ensure_future(self._start(self._handoff.put))
            self._task.add_done_callback(self._handoff.end)
        return self._task


class _Handoff:
    """Passes events from the run to the reader, one at a time and only on demand."""

    def __init__(self) -> None:
        self._event: AgentEvent | None = None
        self._given = asyncio.Event()
        self._wanted = asyncio.Event()

    async def put(self, event: AgentEvent) -> None:
        self._event = event
        self._wanted.clear()
        self._given.set()
        await self._wanted.wait()

    async def take(self) -> AgentEvent | None:
        self._wanted.set()
        await self._given.wait()
        self._given.clear()
        event, self._event = self._event, None
        return event

    def end(self, _: object) -> None:
        self._given.set()
