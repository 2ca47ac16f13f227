"""The seam through which the steps of a run are recorded, so that a run can be taken up again.

A step is one model call or one tool call. Its number is given by the loop: a turn's model call
takes the next one, then each of its tool calls in the order of the calls, whether it runs or
not. The caller brings the real journal (a database); whatever a journal raises stops the run.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from agent_core.content import ToolCall
from agent_core.errors import JournalError, StepMismatchError
from agent_core.messages import AssistantMessage, LlmMessage, ToolResultMessage
from agent_core.models import Model
from agent_core.streaming import LlmContext, StreamOptions

__all__ = [
    "Effect",
    "JournalError",
    "MemoryJournal",
    "StepJournal",
    "StepMismatchError",
    "StepRequest",
    "StepStart",
    "model_step_hash",
    "tool_step_hash",
]

_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")

Effect = Literal["pure", "state", "external"]
"""What running a step again would do: nothing, change our own state, or touch the world."""


@dataclass(frozen=True, slots=True)
class StepRequest:
    """A step that is about to run; `no` counts 0, 1, 2, ... within a run."""

    no: int
    kind: Literal["model", "tool"]
    name: str
    input_hash: str
    effect: Effect


@dataclass(frozen=True, slots=True)
class StepStart:
    """What to do with a step.

    `run` it; take the `output` of the time before (`done`); or, `unknown`, do not touch it: it
    may or may not have happened.
    """

    outcome: Literal["run", "done", "unknown"]
    output: dict[str, Any] | None = None
    idempotency_key: str | None = None


class StepJournal(Protocol):
    """Records steps. What a method raises stops the run and goes to its caller."""

    async def begin(self, step: StepRequest) -> StepStart:
        """Say what is to be done with the step; raises StepMismatchError for another input."""

    async def finish(self, step: StepRequest, output: dict[str, Any]) -> None:
        """Record what the step gave."""


class MemoryJournal:
    """A journal in memory: for tests and for runs that end with their process.

    `run_id` makes idempotency keys that differ between runs.
    """

    def __init__(self, run_id: str = "run") -> None:
        self.run_id = run_id
        self.steps: dict[int, StepRequest] = {}
        self.outputs: dict[int, dict[str, Any]] = {}

    async def begin(self, step: StepRequest) -> StepStart:
        """Say what is to be done with the step."""
        key = f"{self.run_id}:{step.no}"
        known = self.steps.setdefault(step.no, step)
        if known.input_hash != step.input_hash or known.kind != step.kind:
            raise StepMismatchError(
                f"step {step.no} was {known.kind} {known.name!r} and is now "
                f"{step.kind} {step.name!r} with another input"
            )
        if step.no in self.outputs:
            return StepStart("done", self.outputs[step.no], key)
        if known is not step and step.effect == "external":
            return StepStart("unknown", None, key)
        return StepStart("run", None, key)

    async def finish(self, step: StepRequest, output: dict[str, Any]) -> None:
        """Record what the step gave."""
        # A copy by way of JSON: what is not JSON shows here and not in production.
        self.outputs[step.no] = json.loads(json.dumps(output))


def model_step_hash(
    model: Model, context: LlmContext, options: StreamOptions, *, route: str | None = None
) -> str:
    """Return the hash of all that decides a model's answer; keys, signals and times do not.

    With a route it takes the place of the model: which one a router takes depends on how the
    models are doing, and a replay must not.
    """
    if route is not None:
        model = Model(id=route, provider="route")
    return _digest(
        {
            "model": model.name,
            "system_prompt": context.system_prompt,
            "messages": [_said(message) for message in context.messages],
            "tools": [[tool.name, tool.description, tool.schema] for tool in context.tools],
            "temperature": _first(options.temperature, model.temperature),
            "max_tokens": _first(options.max_tokens, model.max_tokens),
            "reasoning": options.reasoning,
            "thinking_budgets": dict(options.thinking_budgets or {}),
        }
    )


def tool_step_hash(call: ToolCall) -> str:
    """Return the hash of a tool call's name and arguments."""
    return _digest({"name": call.name, "arguments": call.arguments, "raw": call.raw})


def _said(message: LlmMessage) -> list[object]:
    content = (
        message.content
        if isinstance(message.content, str)
        else [block.to_dict() for block in message.content]
    )
    if isinstance(message, ToolResultMessage):
        return [message.role, message.tool_call_id, message.is_error, content]
    if isinstance(message, AssistantMessage):
        return [message.role, message.stop_reason, content]
    return [message.role, content]


def _first(value: float | None, otherwise: float | None) -> float | None:
    return otherwise if value is None else value


def _digest(data: object) -> str:
    text = json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(_as_stored(text)).hexdigest()


def _as_stored(text: str) -> bytes:
    """JSON as it is when it was stored and read again, so that a replay has the same hash.

    A store may have no form for NUL and for halves of surrogate pairs, which models and tools give
    now and then: the halves of a character are joined, and U+FFFD stands for the others.
    """
    if "\\u0000" in text:
        text = _NUL.sub("\\1\ufffd", text)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
