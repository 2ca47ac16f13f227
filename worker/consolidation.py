"""Consolidation: reading what was said in a session again, for what is worth knowing for good.

`ConsolidationAgent` does it, in tasks of sessions that no user sees; `consolidate_for_ever` sees to
it that such a task is made when a session's time has come.
"""

import asyncio
import hashlib
from contextlib import aclosing
from dataclasses import replace
from uuid import UUID

import structlog

from agent_core import (
    LlmContext,
    StepRequest,
    StreamDone,
    StreamError,
    StreamOptions,
    TextDelta,
    UserMessage,
    stream_completion,
)
from shared.consolidation import KEEPER, Consolidated, Known, Material
from shared.encoding import JsonObject
from shared.errors import FiresideError
from shared.memories import language_of, speaker_of
from shared.queue import Hints
from shared.records import CatalogEntry, Lasting
from shared.store import consolidation
from shared.store.database import Database
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
            material = await _as_known_first(task, material)
            found = await _found(task, material, first, last)
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
        kept = start.output
        return replace(
            material,
            known=[Known(UUID(one["id"]), one["kind"], one["text"]) for one in kept["known"]],
            summary=kept["summary"],
            summary_upto=kept["summary_upto"],
        )
    output: JsonObject = {
        "known": [
            {"id": str(one.id), "kind": one.kind, "text": one.text} for one in material.known
        ],
        "summary": material.summary,
        "summary_upto": material.summary_upto,
    }
    await task.journal.finish(step, output)
    return material


async def _found(task: RunningTask, material: Material, first: int, last: int) -> Extraction:
    output = await _asked(task, question(material, first, last))
    try:
        return extracted(output, material, first, last)
    except UnusableOutput as error:
        raise TaskFailed("consolidation_unusable", str(error)) from error


async def _asked(task: RunningTask, asked: str) -> str:
    """The model's answer, as far as it is not too long; raises TaskFailed where there is none."""
    resources = task.resources
    model = resources.model_of("cheap")
    tokens = OUTPUT_TOKENS + (THINKING_TOKENS if model.reasoning else 0)
    events = stream_completion(
        model,
        LlmContext(SYSTEM_PROMPT, [UserMessage(asked, timestamp=0)]),
        StreamOptions(
            api_key=resources.api_key,
            session_id=str(task.session_id),
            temperature=0.0,
            max_tokens=tokens,
            purpose="consolidation",
        ),
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


async def consolidate_for_ever(
    db: Database, hints: Hints, *, idle_seconds: float, every: float
) -> None:
    """Have sessions read whose time has come, until cancelled; any number of processes may.

    Args:
        idle_seconds: how long a session is quiet until it is read.
        every: seconds between two looks.
    """
    while True:
        await asyncio.sleep(every)
        try:
            for due in await consolidation.due(db):
                ordered = await consolidation.order(db, due, idle_seconds=idle_seconds)
                if ordered is not None:
                    await hints.send([ordered.session_id], {ordered.session_id: ordered.level})
        except FiresideError as error:
            log.warning("consolidation not ordered", error=str(error))
