"""What a task's model is given: the context builder with what the server knows of a session.

A later attempt of a task is given what the first one was: what that decided stands in the user's
message, which was told before the model was called.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress, count
from uuid import UUID

import structlog

from agent_core import AgentTool, Message, Model, UserMessage
from agent_core.content import plain_text
from agent_core.context_budget import ContextBudget, ContextOverflowError
from agent_core.context_builder import BuiltContext, ContextBuilder, ContextParts
from agent_core.context_notes import RecalledMemory, Summary, newest_note, note_of, noted
from shared.errors import StoreUnavailable
from shared.memories import NOTHING_RECALLED, MemoryColumns, MemoryMatches, language_of, said_in
from shared.store.recall import Cue
from worker.agents import RunningTask, TaskFailed
from worker.memories import best_of, without_marks, zone_of
from worker.tiers import Tier, tier_of

log = structlog.get_logger(__name__)

MOST_RECALLED = 32
"""How many memories the budget is filled from, the best first."""


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
    budget: ContextBudget | None = None,
    with_memories: bool = True,
) -> TaskContext:
    """Decide and compose what the task's model is given.

    Args:
        history: the newest of the session's messages in another form; None takes them as they are.
        usual: the tier that this kind of session needs, where its metadata names none.
        with_memories: recall what bears on the message.

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
        history=past,
        earlier=task.earlier + len(task.history) - len(past),
    )
    try:
        known = task.told[0] if task.told else None
        if isinstance(known, UserMessage) and note_of(known) is not None:
            built = builder.compose(known, parts)
        else:
            shown = len(past) - builder.shown(past)[0]
            matches = await _recalled(task, said, shown)
            own = _own_summaries(task, matches.memories)
            parts = replace(parts, summaries=[_summary(matches.memories, at) for at in own])
            memories = _ranked(task, said, shown, matches, own) if with_memories else ()
            built = _with_tier(task, builder.build(said, parts, memories), past, usual)
    except ContextOverflowError as error:
        raise TaskFailed("context_overflow", str(error)) from error
    tier: Tier = "cheap" if built.note.tier == "cheap" else "strong"
    return TaskContext(built, resources.model_of(tier))


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


async def _recalled(task: RunningTask, said: UserMessage, shown: int) -> MemoryMatches:
    """What may bear on a message, without what the window shows; nothing where nothing is kept, or
    the store is away."""
    recollect = task.resources.recollect
    if recollect is None:
        return NOTHING_RECALLED
    cue = Cue(
        task.user_id,
        UUID(str(task.character["id"])),
        _text(said),
        language=language_of(task.metadata),
        session_id=task.session_id,
        shown_from=task.earlier + len(task.history) - shown + 1,
    )
    try:
        return await recollect(cue)
    except StoreUnavailable as error:
        log.warning("nothing is recalled", error=str(error))
        return NOTHING_RECALLED


def _own_summaries(task: RunningTask, found: MemoryColumns) -> list[int]:
    """Where the memories are that sum up the session itself: those stand before the window, not
    among the others."""
    if "summary" not in found.kinds:
        return []
    session_id = str(task.session_id)
    each = zip(found.kinds, found.session_ids, strict=True)
    return [
        at for at, (kind, session) in enumerate(each) if kind == "summary" and session == session_id
    ]


def _summary(found: MemoryColumns, at: int) -> Summary:
    return Summary(
        str(UUID(bytes=found.keys[at])), without_marks(found.texts[at]), found.nos[at] or 0
    )


def _ranked(
    task: RunningTask, said: UserMessage, shown: int, found: MemoryMatches, own: Sequence[int]
) -> list[RecalledMemory]:
    """The memories that bear on a message most, the best first."""
    past = task.history[len(task.history) - shown :]
    window = {" ".join(said_in(one.to_dict()).split()) for one in past}
    again = compress(count(), map(window.__contains__, found.memories.texts))
    return best_of(
        found,
        _text(said),
        MOST_RECALLED,
        without={*own, *again},
        zone=zone_of(task.metadata),
    )


def _text(said: UserMessage) -> str:
    return said.content if isinstance(said.content, str) else plain_text(said.content)
