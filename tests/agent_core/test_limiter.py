"""Calls that a limiter is told of: each try waits for its turn, and how it ended is reported."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from agent_core import (
    AssistantMessage,
    AssistantMessageEvent,
    CallReport,
    LlmContext,
    Model,
    ModelCall,
    ProviderError,
    StreamDone,
    StreamError,
    StreamFn,
    StreamOptions,
    StreamStart,
    TextContent,
    UserMessage,
    count_context_tokens,
    limited,
)
from agent_core.completion import stream_completion
from agent_core.streaming import FinalEvent


class Watching:
    """A limiter that lets every call pass and keeps what it was told."""

    def __init__(self) -> None:
        self.calls: list[ModelCall] = []
        self.reports: list[FinalEvent] = []
        self.held = 0

    @asynccontextmanager
    async def admit(self, call: ModelCall) -> AsyncIterator[CallReport]:
        self.calls.append(call)
        self.held += 1
        try:
            yield self.reports.append
        finally:
            self.held -= 1


class Failing:
    """A model that fails with each of these in turn, then answers; it keeps its options."""

    def __init__(self, *failures: ProviderError, begun: bool = False) -> None:
        self._failures = list(failures)
        self._begun = begun
        self.options: list[StreamOptions] = []

    async def __call__(
        self, model: Model, context: LlmContext, options: StreamOptions
    ) -> AsyncIterator[AssistantMessageEvent]:
        self.options.append(options)
        if self._begun:
            yield StreamStart(AssistantMessage([]))
        if self._failures:
            raise self._failures.pop(0)
        yield StreamDone("stop", AssistantMessage([TextContent("yes")]))


QUICK = Model("m", "test", max_attempts=3, retry_delay=0.001)
ASKED = LlmContext("Be brief.", [UserMessage("hi")])
BUSY = ProviderError("busy", status=503, retryable=True)


async def streamed(stream: StreamFn, model: Model = QUICK, **options: Any) -> FinalEvent:
    events = stream_completion(model, ASKED, StreamOptions(**options), stream_fn=stream)
    return [event async for event in events][-1]  # type: ignore[return-value] # the last is final


async def test_each_try_of_a_limited_call_waits_for_its_turn_and_is_reported() -> None:
    limiter, opened = Watching(), [0]
    inner = Failing(ProviderError("no", status=429, retry_after=0.001, retryable=True), BUSY)

    @contextmanager
    def waiting() -> Iterator[None]:
        opened.append(limiter.held)
        yield

    last = await streamed(limited(inner, limiter, "u", waiting=waiting))

    assert isinstance(last, StreamDone)
    first, second, third = limiter.reports
    assert isinstance(first, StreamError)
    assert (first.status, first.retry_after, first.retryable) == (429, 0.001, True)
    assert isinstance(second, StreamError)
    assert second.status == 503
    assert third is last
    assert [call.user for call in limiter.calls] == ["u"] * 3
    assert [options.max_attempts for options in inner.options] == [1, 1, 1]
    # For each turn and before each further try; no slot is held meanwhile.
    assert opened == [0] * 6
    assert limiter.held == 0


async def test_a_further_try_is_told_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "agent_core.limiter")

    await streamed(limited(Failing(BUSY), Watching(), "u"))

    (told,) = caplog.messages
    assert told.startswith("test/m failed (503), again in ")


async def test_a_limited_call_is_tried_as_often_as_the_model_or_the_caller_says() -> None:
    for asked_for, tries in ((None, 3), (2, 2), (1, 1)):
        limiter = Watching()
        last = await streamed(limited(Failing(*[BUSY] * 5), limiter, "u"), max_attempts=asked_for)
        assert isinstance(last, StreamError)
        assert len(limiter.calls) == tries


async def test_refusals_for_a_stated_time_are_waited_out_more_often_than_failures() -> None:
    refused = ProviderError("no", status=429, retry_after=0.001, retryable=True)
    for asked_for, tries in ((None, 6), (2, 6), (1, 1)):
        limiter = Watching()
        last = await streamed(
            limited(Failing(*[refused] * 5), limiter, "u"), max_attempts=asked_for
        )
        assert isinstance(last, StreamDone) is (tries == 6)
        assert len(limiter.calls) == tries


async def test_refusals_are_not_waited_out_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_core.limiter.REFUSED_SECONDS", 0.05)
    refused = ProviderError("no", status=429, retry_after=0.001, retryable=True)
    limiter = Watching()
    last = await streamed(limited(Failing(*[refused] * 500), limiter, "u"))

    assert isinstance(last, StreamError)
    assert 3 <= len(limiter.calls) < 20


@pytest.mark.parametrize(
    "inner",
    [
        Failing(ProviderError("wrong key", status=401)),
        Failing(ProviderError("later", status=429, retry_after=3600, retryable=True)),
        Failing(BUSY, begun=True),
    ],
)
async def test_a_limited_call_that_can_not_be_tried_again_fails_at_once(inner: Failing) -> None:
    limiter = Watching()
    last = await streamed(limited(inner, limiter, "u"))

    assert isinstance(last, StreamError)
    assert len(limiter.calls) == 1


async def test_a_call_is_expected_to_use_its_request_and_a_usual_answer() -> None:
    def expected(model: Model, **options: Any) -> int:
        return ModelCall(model, "u", ASKED, StreamOptions(**options)).expected_tokens()

    asked = count_context_tokens(ASKED.system_prompt, ASKED.messages)
    assert expected(Model("m", "test", max_tokens=200_000)) == asked + 1_000
    assert expected(Model("m", "test", max_tokens=300)) == asked + 300
    assert expected(QUICK, max_tokens=20) == asked + 20


async def test_a_limiter_may_refuse_a_call() -> None:
    class Shut:
        @asynccontextmanager
        async def admit(self, call: ModelCall) -> AsyncIterator[CallReport]:
            raise ProviderError("not now", status=429, retry_after=100.0)
            yield  # what makes it a generator

    last = await streamed(limited(Failing(), Shut(), "u"))

    assert isinstance(last, StreamError)
    assert (last.status, last.retry_after) == (429, 100.0)
    assert last.error.error_message == "not now"
