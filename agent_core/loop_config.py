"""How a run goes: its model, its hooks, its caps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal, TypeAlias

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
from agent_core.messages import convert_to_llm
from agent_core.models import Model
from agent_core.router import ModelRouter, Task
from agent_core.streaming import ThinkingLevel
from agent_core.tools import ExecutionMode, ToolContext

SteeringPolicy: TypeAlias = Literal["finish", "skip"]


@dataclass(slots=True)
class AgentLoopConfig:
    """How a run goes; all but the first two are optional.

    Times are in seconds; None as a cap means none. `first_step` is the journal's number of the
    first model call. `has_steering_messages` is asked by the "skip" policy before each call.
    With `enable_credit_tracking` the run's summed usage comes with `agent_end`. A
    `model_router` picks the model by `task`, with fallbacks; `model` is not used then. `api_key`
    goes only to the provider (or `base_url`) of the model that the run begins with, which of a
    router's is the one that it prefers; `get_api_key` is asked first, for any provider.
    """

    model: Model | None
    convert_to_llm: ConvertToLlm = convert_to_llm
    _: KW_ONLY
    transform_context: TransformContext | None = None
    get_api_key: GetApiKey | None = None
    get_steering_messages: GetMessages | None = None
    has_steering_messages: Callable[[], bool] | None = None
    get_follow_up_messages: GetMessages | None = None
    before_tool_call: BeforeToolCallHook | None = None
    after_tool_call: AfterToolCallHook | None = None
    prepare_next_turn: PrepareNextTurn | None = None
    finish_turn: FinishTurn | None = None
    steering_policy: SteeringPolicy = "finish"
    tool_execution: ExecutionMode = "parallel"
    max_parallel_tools: int = 8
    max_turns: int | None = 50
    tool_timeout: float | None = 120.0
    abort_grace: float = 2.0
    tool_context: ToolContext = field(default_factory=ToolContext)
    journal: StepJournal | None = None
    first_step: int = 0
    reasoning: ThinkingLevel | None = None
    thinking_budgets: Mapping[str, int] | None = None
    session_id: str | None = None
    model_router: ModelRouter | None = None
    task: Task = "simple"
    api_key: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    max_retry_delay: float = 60.0
    enable_credit_tracking: bool = False
