"""Answers kept by the exact hash of their request: for retries and idempotency, not for style."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from copy import deepcopy
from typing import Any, Protocol

from agent_core.completion import stream_completion
from agent_core.journal import model_step_hash
from agent_core.messages import AssistantMessage, Usage
from agent_core.models import Model
from agent_core.redaction import error_text
from agent_core.streaming import (
    AssistantMessageEvent,
    LlmContext,
    StreamDone,
    StreamFn,
    StreamOptions,
)

logger = logging.getLogger(__name__)

ONE_HOUR = 3_600.0


class ResponseCache(Protocol):
    """Keeps messages as JSON for a time in seconds."""

    async def get(self, key: str) -> dict[str, Any] | None:
        """Return what is kept, None for nothing."""

    async def put(self, key: str, message: dict[str, Any], ttl: float) -> None:
        """Keep a message."""


class MemoryCache:
    """A cache in memory; beyond `max_entries` the one that was longest not asked for goes."""

    def __init__(
        self, max_entries: int = 1_000, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_entries = max_entries
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, dict[str, Any]]] = OrderedDict()

    async def get(self, key: str) -> dict[str, Any] | None:
        """Return what is kept, None for nothing."""
        until, message = self._kept.get(key, (0.0, {}))
        if until <= self._clock():
            self._kept.pop(key, None)
            return None
        self._kept.move_to_end(key)
        return deepcopy(message)

    async def put(self, key: str, message: dict[str, Any], ttl: float) -> None:
        """Keep a message."""
        self._kept[key] = (self._clock() + ttl, deepcopy(message))
        self._kept.move_to_end(key)
        if len(self._kept) > self._max_entries:
            self._kept.popitem(last=False)


def cached(stream_fn: StreamFn | None, cache: ResponseCache, *, ttl: float = ONE_HOUR) -> StreamFn:
    """Return a stream function that answers the same request from the cache, at no cost.

    Requests that sample (a temperature above 0 or none at all) are not cached unless
    `options.use_cache` says so; False keeps any request from it. Nor is an answer kept that is by
    another model than was asked, as a router's fallback. A cache that fails is gone without.
    """

    async def stream(
        model: Model, context: LlmContext, options: StreamOptions
    ) -> AsyncGenerator[AssistantMessageEvent, None]:
        use = is_exact(model, options) if options.use_cache is None else options.use_cache
        key = request_hash(model, context, options) if use else ""
        message = await _kept(cache, key) if use else None
        if message is not None:
            message.usage = Usage()
            yield StreamDone(message.stop_reason, message)
            return
        events = stream_completion(model, context, options, stream_fn=stream_fn)
        async with aclosing(events):
            async for event in events:
                if use and isinstance(event, StreamDone) and _is_by(model, event.message):
                    await _keep(cache, key, event.message, ttl)
                yield event

    return stream


async def _kept(cache: ResponseCache, key: str) -> AssistantMessage | None:
    try:
        kept = await cache.get(key)
        return None if kept is None else AssistantMessage.from_dict(kept)
    except Exception as error:  # noqa: BLE001 - the model can be asked all the same
        logger.warning("nothing was read from the response cache: %s", error_text(error))
        return None


async def _keep(cache: ResponseCache, key: str, message: AssistantMessage, ttl: float) -> None:
    try:
        await cache.put(key, message.to_dict(), ttl)
    except Exception as error:  # noqa: BLE001 - the answer is there, and paid
        logger.warning("an answer was not kept in the response cache: %s", error_text(error))


def _is_by(model: Model, message: AssistantMessage) -> bool:
    """Whether a model gave the answer; a stream function of one's own may not say which did."""
    return message.provider in {"", model.provider} and message.model in {"", model.id}


def request_hash(model: Model, context: LlmContext, options: StreamOptions) -> str:
    """Return the hash of what decides an answer: beside a step's input, where and how it is asked.

    Whose request it is, and when it was made, is no part of it.
    """
    asked = [
        model_step_hash(model, context, options),
        model.base_url,
        model.api,
        dict(model.headers),
        dict(model.extra),
        model.images,
        model.reasoning,
        model.thinking_levels,
    ]
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()


def is_exact(model: Model, options: StreamOptions) -> bool:
    """Whether the model is asked for its most likely answer, not for one of many."""
    temperature = model.temperature if options.temperature is None else options.temperature
    return temperature == 0
