"""What a provider keeps of a prompt between two calls, and where it wants to be told to."""

from __future__ import annotations

from dataclasses import dataclass

from agent_core.models import Model


@dataclass(frozen=True, slots=True)
class PromptCache:
    """How a provider caches the beginning of a prompt.

    With `marked` it keeps only what a mark ends, at a price for writing; otherwise it finds what
    two prompts have in common itself, in steps of `step` tokens. Nothing shorter than `minimum`
    tokens is kept.
    """

    marked: bool
    minimum: int
    step: int

    def kept(self, common: int) -> int:
        """How much of a beginning is read from the cache that two prompts have in common."""
        return 0 if common < self.minimum else common - common % self.step


def prompt_cache_of(model: Model) -> PromptCache:
    """How a model's provider caches; the marked ones are Anthropic's, wherever they run."""
    if "claude" in model.id:
        return PromptCache(marked=True, minimum=model.cache_minimum, step=1)
    if model.provider == "deepseek":
        return PromptCache(marked=False, minimum=64, step=64)
    return PromptCache(marked=False, minimum=model.cache_minimum, step=128)
