"""Asking the caller's hooks: whatever they raise, and an answer they may not give, is a HookError.

One function asks, and one for each hook says what it may answer.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, NoReturn, TypeVar, get_args

from agent_core.abort import AbortSignal, UntilAbort
from agent_core.errors import AbortedError, HookError
from agent_core.hooks import NextTurn, ToolCallBlock, ToolResultOverride
from agent_core.interruption import ends_this_task
from agent_core.messages import LlmMessage, Message
from agent_core.models import Model
from agent_core.redaction import error_text
from agent_core.results import AgentToolResult
from agent_core.streaming import ThinkingLevel

T = TypeVar("T")


class _WrongAnswerError(TypeError):
    """What a hook gave, and what it may give."""


async def ask(
    name: str,
    may_be: Callable[[object], T],
    hook: Callable[..., Any],
    *arguments: object,
    until: AbortSignal,
) -> T:
    """Call a hook and return its answer; raises HookError, and AbortedError on `until`.

    `may_be` is one of the functions below; `name` says in the error which hook it was.
    """
    try:
        with UntilAbort(until):
            answer = hook(*arguments)
            answer = await answer if inspect.isawaitable(answer) else answer
        return may_be(answer)
    except AbortedError:
        raise
    except _WrongAnswerError as error:
        raise HookError(f"{name} returned {error}") from None
    except BaseException as error:
        if ends_this_task(error):
            raise
        if isinstance(error, asyncio.CancelledError):
            raise HookError(f"{name} was cancelled") from error
        raise HookError(error_text(error)) from error


def block_or_none(answer: object) -> ToolCallBlock | None:
    """What `before_tool_call` may answer."""
    if answer is None:
        return None
    if not isinstance(answer, ToolCallBlock):
        _refuse(answer, "a ToolCallBlock or None")
    if answer.reason is not None and not isinstance(answer.reason, str):
        raise _WrongAnswerError(f"a ToolCallBlock with {_kind(answer.reason)} for a reason")
    return answer


def override_or_none(answer: object) -> AgentToolResult | ToolResultOverride | None:
    """What `after_tool_call` may answer; the content is checked where it is put in place."""
    if answer is not None and not isinstance(answer, (AgentToolResult, ToolResultOverride)):
        _refuse(answer, "an AgentToolResult, a ToolResultOverride or None")
    return answer


def message_list(answer: object) -> list[Message]:
    """What `transform_context` may answer."""
    return _listed(answer, get_args(Message), "a list of messages")


def message_list_or_none(answer: object) -> list[Message]:
    """What a queue of messages may answer."""
    return [] if answer is None else message_list(answer)


def llm_message_list(answer: object) -> list[LlmMessage]:
    """What `convert_to_llm` may answer."""
    return _listed(answer, get_args(LlmMessage), "a list of messages for a model")


def key_or_none(answer: object) -> str | None:
    """What `get_api_key` may answer."""
    if answer is not None and not isinstance(answer, str):
        _refuse(answer, "a string or None")
    return answer


def verdict_or_none(answer: object) -> Literal["continue", "end"] | None:
    """What `finish_turn` may answer."""
    match answer:
        case None:
            return None
        case "continue":
            return "continue"
        case "end":
            return "end"
    given = repr(answer) if isinstance(answer, str) else _kind(answer)
    raise _WrongAnswerError(f'{given}, not "continue", "end" or None')


def next_turn_or_none(answer: object) -> NextTurn | None:
    """What `prepare_next_turn` may answer."""
    if answer is None:
        return None
    if not isinstance(answer, NextTurn):
        _refuse(answer, "a NextTurn or None")
    if answer.model is not None and not isinstance(answer.model, Model):
        raise _WrongAnswerError(f"a NextTurn with {_kind(answer.model)} for a model")
    level = answer.thinking_level
    if level is not None and level not in get_args(ThinkingLevel):
        raise _WrongAnswerError(f"a NextTurn with {level!r} for a thinking level")
    message_list_or_none(answer.messages)
    return answer


def _listed(answer: object, kinds: tuple[type, ...], expected: str) -> list[Any]:
    if not isinstance(answer, Sequence) or isinstance(answer, str):
        _refuse(answer, expected)
    for each in answer:
        if not isinstance(each, kinds):
            raise _WrongAnswerError(f"a list with {_kind(each)} in it, not {expected}")
    return list(answer)


def _refuse(answer: object, expected: str) -> NoReturn:
    raise _WrongAnswerError(f"{_kind(answer)}, not {expected}")


def _kind(value: object) -> str:
    return type(value).__name__
