"""Fitting a run into the room that is left: what was asked, and what its tools brought last.

Results are capped singly where they are shown; a batch of them may still be larger than all the
room. What is shown follows from the messages alone, so that every request begins as the one
before it.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def fitted_run(messages: Sequence[Message], room: int) -> list[Message]:
    """The messages that fit, in so many tokens.

    Where the newest are a batch of tool results, these are shown, with what the user said last
    before them; their texts are shortened to equal shares where they are too long together. Of the
    rest a window is shown.
    """
    if sum(map(count_message_tokens, messages)) <= room:
        return list(messages)
    batch = _newest_batch(messages)
    if batch is None:
        return ContextWindow(room).transform(list(messages))
    after, question = _newest_words(messages[:batch])
    marked = _marked(question)
    left = room - count_message_tokens(marked)
    between = messages[after:batch]
    rest = [*between, *_sharing(messages[batch:], left)]
    start = min(ContextWindow(left).cut(rest).left_out, len(between))
    if start:
        return [marked, *rest[start:]]
    return rest if question is None else [question, *rest]


def _newest_batch(messages: Sequence[Message]) -> int | None:
    """Where the calls stand whose results no answer has followed yet."""
    for at in range(len(messages) - 1, -1, -1):
        if isinstance(messages[at], AssistantMessage):
            has_results = any(isinstance(one, ToolResultMessage) for one in messages[at + 1 :])
            return at if has_results else None
    return None


def _newest_words(messages: Sequence[Message]) -> tuple[int, UserMessage | None]:
    """What the user said last, and where that which follows begins."""
    for at in range(len(messages) - 1, -1, -1):
        message = messages[at]
        if isinstance(message, UserMessage):
            return at + 1, message
    return 0, None


def _marked(question: UserMessage | None) -> UserMessage:
    """What the user said, with a mark behind it; a mark alone where that is nothing."""
    if question is None:
        return UserMessage(EARLIER_LEFT_OUT, timestamp=0)
    said = question.content
    blocks = [TextContent(said)] if isinstance(said, str) else said
    return replace(question, content=[*blocks, TextContent(LEFT_OUT)])


def _sharing(messages: Sequence[Message], room: int) -> list[Message]:
    """The messages, with as much of the results' texts as makes them fit."""
    results = [message for message in messages if isinstance(message, ToolResultMessage)]
    sizes = [
        count_tokens(block.text)
        for result in results
        for block in result.content
        if isinstance(block, TextContent)
    ]
    total = sum(map(count_message_tokens, messages))
    if total <= room:
        return list(messages)
    share = _share(sizes, room - (total - sum(sizes)))
    return [
        shortened(message, share) if isinstance(message, ToolResultMessage) else message
        for message in messages
    ]


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
