"""One answer over several attempts: retries before the first content, timeouts, failures.

Both ways to a model, litellm and the direct one, give chunks; this module makes the stream of
events from them.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, closing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from agent_core.assembly import ChatChunk, StreamAssembler
from agent_core.errors import ProviderError
from agent_core.messages import AssistantMessage
from agent_core.models import Model
from agent_core.patience import Patience
from agent_core.redaction import error_text
from agent_core.streaming import AssistantMessageEvent, StreamError, StreamOptions

logger = logging.getLogger(__name__)

T = TypeVar("T")

OpenChunks = Callable[[], AsyncGenerator[ChatChunk, None]]

_RETRYABLE_STATUSES = frozenset({408, 409, 425, 429})


async def streamed_answer(
    model: Model, options: StreamOptions, open_chunks: OpenChunks
) -> AsyncGenerator[AssistantMessageEvent, None]:
    """Give the events of one answer; `open_chunks` begins an attempt and raises ProviderError.

    An attempt that fails before its first content is followed by another, up to
    `max_attempts`; a later failure ends the answer with what there is of it.
    """
    attempt = 0
    while True:
        attempt += 1
        assembler = StreamAssembler(model)
        first_by = asyncio.get_running_loop().time() + model.first_token_timeout
        try:
            async with aclosing(open_chunks()) as chunks:
                with closing(Patience()) as patience:
                    while (
                        chunk := await next_in_time(
                            chunks, patience, model, None if assembler.began else first_by
                        )
                    ) is not None:
                        for event in assembler.take(chunk):
                            yield event
            for final in assembler.finish():
                yield final
        except ProviderError as error:
            delay = None if assembler.began else retry_delay(error, attempt, model, options)
            if delay is None:
                yield _failed(assembler.message, error, options)
                return
            logger.info("%s failed (%s), again in %.2f s", model.name, error.status, delay)
        else:
            return
        await asyncio.sleep(delay)


async def next_in_time(
    pieces: AsyncIterator[T], patience: Patience, model: Model, first_by: float | None
) -> T | None:
    """Return the next piece of an answer, None at the end; raises ProviderError if it is late.

    Args:
        first_by: the loop's time for the first content; None once it was there.
    """
    stalls_at = asyncio.get_running_loop().time() + model.stall_timeout
    try:
        with patience.until(stalls_at if first_by is None else first_by):
            return await anext(pieces, None)
    except TimeoutError as error:
        text = f"The model did not answer within {model.first_token_timeout:g} seconds"
        if first_by is None:
            text = f"The model stalled: nothing came for {model.stall_timeout:g} seconds"
        raise ProviderError(text, retryable=True) from error


def _failed(message: AssistantMessage, error: ProviderError, options: StreamOptions) -> StreamError:
    message.stop_reason = "error"
    message.error_message = error_text(error, options.api_key)
    return StreamError("error", message, error.status, error.retry_after, error.retryable)


def retry_delay(
    error: ProviderError | StreamError,
    attempt: int,
    model: Model,
    options: StreamOptions,
    *,
    patient: bool = False,
) -> float | None:
    """Return how many seconds to wait before the next attempt, or None for no further one.

    A provider that asks for a longer wait than `options.max_retry_delay` gets none: the caller
    (or a fallback model) had better know at once.

    Args:
        patient: refusals for a stated time are no attempts: more than one may be made after them.
    """
    attempts, stated = options.max_attempts or model.max_attempts, error.retry_after
    is_last = attempt >= attempts
    if not error.retryable or (stated is not None and stated > options.max_retry_delay):
        return None
    if is_last and not (patient and stated is not None and attempts > 1):
        return None
    if stated is not None and not is_last:
        return stated
    jitter = random.uniform(0.75, 1.25)  # noqa: S311
    backoff: float = min(model.retry_delay * 2 ** (attempt - 1) * jitter, options.max_retry_delay)
    return backoff if stated is None else max(stated, backoff)


def is_retryable(status: int, text: str = "") -> bool:
    """Whether an HTTP status says that the same request may succeed later."""
    if status == 429 and "insufficient_quota" in text:
        return False
    return status in _RETRYABLE_STATUSES or status >= 500


def retry_after_seconds(value: str | None) -> float | None:
    """Read a Retry-After header: seconds or an HTTP date."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())
