"""Which model to call: its name, its limits and its prices.

`get_model` knows the limits and prices of public models from the table inside the litellm
package; it reads that file and does not import litellm.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from agent_core.fields import json_object, maybe, number, one_of, optional, require
from agent_core.messages import Usage

if TYPE_CHECKING:
    from agent_core.streaming import ThinkingLevel

_MILLION = 1_000_000
_DEFAULT_WINDOW = 128_000
_DEFAULT_OUTPUT_CAP = 4_096
_DEFAULT_CACHE_MINIMUM = 1_024

Api = Literal["litellm", "openai"]
_APIS: tuple[Api, ...] = get_args(Api)
_USUAL_LEVELS: tuple[ThinkingLevel, ...] = ("minimal", "low", "medium", "high")


@dataclass(frozen=True, slots=True)
class ModelCost:
    """Prices in US dollars for a million tokens."""

    input: float = 0.0
    output: float = 0.0
    cache_read: float = 0.0
    cache_write: float = 0.0


@dataclass(frozen=True, slots=True)
class Model:
    """A model and how it is called.

    `api` picks the way to it: `litellm` for all providers, `openai` for endpoints that speak
    OpenAI's chat completions at `base_url`, called without litellm. `max_tokens` caps each
    answer. `cache_minimum` is the shortest beginning of a prompt, in tokens, that the provider
    caches. `reasoning` tells whether the model can think, `images` whether it can see. Timeouts
    are in seconds: up to the first content, and between two pieces of it.
    """

    id: str
    provider: str
    base_url: str | None = None
    context_window: int = _DEFAULT_WINDOW
    max_tokens: int = _DEFAULT_OUTPUT_CAP
    cost: ModelCost = field(default_factory=ModelCost)
    api: Api = "litellm"
    temperature: float | None = None
    reasoning: bool = False
    thinking_levels: tuple[ThinkingLevel, ...] = _USUAL_LEVELS
    images: bool = False
    tools: bool = True
    cache_minimum: int = _DEFAULT_CACHE_MINIMUM
    first_token_timeout: float = 60.0
    stall_timeout: float = 30.0
    max_attempts: int = 3
    retry_delay: float = 0.5
    headers: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Provider and id, as routing and limits know the model."""
        return f"{self.provider}/{self.id}"

    def shares_keys_with(self, other: Model) -> bool:
        """Whether a key for the one is for the other, too: both are one provider's, or at one
        `base_url`."""
        same_place = self.base_url is not None and self.base_url == other.base_url
        return same_place or self.provider == other.provider

    def price(self, usage: Usage) -> Usage:
        """Return the usage with its cost filled in."""
        cost = (
            usage.input * self.cost.input
            + usage.output * self.cost.output
            + usage.cache_read * self.cost.cache_read
            + usage.cache_write * self.cost.cache_write
        ) / _MILLION
        return replace(usage, cost=cost)

    def to_dict(self) -> dict[str, Any]:
        """Return the model as JSON, without headers and extras: they may hold keys."""
        return {
            "id": self.id,
            "provider": self.provider,
            "base_url": self.base_url,
            "context_window": self.context_window,
            "max_tokens": self.max_tokens,
            "cache_minimum": self.cache_minimum,
            "cost": asdict(self.cost),
            "api": self.api,
            "temperature": self.temperature,
            "reasoning": self.reasoning,
            "thinking_levels": list(self.thinking_levels),
            "images": self.images,
            "tools": self.tools,
            "first_token_timeout": self.first_token_timeout,
            "stall_timeout": self.stall_timeout,
            "max_attempts": self.max_attempts,
            "retry_delay": self.retry_delay,
        }

    @classmethod
    def from_dict(cls, data: object) -> Model:
        """Read a model; raises MalformedDataError."""
        fields = json_object(data, "a model")
        cost = optional(fields, "cost", dict, {})
        temperature = fields.get("temperature")
        return cls(
            id=require(fields, "id", str),
            provider=require(fields, "provider", str),
            base_url=maybe(fields, "base_url", str),
            context_window=optional(fields, "context_window", int, _DEFAULT_WINDOW),
            max_tokens=optional(fields, "max_tokens", int, _DEFAULT_OUTPUT_CAP),
            cache_minimum=optional(fields, "cache_minimum", int, _DEFAULT_CACHE_MINIMUM),
            cost=ModelCost(
                number(cost, "input", 0.0),
                number(cost, "output", 0.0),
                number(cost, "cache_read", 0.0),
                number(cost, "cache_write", 0.0),
            ),
            api=one_of(fields, "api", _APIS, "litellm"),
            temperature=None if temperature is None else number(fields, "temperature"),
            reasoning=optional(fields, "reasoning", bool, default=False),
            thinking_levels=tuple(optional(fields, "thinking_levels", list, [*_USUAL_LEVELS])),
            images=optional(fields, "images", bool, default=False),
            tools=optional(fields, "tools", bool, default=True),
            first_token_timeout=number(fields, "first_token_timeout", 60.0),
            stall_timeout=number(fields, "stall_timeout", 30.0),
            max_attempts=optional(fields, "max_attempts", int, 3),
            retry_delay=number(fields, "retry_delay", 0.5),
        )


