"""What a task's model is given: from the store, the same in every attempt, within its budget."""

import asyncio
from dataclasses import replace

import pytest

from agent_core import (
    AgentEvent,
    AssistantMessage,
    MemoryJournal,
    Message,
    MessageEnd,
    MessageStart,
    Model,
    TextContent,
    UserMessage,
)
from agent_core.context_notes import note_of
from agent_core.testing import SCRIPTED_MODEL, ScriptedModel, ScriptedRequest
from shared.errors import StoreUnavailable
from shared.memories import MemoryMatches
from shared.store.recall import Cue
from tests.agent_core.agents import text_of
from tests.worker.attempts import KeepingStore, claim
from tests.worker.test_recall import SESSION, Kept, matching, task_with
from worker.agents import RunningTask, TaskFailed
from worker.companion import CompanionAgent
from worker.context import context_of
from worker.task_log import TaskLog


def asking(kept: Kept, text: str = "Was it fine?", **changed: object) -> RunningTask:
    action = {"type": "say", "text": text}
    return task_with(kept, action=action, **changed)  # type: ignore[arg-type]  # as there


def long_chat(messages: int) -> list[Message]:
    return [
        UserMessage(f"number {no}", timestamp=0)
        if no % 2 == 0
        else AssistantMessage([TextContent(f"number {no}")], timestamp=0)
        for no in range(messages)
    ]


async def run(task: RunningTask, *replies: str) -> tuple[list[AgentEvent], list[ScriptedRequest]]:
    """Have a companion answer; what it told, and what its model was asked."""
    model, events = ScriptedModel(replies), list[AgentEvent]()
    resources = replace(task.resources, stream_fn=model)
    await CompanionAgent().run(replace(task, resources=resources, emit=events.append))
    return events, model.requests


def said_in(events: list[AgentEvent]) -> UserMessage:
    (said,) = [
        event.message
        for event in events
        if isinstance(event, MessageEnd) and isinstance(event.message, UserMessage)
    ]
    return said


async def test_what_is_recalled_is_noted_on_the_message_that_asked() -> None:
    events, (request,) = await run(asking(Kept(matching(1, "Fine.", hits=["fine"]))), "Yes.")

    note = note_of(said_in(events))
    assert note is not None
    assert [one.to_dict() for one in note.memories] == [
        {
            "id": str(matching(1, "").id),
            "text": "7 May 2026:\n- Ada: Fine.",
            "said_at": "2026-05-07T12:00:00+00:00",
        }
    ]
    assert said_in(events).content == "Was it fine?"
    assert "- 7 May 2026:\n- Ada: Fine.\n</memories>\n\nWas it fine?" in text_of(
        request.messages[-1]
    )


async def test_a_later_attempt_asks_what_the_first_one_asked() -> None:
    journal, history = MemoryJournal(), long_chat(40)
    first = asking(Kept(matching(1, "It was fine.")), journal=journal, history=history)
    events, requests = await run(first, "Yes.")
    assert len(requests) == 1

    # Meanwhile a memory has gone, another has come, and a summary was made.
    kept = Kept(
        matching(2, "It was not."), matching(3, "All.", kind="summary", session_id=str(SESSION))
    )
    later = replace(asking(kept, journal=journal, history=history), told=[said_in(events)])
    events, requests = await run(later)

    assert requests == []  # the journal knew the answer to just this request
    assert kept.asked == []


async def test_an_attempt_that_told_nothing_recalls_anew() -> None:
    kept = Kept(matching(1, "Fine."))
    await run(asking(kept, told=[]), "Yes.")

    assert len(kept.asked) == 1


async def test_the_store_is_asked_for_what_the_window_does_not_show() -> None:
    kept = Kept()
    history = long_chat(200)
    events, (request,) = await run(asking(kept, history=history, earlier=800), "Yes.")

    note = note_of(said_in(events))
    assert note is not None
    assert note.window == len(request.messages) - 1 == 8
    assert [one.to_dict() for one in note.left_out] == [
        {"what": "messages", "why": "window", "count": 992}
    ]
    (cue,) = kept.asked
    assert cue == Cue("user", cue.character_id, "Was it fine?", "english", SESSION, shown_from=993)


async def test_what_the_window_shows_is_not_recalled_again() -> None:
    history: list[Message] = [UserMessage(" It  was fine.", timestamp=0)]
    events, _ = await run(asking(Kept(matching(1, "It was fine.")), history=history), "Yes.")

    note = note_of(said_in(events))
    assert note is not None
    assert note.memories == ()


async def test_the_sessions_own_summary_stands_before_its_window() -> None:
    kept = Kept(
        matching(4, "They <memories>met</soul>.", kind="summary", session_id=str(SESSION)),
        matching(2, "They met elsewhere.", kind="summary"),
    )
    _, (request,) = await run(asking(kept, history=long_chat(6)), "Yes.")

    assert request.system_prompt.endswith("<summary>\nThey met.\n</summary>")
    assert "They met elsewhere." in text_of(request.messages[-1])
    assert "They met." not in text_of(request.messages[-1])


async def test_without_a_store_and_while_it_is_away_nothing_is_recalled() -> None:
    class Away(Kept):
        async def recall(self, cue: Cue) -> MemoryMatches:
            raise StoreUnavailable("away")

    for task in (asking(Away()), asking(Kept())):
        _, (request,) = await run(task, "Yes.")
        assert request.messages[-1].content == "Was it fine?"


async def test_a_model_that_is_too_small_is_said_so() -> None:
    task = asking(Kept())
    tiny = replace(SCRIPTED_MODEL, context_window=1_500)
    task = replace(task, resources=replace(task.resources, model=tiny))

    with pytest.raises(TaskFailed, match="instructions and tools take") as caught:
        await run(task)
    assert caught.value.code == "context_overflow"


async def test_the_budget_is_that_of_the_smaller_model() -> None:
    task = asking(Kept(), "word " * 50_000)
    small = Model("m", "p", context_window=8_192, max_tokens=1_024)
    task = replace(task, resources=replace(task.resources, model=small))

    context = await context_of(
        task, UserMessage(task.action["text"]), instructions="Be kind.", soul="x " * 100_000
    )

    assert {one.what for one in context.built.note.left_out} == {"soul", "message"}
    assert len(context.built.system_prompt) < 8_000


async def test_a_note_is_written_once() -> None:
    """With the message's end: its beginning need not carry it, too."""
    store = KeepingStore()
    log = TaskLog(claim(), store, on_lost=lambda: None)
    said = UserMessage("hi", 0, {"context": {"window": 0}})
    log(MessageStart(said))
    log(MessageEnd(said))
    await log.flush()
    await asyncio.sleep(0)

    data = [event.data["message"] for event in store.events]
    assert ["details" in one for one in data] == [False, True]
