"""A worker dies in the middle of a say: the next one repeats no call and decides the same."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from agent_core import AbortSignal
from agent_core.testing import (
    SCRIPTED_MODEL,
    Play,
    Reply,
    ScriptedModel,
    ScriptedRequest,
    ScriptedStream,
    answer,
    streamed,
)
from shared.records import Claim, Event, NewEvent, Outcome, Step
from tests.story.playing import GATE, compiled, plain, ruling, scene_of, verdict
from tests.worker.attempts import NOW, TASK, KeepingStore, claim
from worker.agents import Resources
from worker.attempt import run_attempt
from worker.story import StoryAgent
from worker.task_log import TaskLog

REPLIES = {
    "a choice with a throw": (ruling(2), "Up you go, grunting.", verdict(trust=4)),
    "a free throw": (ruling(None, check={"stat": "wits", "dc": 9}), "Hup.", verdict()),
    "a referee that fails": (RuntimeError("down"), "Up you go.", verdict(trust=5)),
    "a narrator that fails": (ruling(1), RuntimeError("down")),
    "a judge that fails": (ruling(1), "He nods.", "no JSON"),
}


@dataclass
class Attempt:
    """One attempt of the same task, with all that it wrote."""

    store: KeepingStore
    model: ScriptedModel

    @property
    def outcome(self) -> Outcome:
        assert self.store.outcome is not None
        return self.store.outcome


async def attempt(of: Claim, replies: Sequence[Reply], *, written_between: bool) -> Attempt:
    store = KeepingStore(first_seq=len(of.events) + 1)
    log = TaskLog(of, store, on_lost=lambda: None)
    script = [flushing(log, reply) for reply in replies] if written_between else replies
    model = ScriptedModel(script)

    async def read(story_hash: str) -> str:
        return compiled(GATE)

    await run_attempt(
        of,
        log,
        {"test": StoryAgent()},
        resources=Resources(SCRIPTED_MODEL, None, read, stream_fn=model),
        signal=AbortSignal(),
        task_seconds=60,
        max_attempts=5,
    )
    return Attempt(store, model)


def flushing(log: TaskLog, reply: Reply) -> Play:
    """The reply, with everything written before it and in its middle."""

    async def play(stream: ScriptedStream, request: ScriptedRequest) -> None:
        await log.flush()
        if isinstance(reply, Exception):
            raise reply
        assert isinstance(reply, str)
        *events, last = streamed(answer(reply))
        for event in events:
            stream.push(event)
        await log.flush()
        stream.push(last)

    return play


async def first_claim() -> Claim:
    scene = await scene_of()
    return replace(
        claim(),
        story="a-story",
        story_hash=scene.engine.hash,
        state=scene.private,
        view={"state": scene.public, "choices": scene.choices},
        action={"type": "say", "text": "I climb the wall"},
    )


def taken_over(of: Claim, writes: Sequence[tuple[list[NewEvent], list[Step]]]) -> Claim:
    """The claim of the next worker, after these writes of the first one."""
    events = [event for events, _ in writes for event in events]
    steps = {step.no: step for _, steps in writes for step in steps}
    return replace(
        of,
        attempt=2,
        attempts=2,
        steps=list(steps.values()),
        events=[
            Event(seq, event.type, TASK, NOW, event.data)
            for seq, event in enumerate(events, start=1)
        ],
    )


def result_of(done: Attempt) -> Any:
    return plain(
        {
            "state": done.outcome.state,
            "view": done.outcome.view,
            "result": done.outcome.result,
            "messages": list(done.outcome.messages),
            "usage": done.outcome.usage,
        }
    )


@pytest.mark.parametrize("replies", REPLIES.values(), ids=REPLIES.keys())
async def test_wherever_the_first_worker_dies_nothing_is_asked_twice(
    replies: Sequence[Reply],
) -> None:
    of = await first_claim()
    whole = await attempt(of, replies, written_between=True)
    assert whole.outcome.status == "completed"
    writes = whole.store.writes
    assert len(writes) > len(replies)

    calls_left = set()
    for cut in range(len(writes)):
        again = taken_over(of, writes[:cut])
        known = {step.no for step in again.steps if step.status == "done"}
        missing = [reply for no, reply in enumerate(replies) if no not in known]
        second = await attempt(again, missing, written_between=False)
        calls_left.add(len(missing))

        assert len(second.model.requests) == len(missing)
        assert result_of(second) == result_of(whole)
        log = [*(event.type for event in again.events), *second.store.kinds]
        kinds = [kind for kind in log if kind not in {"task_started", "task_restarted"}]
        starts = [kind for kind in kinds if kind != "message_start"]
        assert starts == [
            "agent_start",
            "turn_start",
            "message_end",
            "message_end",
            "turn_end",
            "agent_end",
            "state_changed",
            "task_completed",
        ]
    # A slow machine may also write once more between the last call and the end.
    assert calls_left >= set(range(1, len(replies) + 1))
