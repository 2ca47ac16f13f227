"""Building what a model is given for a reply, in an order of bytes that providers can cache.

Instructions, soul and summary come first, then the window of the history, then the new message
with the memories that were recalled for it. What was added stays where it is until the window is
cut, so all but the end of a request is the request before it. What was decided is noted on the
message (`context_notes`); the bytes follow from the note and the transcript alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from agent_core.content import plain_text
from agent_core.context_budget import ContextBudget, ContextOverflowError, fitted
from agent_core.context_notes import (
    ContextNote,
    LeftOut,
    RecalledMemory,
    Summary,
    newest_note,
    note_of,
    noted,
    summary_of,
)
from agent_core.fitted_run import fitted_run, shortened
from agent_core.messages import (
    LlmMessage,
    Message,
    ToolResultMessage,
    UserMessage,
    convert_to_llm,
)
from agent_core.prompt import PromptBuilder, with_memories
from agent_core.recall import is_question
from agent_core.recalled import filled, tokens_of, told_by_day
from agent_core.tokens import count_context_tokens, count_message_tokens, count_tokens
from agent_core.tools import AgentTool

_SMALLEST_MESSAGE = 64
"""Tokens that instructions and tools must leave."""

_MESSAGE_FRAME = 8  # role and separators of a message, and what its parts are rounded by
_BLOCK_TOKENS = 12  # the tags around memories

_LONGEST_SHARE = 3
"""One message of the history takes at most this part of the history's budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextParts:
    """What a request can be built from.

    `instructions` are the developer's and are never cut; the soul and the summaries may hold
    anything. `history` ends before the new message; `earlier` counts the messages that the
    session has before it.
    """

    instructions: str
    soul: str = ""
    tools: Sequence[AgentTool] = ()
    summaries: Sequence[Summary] = ()
    history: Sequence[Message] = ()
    earlier: int = 0


@dataclass(frozen=True, slots=True)
class BuiltContext:
    """A request within its budget.

    `messages` are the window as a model is shown it. `said` is the new message with its note and
    belongs into the transcript as it is.
    """

    system_prompt: str
    messages: list[Message]
    said: UserMessage
    note: ContextNote
    longest: int
    room: int

    def convert(self, messages: Sequence[Message]) -> list[LlmMessage]:
        """What a model is given of a run's messages: a `convert_to_llm` hook.

        A run that outgrows the budget by what its tools bring loses what is oldest, but not what
        the user said in it; a batch of results that is too large alone is shortened. A mark says
        where something is left out.
        """
        begins = next((at for at, one in enumerate(messages) if note_of(one) is not None), 0)
        history, run = self._shown(messages[:begins]), self._shown(messages[begins:])
        return convert_to_llm(fitted_run([*history, *run], self.room, len(history)))

    def _shown(self, messages: Sequence[Message]) -> list[LlmMessage]:
        return convert_to_llm(_with_note(message, self.longest) for message in messages)


@dataclass(frozen=True, slots=True)
class _Window:
    """What is shown of the history: from `start` on, with the memories from `kept_from` on.

    `kept` are those memories; `note` is the newest one, and where it stands.
    """

    start: int
    kept_from: int
    kept: tuple[RecalledMemory, ...] = ()
    note: tuple[int, ContextNote] | None = None
    is_cut: bool = True


