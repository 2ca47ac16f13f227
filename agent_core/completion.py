"""One model call: guarded, journalled and abortable. The loop and single-shot callers use it."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from uuid import uuid4

from agent_core.abort import (
    CLEANUP_SECONDS,
    AbortSignal,
    CancelEvent,
    UntilAbort,
    signal_after,
    signal_from,
)
from agent_core.errors import AbortedError, ProviderError
from agent_core.interruption import ends_this_task
from agent_core.journal import StepJournal, StepRequest, model_step_hash
from agent_core.messages import AssistantMessage
from agent_core.models import Model
from agent_core.redaction import error_text
from agent_core.streaming import (
    PARTIAL_EVENTS,
    AssistantMessageEvent,
    FinalEvent,
    LlmContext,
    StreamDone,
    StreamError,
    StreamFn,
    StreamOptions,
)

logger = logging.getLogger(__name__)


async def stream_completion(
    model: Model,
    context: LlmContext,
    options: StreamOptions | None = None,
    *,
    stream_fn: StreamFn | None = None,
    journal: StepJournal | None = None,
    step_no: int = 0,
    route: str | None = None,
    cancel: CancelEvent | None = None,
) -> AsyncGenerator[AssistantMessageEvent, None]:
    """Call a model once; the last event is always a StreamDone or a StreamError.

    Whatever the stream function does becomes one of the two. With a journal a complete answer
    is recorded before it is given, and given from the record the next time; what the journal
    raises is raised. `route` names a router's choice in the record instead of the model.
    `cancel` (or `options.signal`) aborts the call and closes its connection.
    """
    options = options or StreamOptions()
    async with signal_from(cancel or options.signal) as signal:
        options = replace(options, signal=signal)
        if signal.is_set():
            yield _failed(model, None, AbortedError())
            return
        step = None
        if journal is not None:
            digest = model_step_hash(model, context, options, route=route)
            options = replace(options, step=step_no)
            step = StepRequest(step_no, "model", route or model.name, digest, "pure")
            start = await journal.begin(step)
            if start.outcome == "done":
                message = AssistantMessage.from_dict(start.output)
                yield StreamDone(message.stop_reason, message)
                return
        events = _guarded(model, context, options, signal, stream_fn or _default_stream_fn())
        async with aclosing(events):
            async for event in events:
                if journal is not None and step is not None and isinstance(event, StreamDone):
                    await journal.finish(step, event.message.to_dict())
                yield event


async def complete(
    model: Model,
    context: LlmContext,
    options: StreamOptions | None = None,
    *,
    stream_fn: StreamFn | None = None,
    journal: StepJournal | None = None,
    step_no: int = 0,
    cancel: CancelEvent | None = None,
) -> AssistantMessage:
    """Call a model once and return its message; raises ProviderError or AbortedError."""
    events = stream_completion(
        model,
        context,
        options,
        stream_fn=stream_fn,
        journal=journal,
        step_no=step_no,
        cancel=cancel,
    )
    async with aclosing(events):
        async for event in events:
            if isinstance(event, StreamDone):
                return event.message
            if isinstance(event, StreamError):
                raise _raised(event)
    raise RuntimeError("stream_completion ended without a final event")


async def _guarded(
    model: Model,
    context: LlmContext,
    options: StreamOptions,
    signal: AbortSignal,
    stream_fn: StreamFn,
) -> AsyncGenerator[AssistantMessageEvent, None]:
    partial: AssistantMessage | None = None
    stream: AsyncIterator[AssistantMessageEvent] | None = None
    final: FinalEvent | None = None
    try:
        with UntilAbort(signal):
            opened = stream_fn(model, context, options)
            stream = await opened if inspect.isawaitable(opened) else opened
        while final is None:
            with UntilAbort(signal):
                event = await anext(stream, None)
            if isinstance(event, (StreamDone, StreamError)):
                final = _settled(event)
            elif isinstance(event, PARTIAL_EVENTS):
                partial = event.partial
                yield event
            elif event is None:
                raise ProviderError("The model's stream ended without a result")  # noqa: TRY301
            else:
                raise ProviderError(  # noqa: TRY301 - told like every other failure
                    f"The model's stream gave {type(event).__name__}, which is no stream event"
                )
    except BaseException as error:
        if ends_this_task(error):
            raise
        logger.debug("call of %s failed: %s", model.name, type(error).__name__)
        if isinstance(error, asyncio.CancelledError):
            error = ProviderError("The model call was cancelled")
        final = _failed(model, partial, error, options.api_key)
    finally:
        if stream is not None:
            await _close(stream)
    yield final


def _settled(event: FinalEvent) -> FinalEvent:
    """Return the event with a message that keeps what we promise of one."""
    if isinstance(event, StreamError):
        error = event.error
        if error.stop_reason not in {"error", "aborted"}:
            error.stop_reason = event.reason
        error.error_message = error.error_message or "The model call failed"
        _give_ids(error)
        return event
    if event.message.stop_reason == "stop":  # also while it is not known
        event.message.stop_reason = event.reason
    _give_ids(event.message)
    return event


def _give_ids(message: AssistantMessage) -> None:
    """Make the ids of the tool calls distinct: some providers leave them empty or repeat them."""
    seen: set[str] = set()
    for call in message.tool_calls:
        if not call.id or call.id in seen:
            call.id = f"call_{uuid4().hex[:16]}"
        seen.add(call.id)


def _failed(
    model: Model,
    partial: AssistantMessage | None,
    error: BaseException,
    api_key: str | None = None,
) -> StreamError:
    aborted = isinstance(error, AbortedError)
    message = AssistantMessage(
        content=partial.content if partial else [],
        model=model.id,
        provider=model.provider,
        stop_reason="aborted" if aborted else "error",
        error_message=error_text(error, api_key),
    )
    if partial is not None:
        message.usage = partial.usage
    _give_ids(message)
    failed = StreamError(message.stop_reason, message)
    if isinstance(error, ProviderError):
        failed.status, failed.retry_after = error.status, error.retry_after
        failed.retryable = error.retryable
    return failed


def _raised(failed: StreamError) -> AbortedError | ProviderError:
    text = failed.error.error_message or "The model call failed"
    if failed.error.stop_reason == "aborted":
        return AbortedError(text)
    return ProviderError(
        text, status=failed.status, retry_after=failed.retry_after, retryable=failed.retryable
    )


async def _close(stream: AsyncIterator[AssistantMessageEvent]) -> None:
    close = getattr(stream, "aclose", None)
    if close is None:
        return
    try:
        with signal_after(CLEANUP_SECONDS) as late, UntilAbort(late):
            await close()
    except BaseException as error:  # the answer is there, or its failure is already told
        if ends_this_task(error):
            raise
        logger.warning("closing a model's stream failed", exc_info=True)


def _default_stream_fn() -> StreamFn:
    from agent_core.default_stream import stream_model  # noqa: PLC0415 - only if none is given

    return stream_model
