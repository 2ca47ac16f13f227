"""What a model was asked before, byte for byte the same, is not asked again.

That happens where players come into the same scene and say the same. It is no use where a request
carries a whole conversation: consolidation hardly ever asks the same of two users, and its answers,
which are all about one of them, have no business in Redis.
"""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Final, Literal, TypeAlias

from agent_core import (
    AssistantMessage,
    AssistantMessageEvent,
    LlmContext,
    MalformedDataError,
    Model,
    StreamFn,
    StreamOptions,
    TextContent,
    cached,
)
from shared.encoding import JsonObject
from shared.kept_answers import KeptAnswers
from worker.story_replies import json_in

PURPOSES: Final[Mapping[str, str]] = {"referee": "choice", "judge": "changes"}
"""The calls whose answers are kept, and what an answer of use says in its JSON: one of none is not
kept, for who asks next may have more luck."""

Lookups: TypeAlias = Counter[tuple[str, Literal["hit", "miss"]]]
"""How often an answer was there, by purpose."""


class KnownAnswers:
    """The answers that a worker need not pay for again.

    Args:
        seconds: for how long an answer is kept.
        lookups: where it is counted.
    """

    def __init__(self, kept: KeptAnswers, seconds: int, lookups: Lookups) -> None:
        self.kept = kept
        self.seconds = seconds
        self.lookups = lookups

    def before(self, stream_fn: StreamFn, user_id: str) -> StreamFn:
        """The same stream function; what is known already does not get to it."""

        def stream(
            model: Model, context: LlmContext, options: StreamOptions
        ) -> AsyncIterator[AssistantMessageEvent] | Awaitable[AsyncIterator[AssistantMessageEvent]]:
            if options.purpose not in PURPOSES:
                return stream_fn(model, context, options)
            call = _Call(self, user_id, model, options.purpose)
            return cached(stream_fn, call, ttl=self.seconds)(model, context, options)

        return stream


class _Call:
    """The answers as one call sees them: a ResponseCache."""

    def __init__(self, known: KnownAnswers, user_id: str, model: Model, purpose: str) -> None:
        self._known = known
        self._user_id = user_id
        self._model = model
        self._purpose = purpose

    async def get(self, key: str) -> JsonObject | None:
        """Return what is kept, None for nothing."""
        found = await self._known.kept.get(self._user_id, key)
        message = None if found is None else self._of_use(found)
        self._known.lookups[self._purpose, "miss" if message is None else "hit"] += 1
        return message

    async def put(self, key: str, message: JsonObject, ttl: float) -> None:
        """Keep a message."""
        answer = self._of_use(message)
        if answer is not None:
            await self._known.kept.put(self._user_id, key, answer, int(ttl))

    def _of_use(self, data: JsonObject) -> JsonObject | None:
        """A message as it is kept: without thoughts and usage. None for what must not be: it did
        not end well, is no use, or is by another model, which stood in for the one asked."""
        try:
            message = AssistantMessage.from_dict(data)
        except MalformedDataError:
            return None
        model = self._model
        if (message.provider, message.model) != (model.provider, model.id):
            return None
        if message.stop_reason != "stop" or message.tool_calls:
            return None
        if json_in(message.text, PURPOSES[self._purpose]) is None:
            return None
        kept = AssistantMessage([TextContent(message.text)], model.id, model.provider)
        return kept.to_dict()
