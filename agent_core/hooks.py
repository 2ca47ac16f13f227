"""What hooks are given and what they may answer. Each hook may be a plain or an async function."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

from agent_core.abort import AbortSignal
from agent_core.agent_context import AgentContext
from agent_core.content import ToolCall, UserContent
from agent_core.messages import AssistantMessage, LlmMessage, Message, ToolResultMessage
from agent_core.models import Model
from agent_core.results import AgentToolResult
from agent_core.streaming import ThinkingLevel

T = TypeVar("T")
MaybeAsync: TypeAlias = T | Awaitable[T]


@dataclass(frozen=True, slots=True)
class BeforeToolCall:
    """A call whose arguments are valid and that is about to run; `args` are the checked ones."""

    tool_call: ToolCall
    args: Any
    context: AgentContext


@dataclass(frozen=True, slots=True)
class ToolCallBlock:
    """The call is not to run; the reason goes to the model."""

    reason: str | None = None
    terminate: bool = False


@dataclass(frozen=True, slots=True)
class AfterToolCall:
    """A call that has run."""

    tool_call: ToolCall
    args: Any
    result: AgentToolResult
    is_error: bool
    context: AgentContext


@dataclass(frozen=True, slots=True)
class ToolResultOverride:
    """What to change in a result; None leaves a field as it is."""

    content: list[UserContent] | None = None
    details: Any = None
    is_error: bool | None = None
    terminate: bool | None = None


@dataclass(frozen=True, slots=True)
class UpcomingTurn:
    """The state of a run before a further turn; `turn` counts from 1, the turn to come."""

    turn: int
    messages: Sequence[Message]
    model: Model | None
    thinking_level: ThinkingLevel


@dataclass(frozen=True, slots=True)
class NextTurn:
    """Changes for the turns to come; `messages` replaces the whole context of the run."""

    model: Model | None = None
    thinking_level: ThinkingLevel | None = None
    messages: list[Message] | None = None


@dataclass(frozen=True, slots=True)
class FinishedTurn:
    """A turn that is over; `turn` counts from 1."""

    turn: int
    message: AssistantMessage
    tool_results: Sequence[ToolResultMessage]
    messages: Sequence[Message]


BeforeToolCallHook: TypeAlias = Callable[
    [BeforeToolCall, AbortSignal], MaybeAsync[ToolCallBlock | None]
]
AfterToolCallHook: TypeAlias = Callable[
    [AfterToolCall, AbortSignal], MaybeAsync[AgentToolResult | ToolResultOverride | None]
]
ConvertToLlm: TypeAlias = Callable[[list[Message]], MaybeAsync[list[LlmMessage]]]
TransformContext: TypeAlias = Callable[[list[Message], AbortSignal], MaybeAsync[list[Message]]]
PrepareNextTurn: TypeAlias = Callable[[UpcomingTurn], MaybeAsync[NextTurn | None]]
FinishTurn: TypeAlias = Callable[[FinishedTurn], MaybeAsync[Literal["continue", "end"] | None]]
GetApiKey: TypeAlias = Callable[[str], MaybeAsync[str | None]]
GetMessages: TypeAlias = Callable[[], MaybeAsync[Sequence[Message]]]