def get_model(provider: str, model_id: str, **changes: Any) -> Model:
    """Return a model with the limits and prices that are publicly known for it.

    `changes` are fields of Model that override them. An unknown model gets the defaults of
    Model: free of cost, a window of 128,000 tokens, answers of at most 4,096. An answer gets a
    quarter of the window at the most, where `changes` do not say `max_tokens`.
    """
    model = replace(_public_model(provider, model_id), **changes)
    if "max_tokens" in changes:
        return model
    # Many a model may fill all its window with its answer, which left a request no room.
    return replace(model, max_tokens=min(model.max_tokens, max(1, model.context_window // 4)))


# The models are kept, not the table: it is 4,000 entries long and read in about 30 ms.
@cache
def _public_model(provider: str, model_id: str) -> Model:
    table = _public_table()
    entry = table.get(f"{provider}/{model_id}") or table.get(model_id) or {}
    if entry.get("litellm_provider", provider) != provider:
        entry = {}
    return _from_entry(provider, model_id, entry)


def _from_entry(provider: str, model_id: str, entry: Mapping[str, Any]) -> Model:
    asked = _per_million(entry, "input_cost_per_token")
    return Model(
        id=model_id,
        provider=provider,
        context_window=_whole(entry.get("max_input_tokens"), _DEFAULT_WINDOW),
        max_tokens=min(_whole(entry.get("max_output_tokens"), _DEFAULT_OUTPUT_CAP), 16_384),
        cache_minimum=_whole(entry.get("prompt_cache_min_tokens"), _DEFAULT_CACHE_MINIMUM),
        cost=ModelCost(
            input=asked,
            output=_per_million(entry, "output_cost_per_token"),
            # A provider that names no price for its cache does not give its tokens away.
            cache_read=_per_million(entry, "cache_read_input_token_cost", asked),
            cache_write=_per_million(entry, "cache_creation_input_token_cost", asked),
        ),
        reasoning=bool(entry.get("supports_reasoning")),
        images=bool(entry.get("supports_vision")),
        tools=bool(entry.get("supports_function_calling", True)),
    )


def _per_million(entry: Mapping[str, Any], name: str, otherwise: float = 0.0) -> float:
    price = entry.get(name)
    return otherwise if price is None else round(float(price) * _MILLION, 9)


def _whole(value: object, default: int) -> int:
    return int(value) if isinstance(value, (int, float)) and value > 0 else default


def _public_table() -> Mapping[str, Mapping[str, Any]]:
    spec = find_spec("litellm")
    for folder in (spec and spec.submodule_search_locations) or ():
        table = Path(folder, "model_prices_and_context_window_backup.json")
        if table.is_file():
            entries: dict[str, dict[str, Any]] = json.loads(table.read_bytes())
            return entries
    return {}
