"""`python -m bench.cost --data FILE`: what the replies of long conversations cost, and what they see.

Each reply of the conversations is replayed through the context builder, and the exact texts of its
request are priced: with the whole history, with the last 50 messages, and as Fireside builds it;
each with the provider's cache warm and cold. The same again for one user who has had all of the
conversations, one after the other. Beside the dollars stands the share of the evidence that a
request for each question would hold. No model is called.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from agent_core import AssistantMessage, Message, Model, TextContent, Usage, UserMessage, get_model
from agent_core.chat_format import chat_messages
from agent_core.context_budget import ContextBudget, fitted
from agent_core.context_builder import ContextBuilder, ContextParts, Summary
from agent_core.context_notes import RecalledMemory
from agent_core.streaming import LlmContext
from agent_core.tokens import count_tokens
from bench.conversations import (
    Conversation,
    ConversationsError,
    Question,
    Turn,
    read_conversations,
)
from bench.provider_cache import Meter, Request, counted_by, tokens_of
from bench.words import WordIndex

STRONG = "openai/gpt-5.4"
CHEAP = "openai/gpt-5.4-nano"

SYSTEM_TOKENS = 450
SOUL_TOKENS = 600
SUMMARY_TOKENS = 200
CHAIN_TURNS = 5_000
SLIDING = 50
SUMMARY_EVERY = 8  # messages

_FILLER = "You answer as a person would and keep to what was said before, kindly and in few words. "


@dataclass(frozen=True, slots=True)
class Spoken:
    """A message of a transcript, and the turns that it was made of."""

    message: Message
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Told:
    """The texts of a request, and the turns whose words stand in them."""

    texts: Sequence[str]
    turns: frozenset[str]


class Way(Protocol):
    """A way to build requests for the messages of one user."""

    def request(self, said: Spoken, *, keep: bool = True) -> Told:
        """The request for a message; it is part of the transcript from then on, if kept."""

    def hear(self, spoken: Spoken) -> None:
        """Take a message into the transcript."""


class LastMessages:
    """The newest messages and nothing else; all of them without a number."""

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._texts: list[str] = []
        self._turns: list[tuple[Turn, ...]] = []

    def request(self, said: Spoken, *, keep: bool = True) -> Told:
        start = 0 if self._most is None else max(0, len(self._texts) + 1 - self._most)
        texts = [system_prompt(), *self._texts[start:], text_of(said.message)]
        turns = frozenset(turn.id for spoken in self._turns[start:] for turn in spoken)
        if keep:
            self.hear(said)
        return Told(texts, turns)

    def hear(self, spoken: Spoken) -> None:
        self._texts.append(text_of(spoken.message))
        self._turns.append(spoken.turns)


class Built:
    """Fireside's own: the context builder, and recall of what the window does not show."""

    def __init__(self, budget: ContextBudget) -> None:
        self._builder = ContextBuilder(budget)
        self._history: list[Message] = []
        self._turns: list[tuple[Turn, ...]] = []
        self._index = WordIndex()
        self._memories: dict[str, RecalledMemory] = {}
        self._unindexed = 0
        self._summaries: list[Summary] = []
        self.summary_usage = Usage()
        self.cuts = 0
        self.estimates: list[tuple[int, int]] = []

    def request(self, said: Spoken, *, keep: bool = True) -> Told:
        start, _ = self._builder.shown(self._history)
        query = str(text_of(said.message))
        visible = {turn.id for spoken in self._turns[start:] for turn in spoken}
        memories = self._recalled(query, visible)
        parts = ContextParts(
            instructions=filler(SYSTEM_TOKENS),
            soul=filler(SOUL_TOKENS),
            summaries=self._summaries[-3:],
            history=self._history,
        )
        assert isinstance(said.message, UserMessage)
        built = self._builder.build(said.message, parts, memories)
        context = LlmContext(built.system_prompt, built.convert([*built.messages, built.said]), [])
        texts = [str(one["content"]) for one in chat_messages(_ANY, context, signed_thinking=False)]
        shown = self._turns[len(self._history) - built.note.window :]
        turns = {turn.id for spoken in shown for turn in spoken}
        turns |= {memory.id for memory in built.note.memories}
        for message in self._history[len(self._history) - built.note.kept :]:
            turns |= {memory.id for memory in memories_on(message)}
        if keep:
            self.cuts += built.note.cut
            self._history.append(built.said)
            self._turns.append(said.turns)
            self._remember()
        return Told(texts, frozenset(turns))

    def hear(self, spoken: Spoken) -> None:
        self._history.append(spoken.message)
        self._turns.append(spoken.turns)
        self._remember()

    def _remember(self) -> None:
        for turn in self._turns[-1]:
            line = f"{turn.speaker} ({turn.date}): {turn.text}"
            self._memories[turn.id] = RecalledMemory(turn.id, line)
            self._index.add(turn.id, line)
        if len(self._history) % SUMMARY_EVERY == 0:
            self._summarise()

    def _recalled(self, query: str, visible: set[str]) -> list[RecalledMemory]:
        best = self._index.best(query, 60 + len(visible))
        return [self._memories[key] for key in best if key not in visible][:40]

    def _summarise(self) -> None:
        """A summary of the size that one has; what it says does not count as evidence."""
        newest = self._history[-SUMMARY_EVERY:]
        said = " ".join(text_of(message) for message in newest)
        before = self._summaries[-1].text if self._summaries else ""
        text = fitted(f"{said} {before}", SUMMARY_TOKENS)
        number = len(self._history)
        self._summaries.append(Summary(str(number), text, number))
        used = tokens_of(said) + tokens_of(before) + 150
        self.summary_usage += Usage(input=used, output=SUMMARY_TOKENS)


