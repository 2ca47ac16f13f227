"""Fitting a transcript into a model's context: old messages are cut off, in steps.

A window that slides with every reply changes the beginning of every request, and with it the
provider's cache of the prompt is lost each time. So the window is cut far back when it is
full, and then grows again. Where it is cut follows from the messages alone: every process
cuts alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agent_core.messages import Message, ToolResultMessage, UserMessage
from agent_core.models import Model
from agent_core.tokens import count_context_tokens, count_message_tokens
from agent_core.tools import AgentTool

LEFT_OUT = "(Earlier messages are left out here.)"


@dataclass(frozen=True, slots=True)
class WindowCut:
    """The messages that fit, and how many before them were left out."""

    messages: list[Message]
    left_out: int
    tokens: int


@dataclass(frozen=True, slots=True)
class ContextWindow:
    """A budget of tokens for the messages; a full window is cut to the share `keep` of it."""

    budget: int
    keep: float = 0.5

    @classmethod
    def for_model(
        cls, model: Model, system_prompt: str = "", tools: Iterable[AgentTool] = ()
    ) -> ContextWindow:
        """Return the window that a model leaves beside the prompt, the tools and the answer."""
        taken = model.max_tokens + count_context_tokens(system_prompt, (), tools)
        return cls(max(1, model.context_window - taken))

    def cut(self, messages: Sequence[Message]) -> WindowCut:
        """Return what fits. The last message is kept even if it alone does not fit."""
        sizes = [count_message_tokens(message) for message in messages]
        start = 0
        total = 0
        for at, size in enumerate(sizes):
            total += size
            if total > self.budget:
                start = self._next_start(messages, sizes, start, at)
                total = sum(sizes[start : at + 1])
        return WindowCut(list(messages[start:]), start, total)

    def _next_start(
        self, messages: Sequence[Message], sizes: Sequence[int], start: int, end: int
    ) -> int:
        """Return where a window that is full at `end` is to begin."""
        kept = self.budget * self.keep
        total = sum(sizes[start : end + 1])
        fallback = None
        for at in range(start, end + 1):
            # A window best begins with the user's words; inside a long turn with an answer, but
            # never between a call and its result.
            fits = total <= kept
            if fits and isinstance(messages[at], UserMessage):
                return at
            if fits and fallback is None and not isinstance(messages[at], ToolResultMessage):
                fallback = at
            total -= sizes[at]
        return self._last_beginning(messages, start, end) if fallback is None else fallback

    def _last_beginning(self, messages: Sequence[Message], start: int, end: int) -> int:
        for at in range(end, start, -1):
            if not isinstance(messages[at], ToolResultMessage):
                return at
        return start

    def transform(self, messages: list[Message], _: object = None) -> list[Message]:
        """Cut: a `transform_context` hook. The first message is the user's, as providers want."""
        kept = self.cut(messages)
        if kept.left_out and not isinstance(kept.messages[0], UserMessage):
            return [UserMessage(LEFT_OUT, timestamp=0), *kept.messages]
        return kept.messages
