"""How much a model may think: levels, and budgets for models that want a number of tokens."""

from __future__ import annotations

from agent_core.models import Model
from agent_core.streaming import StreamOptions, ThinkingLevel

LEVELS: tuple[ThinkingLevel, ...] = ("minimal", "low", "medium", "high", "xhigh")

_BUDGETS: dict[ThinkingLevel, int] = {
    "minimal": 1_024,
    "low": 2_048,
    "medium": 8_192,
    "high": 16_384,
    "xhigh": 32_768,
}

# What a budget must leave of the cap for the answer itself.
_ANSWER_TOKENS = 1_024


def thinking_level(model: Model, wanted: ThinkingLevel | None) -> ThinkingLevel | None:
    """Return the level to ask the model for, None for none.

    A level the model does not know becomes the next lower one it knows, or else its lowest.
    """
    known = [level for level in LEVELS if level in model.thinking_levels]
    if not model.reasoning or wanted is None or wanted == "off" or not known:
        return None
    fitting = [level for level in known if LEVELS.index(level) <= LEVELS.index(wanted)]
    return fitting[-1] if fitting else known[0]


def thinking_budget(level: ThinkingLevel, options: StreamOptions, cap: int) -> int | None:
    """Return the tokens of thinking for a level, within the cap of the whole answer.

    None where the cap has no room for the least of thinking and an answer.
    """
    least = _BUDGETS["minimal"]
    if cap < least + _ANSWER_TOKENS:
        return None
    wanted = (options.thinking_budgets or {}).get(level, _BUDGETS[level])
    return max(least, min(wanted, cap - _ANSWER_TOKENS))
