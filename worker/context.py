"""What a task's model is given: the context builder with what the server knows of a session.

A later attempt of a task is given what the first one was: what that decided stands in the user's
message, which was told before the model was called.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import not_, or_
from uuid import UUID

import structlog

from agent_core import AgentTool, Message, Model, UserMessage
from agent_core.content import plain_text
from agent_core.context_budget import ContextBudget, ContextOverflowError
from agent_core.context_builder import BuiltContext, ContextBuilder, ContextParts
from agent_core.context_notes import RecalledMemory, Summary, newest_note, note_of, noted
from agent_core.recall import best
from shared.errors import StoreUnavailable
from shared.memories import NOTHING_RECALLED, Standings, language_of, said_in
from shared.store.recall import Cue
from worker.agents import RunningTask, TaskFailed
from worker.memories import candidates_of, memory_of, without_marks, zone_of
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
            standings = await _recalled(task, said, shown)
            own = _are_own_summaries(task, standings)
            parts = replace(parts, summaries=_summaries(standings.only(own)))
            memories = _ranked(task, said, shown, standings, own) if with_memories else ()
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


async def _recalled(task: RunningTask, said: UserMessage, shown: int) -> Standings:
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


def _are_own_summaries(task: RunningTask, found: Standings) -> list[bool]:
    """Which memories sum up the session itself: those stand before the window, not among the
    others."""
    if "summary" not in found.kinds:
        return [False] * len(found.kinds)
    session_id = str(task.session_id)
    return [
        kind == "summary" and session == session_id
        for kind, session in zip(found.kinds, found.session_ids, strict=True)
    ]


def _summaries(own: Standings) -> list[Summary]:
    return [Summary(one.id, without_marks(one.text), one.no or 0) for one in own.rows()]


def _ranked(
    task: RunningTask, said: UserMessage, shown: int, found: Standings, own: Sequence[bool]
) -> list[RecalledMemory]:
    """The memories that bear on a message most, the best first."""
    past = task.history[len(task.history) - shown :]
    window = {" ".join(said_in(one.to_dict()).split()) for one in past}
    hidden = map(or_, own, map(window.__contains__, found.texts))
    candidates = candidates_of(found.only(list(map(not_, hidden))))
    zone = zone_of(task.metadata)
    return [
        memory_of(candidates.row(at), zone) for at in best(_text(said), candidates, MOST_RECALLED)
    ]


def _text(said: UserMessage) -> str:
    return said.content if isinstance(said.content, str) else plain_text(said.content)
