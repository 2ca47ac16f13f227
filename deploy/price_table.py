"""`python -m deploy.price_table YYYY-MM-DD > shared/prices.json`: the release's table of prices.

Taken from the table inside the installed litellm package, which is read and not imported. Models
that run here cost nothing.
"""

import json
import sys
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

VALID_FROM = date(2026, 1, 1)
"""The day from which the table applies: before the release, for clocks may be wrong."""

MODELS = (
    "openai/gpt-4o",
    "openai/gpt-4o-mini",
    "openai/gpt-4.1",
    "openai/gpt-4.1-mini",
    "openai/gpt-4.1-nano",
    "openai/gpt-5",
    "openai/gpt-5-mini",
    "openai/gpt-5-nano",
    "openai/gpt-5.1",
    "openai/gpt-5.2",
    "openai/gpt-5.4",
    "openai/gpt-5.4-mini",
    "openai/gpt-5.4-nano",
    "openai/gpt-5.5",
    "anthropic/claude-haiku-4-5",
    "anthropic/claude-sonnet-4-5",
    "anthropic/claude-sonnet-4-6",
    "anthropic/claude-sonnet-5",
    "anthropic/claude-opus-4-5",
    "anthropic/claude-opus-4-6",
    "anthropic/claude-opus-4-7",
    "anthropic/claude-opus-5",
    "gemini/gemini-2.5-flash",
    "gemini/gemini-2.5-flash-lite",
    "gemini/gemini-2.5-pro",
    "gemini/gemini-3-flash-preview",
    "gemini/gemini-3.1-flash-lite",
    "gemini/gemini-3.1-pro-preview",
    "gemini/gemini-3.5-flash",
    "deepseek/deepseek-chat",
    "deepseek/deepseek-reasoner",
    "deepseek/deepseek-v4-flash",
    "deepseek/deepseek-v4-pro",
    "mistral/mistral-small-latest",
    "mistral/mistral-medium-latest",
    "mistral/mistral-large-latest",
    "mistral/ministral-3b-latest",
    "mistral/ministral-8b-latest",
    "groq/openai/gpt-oss-20b",
    "groq/openai/gpt-oss-120b",
    "xai/grok-4.3",
    "xai/grok-4.5",
)

FREE = ("openai/scripted", "openai/smollm2")

_FIELDS = {
    "input": "input_cost_per_token",
    "output": "output_cost_per_token",
    "cache_read": "cache_read_input_token_cost",
    "cache_write": "cache_creation_input_token_cost",
}


def public_table() -> Mapping[str, Mapping[str, Any]]:
    """The table inside the litellm package: dollars for one token, by litellm's names."""
    spec = find_spec("litellm")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    file = Path(spec.submodule_search_locations[0], "model_prices_and_context_window_backup.json")
    table: dict[str, dict[str, Any]] = json.loads(file.read_bytes(), parse_float=Decimal)
    return table


def price_of(model: str, table: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """A model's prices for a million tokens; raises LookupError where they are not known."""
    entry = table.get(model) or table[model.partition("/")[2]]
    found = {name: entry.get(field) for name, field in _FIELDS.items()}
    if not found["input"] or not found["output"]:
        raise LookupError(model)
    return {name: float(Decimal(one) * 1_000_000) for name, one in found.items() if one is not None}


def main() -> None:
    """Write the table; the argument is its date."""
    made = date.fromisoformat(sys.argv[1]).isoformat()
    public = public_table()
    prices = {name: price_of(name, public) for name in MODELS}
    prices |= {name: {"input": 0, "output": 0} for name in FREE}
    since = {"valid_from": VALID_FROM.isoformat()}
    table = {
        "version": f"fireside-{made}",
        "source": f"providers' list prices as litellm {version('litellm')} has them, "
        f"taken on {made}; openai/scripted and openai/smollm2 run on one's own machine",
        "unit": "US dollars for a million tokens",
        "models": {name: [since | one] for name, one in sorted(prices.items())},
    }
    lines = json.dumps(table, indent=2)
    sys.stdout.write(f"{lines}\n")


if __name__ == "__main__":
    main()
