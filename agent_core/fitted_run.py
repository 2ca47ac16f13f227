"""Fitting a run into the room that is left: what was asked, and what its tools brought last.

Results are capped singly where they are shown; a batch of them may still be larger than all the
room, and so may all that the user said meanwhile. What is shown follows from the messages alone, so
that every request begins as the one before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from agent_core.content import AssistantContent, TextContent, UserContent
from agent_core.context_budget import fitted
from agent_core.messages import AssistantMessage, Message, ToolResultMessage, UserMessage
from agent_core.tokens import count_message_tokens, count_tokens
from agent_core.window import LEFT_OUT as EARLIER_LEFT_OUT
from agent_core.window import ContextWindow

B = TypeVar("B", AssistantContent, UserContent)

LEFT_OUT = "\n\n(What was done about this before is left out here.)"
_EARLIER = UserMessage(EARLIER_LEFT_OUT, timestamp=0)


def fitted_run(messages: Sequence[Message], room: int, begins: int = 0) -> list[Message]:
    """The messages that fit, in so many tokens.

    What the user said in the run is shown, as far as half of the room holds it, and the newest
    batch of tool results; their texts are shortened to equal shares where they are too long
    together. Of the rest a window is shown. Where something is left out a mark says so.

    Args:
        begins: where the run does; what stands before it is history.
    """
    if sum(map(count_message_tokens, messages)) <= room:
        return list(messages)
    words = _words(messages, begins, room // 2)
    left = room - sum(map(count_message_tokens, [_EARLIER, *map(_marked, words.values())]))
    places = [at for at in range(len(messages)) if at not in words]
    newest = _newest_batch(messages)
    before = sum(at < newest for at in places)
    # The words are no part of the window, or each new one would be the best place for its cut.
    rest = [messages[at] for at in places]
    rest[before:] = _sharing(rest[before:], left, ToolResultMessage)
    cut = ContextWindow(left).cut(rest)
    start = before if cut.tokens > left else min(cut.left_out, before)
    return _with_marks(words | dict(zip(places[start:], rest[start:], strict=True)))


def _newest_batch(messages: Sequence[Message]) -> int:
    """Where the calls stand whose results no answer has followed yet, or else the last message."""
    for at in range(len(messages) - 1, -1, -1):
        if isinstance(messages[at], AssistantMessage):
            if any(isinstance(one, ToolResultMessage) for one in messages[at + 1 :]):
                return at
            break
    return len(messages) - 1


def _words(messages: Sequence[Message], begins: int, room: int) -> dict[int, Message]:
    """What the user said in the run, by its place: the newest, the first, and the next newest."""
    said = [at for at in range(begins, len(messages)) if isinstance(messages[at], UserMessage)]
    if len(said) < 2:
        return {at: messages[at] for at in said}
    first, newest = _sharing([messages[said[0]], messages[said[-1]]], room, UserMessage)
    words = {said[-1]: newest}
    left = room - count_message_tokens(newest)
    for at in (said[0], *reversed(said[1:-1])):
        word = first if at == said[0] else messages[at]
        left -= count_message_tokens(word)
        if left < 0:
            break
        words[at] = word
    return words


def _with_marks(shown: Mapping[int, Message]) -> list[Message]:
    """The messages in the order of their places, with a mark where some are missing between."""
    told: list[Message] = []
    expected = 0
    for at in sorted(shown):
        if at > expected and told:
            told[-1] = _marked(told[-1])
        elif at > expected:
            told.append(replace(_EARLIER))
        told.append(shown[at])
        expected = at + 1
    return told


def _marked(word: Message) -> Message:
    """What the user said, with a mark behind it."""
    if not isinstance(word, UserMessage):
        return word
    said = word.content
    blocks = [TextContent(said)] if isinstance(said, str) else said
    return replace(word, content=[*blocks, TextContent(LEFT_OUT)])


def _sharing(messages: Sequence[Message], room: int, kind: type[Message]) -> list[Message]:
    """The messages, with as much of the texts of those of a kind as makes them fit."""
    sizes = [
        count_tokens(text)
        for message in messages
        if isinstance(message, kind)
        for text in _texts(message)
    ]
    total = sum(map(count_message_tokens, messages))
    if total <= room:
        return list(messages)
    share = _share(sizes, room - (total - sum(sizes)))
    return [
        shortened(message, share) if isinstance(message, kind) else message for message in messages
    ]


def _texts(message: Message) -> list[str]:
    if isinstance(message.content, str):
        return [message.content]
    return [block.text for block in message.content if isinstance(block, TextContent)]


def _share(sizes: Sequence[int], room: int) -> int:
    """What each may have at the most, so that all together fit; what one leaves the others get."""
    share = 0
    for sharing, size in zip(range(len(sizes), 0, -1), sorted(sizes), strict=True):
        share = max(0, room // sharing)
        if size > share:
            break
        room -= size
    return share


def shortened(message: Message, tokens: int) -> Message:
    """The message itself, or one of the same role with less text.

    Calls of tools are left as they are: a model has to find its own arguments again.
    """
    if isinstance(message, AssistantMessage):
        said = _shortened_blocks(message.content, tokens)
        return message if said is message.content else replace(message, content=said)
    if isinstance(message, ToolResultMessage):
        given = _shortened_blocks(message.content, tokens)
        return message if given is message.content else replace(message, content=given)
    if isinstance(message.content, str):
        text = fitted(message.content, tokens)
        return message if text == message.content else replace(message, content=text)
    blocks = _shortened_blocks(message.content, tokens)
    return message if blocks is message.content else replace(message, content=blocks)


def _shortened_blocks(blocks: list[B], tokens: int) -> list[B]:
    texts = [block.text if isinstance(block, TextContent) else "" for block in blocks]
    fitting = [fitted(text, tokens) for text in texts]
    if fitting == texts:
        return blocks
    return [
        replace(block, text=text) if isinstance(block, TextContent) else block
        for block, text in zip(blocks, fitting, strict=True)
    ]
