"""What earlier attempts of a task left behind, and what a new attempt makes of it."""

from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

from agent_core import StepMismatchError, StepRequest, StepStart
from shared.encoding import JsonObject
from shared.records import Event, Step

Settled: TypeAlias = Counter[tuple[str, object]]
"""Events that need not be written again, by kind and number, call or count."""


def settled_events(events: Sequence[Event]) -> tuple[Settled, list[JsonObject]]:
    """What earlier attempts wrote and this one must not repeat, and the messages among it.

    A message or a call that was begun and not ended is left out: clients drop what they have of
    it, and it is told from its start again.
    """
    ended_messages = {e.data["number"] for e in events if e.type == "message_end"}
    ended_calls = {e.data["tool_call_id"] for e in events if e.type == "tool_execution_end"}
    settled: Settled = Counter()
    ordinals: Counter[str] = Counter()
    for event in events:
        if event.type in {"message_start", "message_end"}:
            if event.data["number"] in ended_messages:
                settled[event.type, event.data["number"]] += 1
        elif event.type.startswith("tool_execution"):
            if event.data["tool_call_id"] in ended_calls:
                settled[event.type, event.data["tool_call_id"]] += 1
        elif event.type not in {"task_started", "task_restarted"}:
            ordinals[event.type] += 1
            settled[event.type, ordinals[event.type]] += 1
    messages = [event.data["message"] for event in events if event.type == "message_end"]
    return settled, messages


def recall(memo: Step, step: StepRequest) -> StepStart | None:
    """What the journal knows of a step, or None where it must run (again)."""
    if (memo.kind, memo.input_hash) != (step.kind, step.input_hash):
        raise StepMismatchError(
            f"step {step.no} was {memo.kind} {memo.name} with another input; "
            "the agent does not repeat itself"
        )
    if memo.status == "done":
        return StepStart("done", output=memo.output)
    if memo.status == "unknown" or step.effect == "external":
        return StepStart("unknown")
    return None
