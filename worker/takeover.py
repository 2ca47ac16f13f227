"""What earlier attempts of a task left behind, and what a new attempt makes of it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID

from agent_core import StepMismatchError, StepRequest, StepStart
from shared.encoding import JsonObject
from shared.records import Event, Step

Settled: TypeAlias = Counter[tuple[str, object]]
"""Events that need not be written again, by kind and number, call or count."""


@dataclass(frozen=True, slots=True)
class Told:
    """What earlier attempts wrote into the log: what need not be written again, the messages, and
    for each task that joined by a message of its own the message's index."""

    settled: Settled
    messages: list[JsonObject]
    joined: dict[UUID, int]


def told_before(events: Sequence[Event]) -> Told:
    """What earlier attempts wrote and this one must not repeat.

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
    ends = [event.data for event in events if event.type == "message_end"]
    joined = {UUID(data["joined"]): no for no, data in enumerate(ends) if "joined" in data}
    return Told(settled, [data["message"] for data in ends], joined)


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