class ContextBuilder:
    """Builds requests that fit a budget of tokens, by estimate."""

    def __init__(self, budget: ContextBudget | None = None) -> None:
        self.budget = budget or ContextBudget()

    def shown(self, history: Sequence[Message]) -> tuple[int, frozenset[str]]:
        """Where the window begins as it stands, and the ids of the memories in it.

        What is there need not be recalled.
        """
        window = self._standing(history)
        if not self._holds(history, window):
            window = self._cut(history, self.budget.history)
        return window.start, frozenset(memory.id for memory in window.kept)

    def build(
        self,
        said: UserMessage,
        parts: ContextParts,
        memories: Sequence[RecalledMemory] = (),
        *,
        tier: str | None = None,
    ) -> BuiltContext:
        """Decide what the request for a message holds, and compose it.

        Args:
            memories: the best first. What the window shows already is not shown again.
            tier: the session's, for the note.

        Raises:
            ContextOverflowError: what can't be cut does not fit.
        """
        note = replace(self._decided(said, parts, memories), tier=tier)
        return self.compose(noted(said, note), parts)

    def compose(self, said: UserMessage, parts: ContextParts) -> BuiltContext:
        """The request for a message that has a note: the same bytes in every process.

        Raises:
            ContextOverflowError: what can't be cut does not fit.
        """
        note = note_of(said) or ContextNote()
        fixed = self._fixed(parts)
        total = len(parts.history)
        window = _Window(max(0, total - note.window), max(0, total - note.kept))
        summary = summary_of(note, parts.history)
        return BuiltContext(
            system_prompt=self._prompt(parts, "" if summary is None else summary.text),
            messages=self._rendered(parts.history, window),
            said=said,
            note=note,
            longest=self._longest(fixed),
            room=self.budget.total - fixed,
        )

    # -- deciding -------------------------------------------------------------------------------

    def _decided(
        self, said: UserMessage, parts: ContextParts, memories: Sequence[RecalledMemory]
    ) -> ContextNote:
        history, fixed = parts.history, self._fixed(parts)
        shown = shortened(said, self._longest(fixed))
        message = count_message_tokens(shown)
        room = self.budget.total - fixed - message
        if room < 0:  # pictures can't be cut
            raise ContextOverflowError(fixed + message, self.budget.total)
        window = self._standing(history)
        most = self.budget.memories if is_question(_text(said)) else self.budget.asides
        new = self._new(memories, window.kept, most, room)
        if not self._holds(history, window, new, room):
            new = self._new(memories, (), most, room)
            window = self._cut(history, min(self.budget.history, room - _memory_tokens(new)))
        summary, is_new = _summary_at(parts, window)
        return ContextNote(
            window=len(history) - window.start,
            kept=len(history) - window.kept_from,
            cut=window.is_cut and bool(history),
            memories=tuple(new),
            left_out=tuple(self._left_out(parts, window, memories, new, whole=shown is said)),
            summary=summary if is_new else None,
            summary_id=None if summary is None else summary.id,
            tokens=(
                ("fixed", fixed),
                ("history", self._size(history, window)),
                ("memories", _memory_tokens(new)),
                ("message", message),
            ),
        )

    def _standing(self, history: Sequence[Message]) -> _Window:
        """The window that the newest note tells of, and what has come since."""
        found = newest_note(history)
        if found is None:
            return _Window(0, 0, is_cut=False)
        at, note = found
        start = max(0, at - note.window)
        if not self.budget.kept:
            return _Window(start, len(history), note=found, is_cut=False)
        kept_from = max(0, at - note.kept)
        notes = [note_of(message) for message in history[kept_from:at]]
        kept = [memory for one in [*notes, note] if one is not None for memory in one.memories]
        return _Window(start, kept_from, tuple(kept), note=found, is_cut=False)

    def _fixed(self, parts: ContextParts) -> int:
        """Tokens of what comes before the history, with room for a summary."""
        soul = count_tokens(fitted(parts.soul, self.budget.soul)) + _BLOCK_TOKENS
        fixed = count_context_tokens(parts.instructions, (), parts.tools) + soul
        fixed += self.budget.summary if parts.summaries else 0
        if self.budget.total - fixed < _SMALLEST_MESSAGE:
            raise ContextOverflowError(fixed + _SMALLEST_MESSAGE, self.budget.total)
        return fixed

    def _longest(self, fixed: int) -> int:
        """Tokens that the new message may have."""
        return min(self.budget.message, self.budget.total - fixed - _MESSAGE_FRAME)

    def _prompt(self, parts: ContextParts, summary: str) -> str:
        return PromptBuilder(
            identity=parts.instructions,
            soul=fitted(parts.soul, self.budget.soul),
            summary=fitted(summary, self.budget.summary - _BLOCK_TOKENS),
        ).build()

    def _new(
        self,
        memories: Sequence[RecalledMemory],
        kept: Sequence[RecalledMemory],
        most: int,
        room: int,
    ) -> list[RecalledMemory]:
        """Memories that are to be added, as they are told, as far as they fit beside those that
        stand there.

        The budget is for what is recalled, whether it is added or stands there already.
        """
        there = {memory.id for memory in kept}
        taken = filled(memories, min(most, room) - _BLOCK_TOKENS)
        return told_by_day(memory for memory in taken if memory.id not in there)

    def _holds(
        self,
        history: Sequence[Message],
        window: _Window,
        new: Sequence[RecalledMemory] = (),
        room: int | None = None,
    ) -> bool:
        """Whether a window may go on as it is, with further memories."""
        if len(history) - window.start > self.budget.most:
            return False
        kept = _memory_tokens(window.kept)
        added = _memory_tokens(new)
        size = self._size(history, window)
        return (
            size <= self.budget.history
            and (not kept or kept + added <= self.budget.kept)
            and (room is None or size + kept + added <= room)
        )

    def _cut(self, history: Sequence[Message], limit: int) -> _Window:
        """A window of few messages and few tokens, so that it can grow; without old memories."""
        limit = min(limit, self.budget.history // 2)
        total, start, fallback = 0, len(history), len(history)
        for at in range(len(history) - 1, -1, -1):
            total += self._tokens(history[at])
            if total > limit or len(history) - at > self.budget.fewest:
                break
            # A window best begins with the user's words, and never between a call and its result.
            if isinstance(history[at], UserMessage):
                start = at
            if not isinstance(history[at], ToolResultMessage):
                fallback = at
        return _Window(start if start < len(history) else fallback, len(history))

    def _size(self, history: Sequence[Message], window: _Window) -> int:
        return sum(self._tokens(message) for message in history[window.start :])

    def _tokens(self, message: Message) -> int:
        return count_message_tokens(self._short(message))

    def _left_out(
        self,
        parts: ContextParts,
        window: _Window,
        memories: Sequence[RecalledMemory],
        new: Sequence[RecalledMemory],
        *,
        whole: bool,
    ) -> Iterator[LeftOut]:
        if before := parts.earlier + window.start:
            yield LeftOut("messages", "window", before)
        there = {memory.id for memory in window.kept}
        if shown := [one.id for one in memories if one.id in there]:
            yield LeftOut.of_memories("shown", shown)
        there |= {memory.id for memory in new}
        if late := [one.id for one in memories if one.id not in there]:
            yield LeftOut.of_memories("budget", late)
        if fitted(parts.soul, self.budget.soul) != parts.soul:
            yield LeftOut("soul", "budget", len(parts.soul))
        if not whole:
            yield LeftOut("message", "budget", 1)

    # -- composing ------------------------------------------------------------------------------

    def _rendered(self, history: Sequence[Message], window: _Window) -> list[Message]:
        shown: list[Message] = []
        for at in range(window.start, len(history)):
            message = self._as_history(history[at])
            if at >= window.kept_from and (note := note_of(history[at])) is not None:
                message = _with_lines(message, note.memories)
            shown.append(message)
        return shown

    def _as_history(self, message: Message) -> Message:
        """A message of the past, which is not shown at any length."""
        short = self._short(message)
        # Its memories are shown, or not, by where the window was cut.
        return replace(short, details=None) if isinstance(short, UserMessage) else short

    def _short(self, message: Message) -> Message:
        return shortened(message, self.budget.history // _LONGEST_SHARE)


def _text(message: UserMessage) -> str:
    said = message.content
    return said if isinstance(said, str) else plain_text(said)


def _summary_at(parts: ContextParts, window: _Window) -> tuple[Summary | None, bool]:
    """The summary that stands before a window, and whether it is new there.

    The newest is taken up where the window is cut. Between cuts it would change the beginning of
    every request for what the window still shows.
    """
    if window.is_cut or window.note is None:
        newest = max(parts.summaries, key=lambda summary: summary.upto, default=None)
        return newest, newest is not None
    at, note = window.note
    summary = summary_of(note, parts.history[:at])
    # The message that it was noted on may have left the window, or the branch.
    return summary, summary is not None and summary_of(
        ContextNote(window=len(parts.history) - window.start, summary_id=summary.id), parts.history
    ) is None


def _with_note(message: Message, longest: int) -> Message:
    """A message of the run as a model is shown it."""
    note = note_of(message)
    short = shortened(message, longest)
    return short if note is None else _with_lines(short, note.memories)


def _with_lines(message: Message, memories: Sequence[RecalledMemory]) -> Message:
    return with_memories([message], [memory.text for memory in memories])[0]


def _memory_tokens(memories: Sequence[RecalledMemory]) -> int:
    """What memories take in a message, with the tags around them."""
    return tokens_of(memories) + (_BLOCK_TOKENS if memories else 0)