def memories_on(message: Message) -> Sequence[RecalledMemory]:
    from agent_core.context_notes import note_of

    note = note_of(message)
    return () if note is None else note.memories


_ANY = Model("any", "openai")


def text_of(message: Message) -> str:
    if isinstance(message, AssistantMessage):
        return message.text
    return str(message.content)


def filler(tokens: int) -> str:
    text = ""
    while tokens_of(text) < tokens:
        text += _FILLER
    return text


def system_prompt() -> str:
    return f"{filler(SYSTEM_TOKENS)}\n\n{filler(SOUL_TOKENS)}"


def spoken(conversation: Conversation) -> Iterator[tuple[bool, Spoken]]:
    """The messages of a conversation; turns of one speaker in a row are one message."""
    run: list[Turn] = []
    for turn in [*conversation.turns, None]:
        if run and (turn is None or turn.speaker != run[0].speaker):
            text = "\n".join(one.text for one in run)
            by_user = run[0].speaker == conversation.user
            message: Message = (
                UserMessage(text, 0)
                if by_user
                else AssistantMessage([TextContent(text)], timestamp=0)
            )
            yield by_user, Spoken(message, tuple(run))
            run = []
        if turn is not None:
            run.append(turn)


@dataclass
class Replies:
    """What the replies used: warm, cold, and where in the turns each stood."""

    warm: list[Usage] = field(default_factory=list)
    cold: list[Usage] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)


def replay(
    way: Way,
    conversations: Sequence[Conversation],
    model: Model,
    replies: Replies,
    most: int | None = None,
) -> None:
    warm, cold = Meter(model, warm=True), Meter(model, warm=False)
    turn = 0
    for conversation in conversations:
        messages = list(spoken(conversation))
        for (by_user, one), following in zip(messages, [*messages[1:], None], strict=True):
            turn += len(one.turns)
            if most is not None and turn > most:
                return
            if not by_user or following is None:
                way.hear(one)
                continue
            request = Request(way.request(one).texts, text_of(following[1].message))
            replies.warm.append(warm.usage(request))
            replies.cold.append(cold.usage(request))
            replies.turns.append(turn)


def coverage(way: Way, questions: Sequence[Question]) -> float:
    shares = []
    for question in questions:
        said = Spoken(UserMessage(question.text, 0), ())
        told = way.request(said, keep=False).turns
        shares.append(len(question.evidence & told) / len(question.evidence))
    return sum(shares) / max(1, len(shares))
