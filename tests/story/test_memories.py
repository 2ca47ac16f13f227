"""What of a session's past is shown: a window that is cut in steps, and lines of what it lost."""

from dataclasses import replace
from itertools import pairwise

import pytest

from agent_core import AssistantMessage, MemoryJournal, Message, TextContent, UserMessage
from tests.story.test_calls import task_of
from worker.agents import RunningTask
from worker.memories import CHARACTERS, MOST, STEP, Memories, recent

KEPT = 200


def message(number: int, text: str = "") -> Message:
    text = text or f"number {number}"
    if number % 2:
        return AssistantMessage([TextContent(text)])
    return UserMessage(text)


def session_of(total: int, kept: int = KEPT) -> RunningTask:
    first = max(0, total - kept)
    history = [message(number) for number in range(first, total)]
    return replace(task_of(MemoryJournal()), history=history, earlier=first)


def numbers(messages: object) -> list[int]:
    assert isinstance(messages, list)
    return [
        int(str(one.text if isinstance(one, AssistantMessage) else one.content).split()[1])
        for one in messages
    ]


@pytest.mark.parametrize("total", [0, 1, MOST])
def test_a_short_session_is_shown_whole(total: int) -> None:
    assert numbers(list(recent(session_of(total)))) == list(range(total))


def test_the_window_begins_at_the_same_message_for_many_tasks() -> None:
    starts = [numbers(list(recent(session_of(total))))[0] for total in range(1, 600)]

    assert set(starts) == {
        start for start in range(600) if start % STEP == 0 and start <= 599 - MOST + STEP
    }
    changes = sum(before != after for before, after in pairwise(starts))
    assert changes <= 600 / STEP


def test_the_window_is_never_larger_or_far_smaller_than_it_should_be() -> None:
    for total in range(MOST, 600):
        assert MOST - STEP < len(recent(session_of(total))) <= MOST


def test_a_few_giant_messages_make_the_window_short() -> None:
    history = [message(number, "x" * 10_000) for number in range(20)]
    task = replace(session_of(0), history=history)

    assert sum(len("x" * 10_000) for _ in recent(task)) <= CHARACTERS
    assert len(recent(task)) == 2


async def test_memories_are_what_the_window_lost_the_newest_as_far_as_they_fit() -> None:
    task = session_of(40)
    lines = await Memories().recall(task, "anything", 16)

    assert numbers(list(recent(task)))[0] == 16
    assert lines == [
        "User: number 12",
        "You: number 13",
        "User: number 14",
        "You: number 15",
    ]


async def test_a_memory_is_one_short_line() -> None:
    long = "a\n b " * 400
    history = [message(0, long), *(message(number) for number in range(1, 40))]
    task = replace(session_of(0), history=history)

    (first, *_) = await Memories().recall(task, "anything", 10_000)
    assert first.startswith("User: a b a b")
    assert "\n" not in first
    assert len(first) < 300
