"""Which model answers what: a strong one and a cheap one, and what stands in while one is away."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from agent_core import (
    AssistantMessage,
    AssistantMessageEvent,
    LlmContext,
    Message,
    Model,
    ModelRouter,
    StreamFn,
    StreamOptions,
    UserMessage,
    count_message_tokens,
    stream_completion,
)

Tier: TypeAlias = Literal["strong", "cheap"]

RECENT = 12
"""How many messages of a session say what it is like just now."""

LONG = 60
"""Tokens of a user's message, on average, from which on a session is no small talk."""


@dataclass(frozen=True, slots=True)
class ModelAccess:
    """A model and the key that it is called with; None leaves it to the provider's variable."""

    model: Model
    api_key: str | None = None


class ModelTiers:
    """The models of a deployment.

    One that fails before it has begun to answer is replaced by the next: first by the fallbacks in
    their order, then by the other tier.

    Args:
        cheap: None where one model does everything.

    `models` are all that may be called.
    """

    def __init__(
        self,
        strong: ModelAccess,
        cheap: ModelAccess | None = None,
        fallbacks: Sequence[ModelAccess] = (),
    ) -> None:
        self._models: Mapping[Tier, Model] = {
            "strong": strong.model,
            "cheap": (cheap or strong).model,
        }
        self._keys: dict[tuple[str, str | None], str | None] = {}
        self._router = ModelRouter(sticky=False)
        accesses = [*fallbacks, *([cheap] if cheap else []), strong]
        self.models = tuple(access.model for access in accesses)
        for access in accesses:
            model = access.model
            self._keys.setdefault((model.name, model.base_url), access.api_key)
            self._router.register(f"{model.name} {model.base_url or ''}", model)

    def model(self, tier: Tier) -> Model:
        """The model of a tier."""
        return self._models[tier]

    def access(self, tier: Tier) -> ModelAccess:
        """The model of a tier with its key."""
        model = self._models[tier]
        return ModelAccess(model, self._keys[model.name, model.base_url])

    def stream_fn(self, inner: StreamFn | None) -> StreamFn:
        """A stream function that falls back from model to model, each called with its own key."""

        async def keyed(
            model: Model, context: LlmContext, options: StreamOptions
        ) -> AsyncGenerator[AssistantMessageEvent, None]:
            key = self._keys.get((model.name, model.base_url), options.api_key)
            own = replace(options, api_key=key)
            events = stream_completion(model, context, own, stream_fn=inner)
            async with aclosing(events):
                async for event in events:
                    yield event

        return self._router.stream_fn(keyed)


def tier_of(
    history: Sequence[Message],
    *,
    usual: Tier,
    standing: str | None,
    may_change: bool,
    deep: bool,
    economy: bool,
) -> Tier:
    """The tier that answers a session's next message.

    It stays as it is, for with another model the provider's cache of the prompt is lost, except
    where that is lost anyway, or somebody asks for it.

    Args:
        history: the newest messages.
        usual: what the agent, or whoever made the session, thinks it needs.
        standing: the tier of the message before, if there was one.
        may_change: the window was cut, or begins.
        deep: the user asks for the strong one.
        economy: most of a budget is spent.
    """
    if economy:
        return "cheap"
    if deep:
        return "strong"
    if standing in {"strong", "cheap"} and not may_change:
        return "strong" if standing == "strong" else "cheap"
    return "strong" if usual == "strong" or _is_demanding(history[-RECENT:]) else "cheap"


def _is_demanding(recent: Sequence[Message]) -> bool:
    """Whether tools were used, or the user says much at a time."""
    if any(isinstance(one, AssistantMessage) and one.tool_calls for one in recent):
        return True
    said = [count_message_tokens(one) for one in recent if isinstance(one, UserMessage)]
    return bool(said) and sum(said) / len(said) >= LONG
