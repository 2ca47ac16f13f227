"""How many tokens each part of a request may have, and texts cut down to a number of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agent_core.errors import AgentCoreError
from agent_core.models import Model
from agent_core.tokens import count_tokens

_SAFE_SHARE = 0.75
"""Tokens are estimated to within about a quarter, so this much of a model's window is used."""

# Hardly a text has more characters to a token; runs of blanks do, and may be cut sooner.
_CHARACTERS_PER_TOKEN = 8

_MARK = " [... {} characters are left out here ...] "
_MARK_TOKENS = count_tokens(_MARK.format(10**9))


class ContextOverflowError(AgentCoreError):
    """What can't be cut does not fit: instructions and tools leave a message no room.

    `needed` and `allowed` are tokens.
    """

    def __init__(self, needed: int, allowed: int) -> None:
        super().__init__(
            f"instructions and tools take {needed} of the {allowed} tokens that a request may have"
        )
        self.needed = needed
        self.allowed = allowed


@dataclass(frozen=True, slots=True)
class ContextBudget:
    """Tokens of a request: `total` is never exceeded, the others cap its parts.

    `memories` caps what is recalled for a question, `asides` for a message that asks nothing,
    `kept` all the memories that stand in the window (0 shows them with the newest message only),
    `history` the window without them. A window has `most` messages at the most; one that is full
    is cut to `fewest`.
    """

    total: int = 64_000
    soul: int = 4_000
    summary: int = 260
    message: int = 32_000
    memories: int = 430
    asides: int = 56
    kept: int = 0
    history: int = 6_000
    most: int = 28
    fewest: int = 8

    def within(self, model: Model) -> ContextBudget:
        """The same for a model whose window has to hold the request and the answer."""
        room = max(1, int(model.context_window * _SAFE_SHARE) - model.max_tokens)
        if room >= self.total:
            return self
        return replace(
            self,
            total=room,
            soul=min(self.soul, room // 4),
            summary=min(self.summary, room // 8),
            message=min(self.message, room // 2),
            memories=min(self.memories, room // 8),
            asides=min(self.asides, room // 8),
            kept=min(self.kept, room // 4),
            history=min(self.history, room // 2),
        )


def fitted(text: str, tokens: int) -> str:
    """The text, or its beginning and its end with a mark between them, of so many tokens.

    Where not even the mark fits, nothing is left.
    """
    if 2 * len(text) <= tokens:  # nothing has more than two tokens to a character
        return text
    kept = min(len(text), tokens * _CHARACTERS_PER_TOKEN)
    if kept == len(text) and count_tokens(text) <= tokens:
        return text
    while kept > 0 and tokens > _MARK_TOKENS:
        short = _without_middle(text, kept)
        counted = count_tokens(short)
        if counted <= tokens:
            return short
        kept = min(kept - 1, int(kept * 0.97 * tokens / counted))
    return ""


def _without_middle(text: str, kept: int) -> str:
    head = kept * 2 // 3
    mark = _MARK.format(len(text) - kept)
    return text[:head] + mark + text[len(text) - (kept - head) :]
