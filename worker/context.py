"""What a task's model is given: the context builder with what the server knows of a session.

A later attempt of a task is given what the first one was: what that decided stands in the user's
message, which was told before the model was called.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Protocol

from agent_core import AgentTool, Message, Model, UserMessage
from agent_core.context_budget import ContextBudget, ContextOverflowError
from agent_core.context_builder import BuiltContext, ContextBuilder, ContextParts
from agent_core.context_notes import RecalledMemory, newest_note, note_of, noted
from worker.agents import RunningTask, TaskFailed
from worker.tiers import Tier, tier_of


class Recall(Protocol):
    """Finds what of the past bears on a moment."""

    async def recall(self, task: RunningTask, query: str, budget: int) -> Sequence[str]:
        """Lines worth telling a model, of so many tokens together."""


@dataclass(frozen=True, slots=True)
class TaskContext:
    """A request for the task's message, and the model of the session's tier that is to answer."""

    built: BuiltContext
    model: Model


async def context_of(
    task: RunningTask,
    said: UserMessage,
    *,
    instructions: str,
    soul: str = "",
    tools: Sequence[AgentTool] = (),
    history: Sequence[Message] | None = None,
    usual: Tier = "strong",
    recall: Recall | None = None,
    budget: ContextBudget | None = None,
) -> TaskContext:
    """Decide and compose what the task's model is given.

    Args:
        history: the session's messages in another form; None takes them as they are.
        usual: the tier that this kind of session needs, where its metadata names none.
        recall: where memories come from, if any are wanted.

    Raises:
        TaskFailed: the agent's own instructions do not fit the model.
    """
    resources = task.resources
    budget = (budget or ContextBudget()).within(resources.model_of("strong"))
    builder = ContextBuilder(budget.within(resources.model_of("cheap")))
    past = task.history if history is None else history
    parts = ContextParts(
        instructions=instructions,
        soul=soul,
        tools=tools,
        summaries=task.summaries,
        history=past,
        earlier=task.earlier,
    )
    try:
        known = task.told[0] if task.told else None
        if isinstance(known, UserMessage) and note_of(known) is not None:
            built = builder.compose(known, parts)
        else:
            memories = await _recalled(task, said, recall, builder.budget.memories)
            built = _with_tier(task, builder.build(said, parts, memories), past, usual)
    except ContextOverflowError as error:
        raise TaskFailed("context_overflow", str(error)) from error
    tier: Tier = "cheap" if built.note.tier == "cheap" else "strong"
    return TaskContext(built, resources.model_of(tier))


async def _recalled(
    task: RunningTask, said: UserMessage, recall: Recall | None, budget: int
) -> list[RecalledMemory]:
    if recall is None or not isinstance(said.content, str):
        return []
    lines = await recall.recall(task, said.content, budget)
    return [RecalledMemory(sha256(line.encode()).hexdigest()[:12], line) for line in lines]


def _with_tier(
    task: RunningTask, built: BuiltContext, history: Sequence[Message], usual: Tier
) -> BuiltContext:
    if task.resources.tiers is None:
        return built
    before = newest_note(history)
    wanted = task.metadata.get("tier")
    tier = tier_of(
        history,
        usual=wanted if wanted in {"strong", "cheap"} else usual,
        standing=None if before is None else before[1].tier,
        may_change=built.note.cut,
        deep=task.action.get("deep") is True,
        economy=task.economy,
    )
    note = replace(built.note, tier=tier)
    return replace(built, note=note, said=noted(built.said, note))
