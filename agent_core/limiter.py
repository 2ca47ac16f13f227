"""How many calls of a model run at once, and whose turn it is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
    nullcontext,
)
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias, runtime_checkable

from agent_core.attempts import retry_delay
from agent_core.completion import stream_completion
from agent_core.models import Model
from agent_core.round_robin import RoundRobin
from agent_core.streaming import (
    AssistantMessageEvent,
    FinalEvent,
    LlmContext,
    StreamDone,
    StreamError,
    StreamFn,
    StreamOptions,
)
from agent_core.tokens import count_context_tokens

logger = logging.getLogger(__name__)

EXPECTED_OUTPUT_TOKENS = 1_000
"""What an answer is expected to have at the most; caps are often far above what comes."""

REFUSED_SECONDS = 20.0
"""For how long refusals are waited out; where many wait for a provider, luck decides who is refused
three times, and that is no reason to fail."""


class Limiter(Protocol):
    """Lets calls pass; `model` is "provider/id"."""

    def slot(self, model: str, user: str) -> AbstractAsyncContextManager[None]:
        """Wait for a slot and hold it."""


@dataclass(frozen=True, slots=True)
class ModelCall:
    """A call that is about to be made for a user."""

    model: Model
    user: str
    context: LlmContext
    options: StreamOptions

    def expected_tokens(self) -> int:
        """About how many tokens the provider will count: the request and a usual answer."""
        context = self.context
        cap = self.options.max_tokens or self.model.max_tokens
        asked = count_context_tokens(context.system_prompt, context.messages, context.tools)
        return asked + min(cap, EXPECTED_OUTPUT_TOKENS)


CallReport: TypeAlias = Callable[[FinalEvent], None]
"""Tells a limiter how a call ended: what it used, or what the provider refused."""


@runtime_checkable
class CallLimiter(Protocol):
    """Lets calls pass by what they are going to use, and hears what came of them."""

    def admit(self, call: ModelCall) -> AbstractAsyncContextManager[CallReport]:
        """Wait for the call's turn and hold its slot; may raise ProviderError."""


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
        self._waiting = RoundRobin[asyncio.Future[None]]()

    def is_idle(self) -> bool:
        return self._free == self._limit and not self._waiting

    async def enter(self, user: str) -> None:
        if self._free and not self._waiting:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(user, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # the slot was given in the same moment: pass it on
            else:
                self._waiting.remove(user, turn)
            raise

    def leave(self) -> None:
        """Give the slot to the next user's oldest call, or keep it free."""
        while self._waiting:
            turn = self._waiting.pop()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


def limited(
    stream_fn: StreamFn | None,
    limiter: Limiter | CallLimiter,
    user: str,
    *,
    waiting: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> StreamFn:
    """Return a stream function each of whose tries holds a slot for as long as it streams.

    It makes the further tries of a failed call itself, so that each of them waits for its turn
    and counts; whatever is called beneath is asked to try once. What the provider refuses for a
    stated time is tried for REFUSED_SECONDS from the first failure on, however often.

    Args:
        waiting: opened while a call waits for its slot or for its next try: a caller's deadlines
            can stand still meanwhile.
    """

    async def stream(
        model: Model, context: LlmContext, options: StreamOptions
    ) -> AsyncGenerator[AssistantMessageEvent, None]:
        call = ModelCall(model, user, context, options)
        once = replace(options, max_attempts=1)
        attempt, patient_until = 0, 0.0
        while True:
            attempt += 1
            began = False
            final: FinalEvent | None = None
            async with _admitted(limiter, call, waiting) as report:
                events = stream_completion(model, context, once, stream_fn=stream_fn)
                async with aclosing(events):
                    async for event in events:
                        if isinstance(event, (StreamDone, StreamError)):
                            final = event
                            report(event)
                        else:
                            began = True
                            yield event
            delay = None
            if isinstance(final, StreamError) and not began:
                now = asyncio.get_running_loop().time()
                patient_until = patient_until or now + REFUSED_SECONDS
                patient = now < patient_until
                delay = retry_delay(final, attempt, model, options, patient=patient)
            if delay is None:
                if final is not None:
                    yield final
                return
            reason = final.status if isinstance(final, StreamError) else None
            logger.info("%s failed (%s), again in %.2f s", model.name, reason, delay)
            with waiting():
                await asyncio.sleep(delay)

    return stream


@asynccontextmanager
async def _admitted(
    limiter: Limiter | CallLimiter,
    call: ModelCall,
    waiting: Callable[[], AbstractContextManager[object]],
) -> AsyncIterator[CallReport]:
    async with AsyncExitStack() as held:
        with waiting():
            if isinstance(limiter, CallLimiter):
                report = await held.enter_async_context(limiter.admit(call))
            else:
                await held.enter_async_context(limiter.slot(call.model.name, call.user))
                report = _ignore
        yield report


def _ignore(_: FinalEvent) -> None:
    """A limiter that counts calls only need not know how they ended."""
