"""How an Agent is set up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from agent_core.hooks import (
    AfterToolCallHook,
    BeforeToolCallHook,
    ConvertToLlm,
    FinishTurn,
    GetApiKey,
    GetMessages,
    PrepareNextTurn,
    TransformContext,
)
from agent_core.journal import StepJournal
from agent_core.loop_config import SteeringPolicy
from agent_core.messages import Message, convert_to_llm
from agent_core.models import Model
from agent_core.queues import QueueMode
from agent_core.router import ModelRouter, Task
from agent_core.streaming import StreamFn, ThinkingLevel
from agent_core.tools import AgentTool, ExecutionMode, ToolContext


class InitialState(TypedDict, total=False):
    """What an agent begins with."""

    system_prompt: str
    model: Model | None
    thinking_level: ThinkingLevel
    tools: Sequence[AgentTool]
    messages: Sequence[Message]


@dataclass(slots=True, kw_only=True)
class AgentOptions:
    """How an agent works; everything is optional, and one set of options may serve many agents.

    Times are in seconds; None as a cap means none. Without a `stream_fn` the model is called
    through litellm or, where it says `api="openai"`, directly. `first_step` is the number that
    the journal's first step gets; the steps of the agent's further runs follow on, but an agent
    that was stored and read again begins anew. `tool_context` holds the caller's own data and
    permissions. `get_steering_messages` and `get_follow_up_messages` are asked where the agent's
    own queue of that kind has nothing: they bring what was said to this run elsewhere. The
    `steering_policy` "skip" sees the agent's own queue only: what is said elsewhere skips no call,
    and is read after them. `api_key` goes only to the provider (or `base_url`) of the model that
    the run begins with, which of a `model_router`'s is the one that it prefers; `get_api_key` is
    asked first, for any provider.
    """

    initial_state: InitialState = field(default_factory=InitialState)
    stream_fn: StreamFn | None = None
    convert_to_llm: ConvertToLlm = convert_to_llm
    transform_context: TransformContext | None = None
    steering_mode: QueueMode = "one-at-a-time"
    follow_up_mode: QueueMode = "one-at-a-time"
    steering_policy: SteeringPolicy = "finish"
    get_steering_messages: GetMessages | None = None
    get_follow_up_messages: GetMessages | None = None
    tool_execution: ExecutionMode = "parallel"
    max_parallel_tools: int = 8
    max_turns: int | None = 50
    tool_timeout: float | None = 120.0
    abort_grace: float = 2.0
    journal: StepJournal | None = None
    first_step: int = 0
    before_tool_call: BeforeToolCallHook | None = None
    after_tool_call: AfterToolCallHook | None = None
    prepare_next_turn: PrepareNextTurn | None = None
    finish_turn: FinishTurn | None = None
    get_api_key: GetApiKey | None = None
    api_key: str | None = None
    session_id: str | None = None
    model_router: ModelRouter | None = None
    task: Task = "simple"
    thinking_budgets: Mapping[str, int] | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    max_retry_delay: float = 60.0
    enable_credit_tracking: bool = False
    tool_context: ToolContext = field(default_factory=ToolContext)
