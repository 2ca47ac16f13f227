"""Making a transcript one that providers accept: each tool call with exactly one result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agent_core.messages import (
    AssistantMessage,
    LlmMessage,
    Message,
    ToolResultMessage,
    text_result,
)

INTERRUPTED = (
    "The call was interrupted before its result was recorded; it may or may not have taken effect."
)


def repaired(messages: Iterable[LlmMessage]) -> list[LlmMessage]:
    """Return the messages with each call's result right after it.

    A call without a result gets one that says it was interrupted; results without a call, and
    second ones, are left out. A transcript in order is returned as it is.
    """
    fixed: list[LlmMessage] = []
    segment: list[LlmMessage] = []
    for message in messages:
        # A segment is an answer and what follows it: ids may come again in a later one.
        if isinstance(message, AssistantMessage):
            fixed += _repaired_segment(segment)
            segment = []
        segment.append(message)
    return fixed + _repaired_segment(segment)


def _repaired_segment(segment: Sequence[LlmMessage]) -> list[LlmMessage]:
    rest: list[LlmMessage] = [
        message for message in segment if not isinstance(message, ToolResultMessage)
    ]
    if not segment or not isinstance(segment[0], AssistantMessage):
        return rest
    results: dict[str, ToolResultMessage] = {}
    for message in segment:
        if isinstance(message, ToolResultMessage):
            results.setdefault(message.tool_call_id, message)
    answered: list[LlmMessage] = [
        results.get(call.id) or _interrupted(call.id, call.name, segment[0].timestamp)
        for call in segment[0].tool_calls
    ]
    return [rest[0], *answered, *rest[1:]]


def open_results(messages: Sequence[Message]) -> list[ToolResultMessage]:
    """Return the results that are missing at the end of a transcript, if it ends in such calls."""
    answered: set[str] = set()
    for message in reversed(messages):
        if isinstance(message, ToolResultMessage):
            answered.add(message.tool_call_id)
        elif isinstance(message, AssistantMessage):
            return [
                _interrupted(call.id, call.name)
                for call in message.tool_calls
                if call.id not in answered
            ]
        else:
            break
    return []


def _interrupted(call_id: str, name: str, timestamp: int | None = None) -> ToolResultMessage:
    result = ToolResultMessage(call_id, name, text_result(INTERRUPTED), is_error=True)
    if timestamp is not None:
        result.timestamp = timestamp
    return result
