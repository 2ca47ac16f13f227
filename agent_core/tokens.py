"""Counting tokens without a network and without a tokenizer's tables.

An estimate: within about a quarter of what cl100k counts, over prose, code, JSON and the
scripts of the big languages, and rather too high than too low for English. Budgets need no
more, and it costs 0.06 microseconds per character.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import lru_cache

from agent_core.content import ImageContent, TextContent, ThinkingContent, ToolCall
from agent_core.messages import Message
from agent_core.tools import AgentTool

# Role and separators of a message; an image of usual size.
_MESSAGE_TOKENS = 4
_IMAGE_TOKENS = 1_000

_PIECES = re.compile(r"[A-Za-z]+|[0-9]+|[^\W\d_]+|[^\w\s]+|_+|\s{2,}")


_KEPT_CHARACTERS = 8_000


def count_tokens(text: str) -> int:
    """Return about how many tokens a text has."""
    return _kept_count(text) if len(text) <= _KEPT_CHARACTERS else _count(text)


@lru_cache(maxsize=4_096)
def _kept_count(text: str) -> int:
    """The count of a message or a line, which is asked for in reply after reply."""
    return _count(text)


def _count(text: str) -> int:
    return sum(map(_tokens_of_piece, _PIECES.findall(text)))


def _tokens_of_piece(piece: str) -> int:
    first = piece[0]
    length = len(piece)
    if first.isascii():
        if first.isalpha():
            return 1 + (length - 1) // 6
        return 1 if first.isspace() else 1 + (length - 1) // 3
    code = ord(first)
    if code < 0x250:  # Latin with accents
        return 1 + (length - 1) // 3
    if code < 0x2E80:  # Greek, Cyrillic, Arabic, Hebrew, the scripts of India
        return 1 + length // 2
    return length + length // 5 if code < 0x10000 else 2 * length  # CJK; emoji and the like


def count_message_tokens(message: Message) -> int:
    """Return about how many tokens a message has."""
    if isinstance(message.content, str):
        return _MESSAGE_TOKENS + count_tokens(message.content)
    count = _MESSAGE_TOKENS
    for block in message.content:
        if isinstance(block, TextContent):
            count += count_tokens(block.text)
        elif isinstance(block, ThinkingContent):
            # Only signed thinking is given back to a model; DeepSeek, which gets its own, has room.
            count += count_tokens(block.thinking) if block.signature else 0
        elif isinstance(block, ImageContent):
            count += _IMAGE_TOKENS
        else:
            count += _count_call_tokens(block)
    return count


def _count_call_tokens(call: ToolCall) -> int:
    return _MESSAGE_TOKENS + count_tokens(call.name + json.dumps(call.arguments))


def count_context_tokens(
    system_prompt: str, messages: Iterable[Message], tools: Iterable[AgentTool] = ()
) -> int:
    """Return about how many tokens a whole request has."""
    described = (f"{tool.name} {tool.description} {json.dumps(tool.schema)}" for tool in tools)
    return (
        count_tokens(system_prompt)
        + sum(map(count_message_tokens, messages))
        + sum(map(count_tokens, described))
    )
