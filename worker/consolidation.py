"""Consolidation: reading what was said in a session again, for what is worth knowing for good.

`ConsolidationAgent` does it, in tasks of sessions that no user sees; `consolidate_for_ever` sees to
it that such a task is made when a session's time has come.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import TypeAlias
from uuid import UUID

import structlog

from agent_core import (
    LlmContext,
    Model,
    StepRequest,
    StreamDone,
    StreamError,
    StreamOptions,
    TextDelta,
    UserMessage,
    stream_completion,
)
from shared.allowance import NO_RULES, BudgetRules
from shared.consolidation import KEEPER, Consolidated, Material, Remembered
from shared.encoding import JsonObject
from shared.memories import language_of, speaker_of
from shared.queue import Hints
from shared.records import CatalogEntry, Lasting
from shared.store import consolidation
from shared.store.database import Database
from shared.trouble import Trouble
from worker.agents import Answer, RunningTask, TaskFailed
from worker.extraction import (
    OUTPUT_CHARACTERS,
    SYSTEM_PROMPT,
    Extraction,
    UnusableOutput,
    extracted,
    question,
)

log = structlog.get_logger(__name__)

OUTPUT_TOKENS = 3_000
THINKING_TOKENS = 4_000
CALL_SECONDS = 120.0
PURPOSE = "consolidation"
"""What its calls are for, in the ledger."""

_KNOWN_STEP, _CALL_STEP = 0, 1


class ConsolidationAgent:
    """Reads a range of messages; it answers nobody, and keeps no state."""

    entry = CatalogEntry("agent", KEEPER, "Memory", "Reads conversations again")

    async def run(self, task: RunningTask) -> Answer:
        """Read what the action names; raises TaskFailed where the model's answer is no use."""
        if task.action["type"] != "consolidate":
            raise TaskFailed("action_unknown", "this session takes no actions of clients")
        session_id = UUID(task.action["session_id"])
        first, last = int(task.action["first"]), int(task.action["last"])
        if task.resources.read_material is None:
            raise TaskFailed("not_here", "nothing can be read here")
        material = await task.resources.read_material(task.user_id, session_id, first, last)
        found = Extraction()
        if material is not None and any(first <= one.no <= last for one in material.said):
            brought = await _brought(task, material, first, last)
            found = brought or await _found(task, material, first, last)
        metadata = {} if material is None else material.metadata
        done = Consolidated(
            session_id,
            first,
            last,
            found.findings,
            found.summary,
            speaker=speaker_of("user", {}, metadata),
            language=language_of(metadata),
        )
        counts: JsonObject = {"kept": len(found.findings), "refused": found.refused}
        return Answer(text="", state={}, decision=counts, lasting=Lasting(consolidated=done))


async def _as_known_first(task: RunningTask, material: Material) -> Material:
    """The material with what the first attempt knew: facts come and go meanwhile, and a later
    attempt must ask what that one asked. Messages never change."""
    name = f"{task.action['session_id']}:{task.action['first']}:{task.action['last']}"
    digest = hashlib.sha256(name.encode()).hexdigest()
    step = StepRequest(_KNOWN_STEP, "tool", "known", digest, "pure")
    start = await task.journal.begin(step)
    if start.outcome == "done" and start.output is not None:
        return material.as_of(Remembered.of_json(start.output))
    await task.journal.finish(step, material.remembered.as_json())
    return material


async def _brought(
    task: RunningTask, material: Material, first: int, last: int
) -> Extraction | None:
    """What a batch has found, which was asked some hours ago; None where it is no use."""
    if "line" not in task.action or task.resources.read_answer is None:
        return None
    line = UUID(task.action["line"])
    brought = await task.resources.read_answer(task.user_id, line)
    if brought is None:
        return None
    then = {one.id for one in brought.known.known}
    since = [one for one in material.known if one.id not in then]
    try:
        return extracted(brought.output, material.as_of(brought.known), first, last, since=since)
    except UnusableOutput as error:
        log.warning("a batch's answer is no use", line=str(line), error=str(error))
        return None


def asked(material: Material, first: int, last: int) -> LlmContext:
    """What a model is asked about a range."""
    return LlmContext(SYSTEM_PROMPT, [UserMessage(question(material, first, last), timestamp=0)])


def options_of(model: Model) -> StreamOptions:
    """How it is asked."""
    tokens = OUTPUT_TOKENS + (THINKING_TOKENS if model.reasoning else 0)
    return StreamOptions(temperature=0.0, max_tokens=tokens, purpose=PURPOSE)


async def _found(task: RunningTask, material: Material, first: int, last: int) -> Extraction:
    material = await _as_known_first(task, material)
    output = await _answer(task, asked(material, first, last))
    try:
        return extracted(output, material, first, last)
    except UnusableOutput as error:
        raise TaskFailed("consolidation_unusable", str(error)) from error


async def _answer(task: RunningTask, context: LlmContext) -> str:
    """The model's answer, as far as it is not too long; raises TaskFailed where there is none."""
    resources = task.resources
    model = resources.model_of("cheap")
    options = replace(options_of(model), api_key=resources.api_key, session_id=str(task.session_id))
    events = stream_completion(
        model,
        context,
        options,
        stream_fn=resources.stream_fn,
        journal=task.journal,
        step_no=_CALL_STEP,
        cancel=task.signal,
    )
    length = 0
    try:
        async with task.deadlines.within(CALL_SECONDS), aclosing(events):
            async for event in events:
                if isinstance(event, StreamDone):
                    return event.message.text
                if isinstance(event, StreamError):
                    raise TaskFailed("model_failed", event.error.error_message or "no answer")
                if isinstance(event, TextDelta):
                    length += len(event.delta)
                    if length > OUTPUT_CHARACTERS:
                        raise TaskFailed("consolidation_unusable", "the answer is too long")
    except TimeoutError:
        raise TaskFailed("model_failed", f"no answer within {CALL_SECONDS:g} seconds") from None
    raise AssertionError("a completion ends with its message")


MayBatch: TypeAlias = Callable[[str], Awaitable[bool]]
"""Whether what a user's sessions have to be read for may go with a batch."""


async def _no_batches(user_id: str) -> bool:
    return False


async def consolidate_for_ever(
    db: Database,
    hints: Hints,
    *,
    idle_seconds: float,
    every: float,
    may_batch: MayBatch = _no_batches,
    rules: BudgetRules = NO_RULES,
) -> None:
    """Have sessions read whose time has come, until cancelled; any number of processes may.

    Args:
        idle_seconds: how long a session is quiet until it is read.
        every: seconds between two looks.
        rules: what may be spent by those who have no budget of their own.
    """
    trouble = Trouble(log, "consolidation not ordered")
    while True:
        await asyncio.sleep(every)
        with trouble.catch():
            for due in await consolidation.due(db):
                batched = await may_batch(due.user_id)
                ordered = await consolidation.order(
                    db, due, idle_seconds=idle_seconds, batched=batched, rules=rules
                )
                if ordered is not None:
                    await hints.send([ordered.session_id], {ordered.session_id: ordered.level})
