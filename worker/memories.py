"""What an agent gets to see of a session's past: its newest messages, and memories of the rest."""

from collections.abc import Sequence

from agent_core import AssistantMessage, Message, UserMessage
from agent_core.content import plain_text
from worker.agents import RunningTask
from worker.story_prompts import clip, quoted

MOST = 28
STEP = 16
"""A window holds at most MOST messages and loses STEP at once. A window that slides by one with
every message would never find its beginning in a provider's cache."""

CHARACTERS = 24_000
CHARACTERS_PER_TOKEN = 4

_LONGEST_MEMORY = 240  # characters


def recent(task: RunningTask) -> Sequence[Message]:
    """The newest messages of the session, cut in steps that are the same in task after task."""
    return task.history[_start(task) :]


def _start(task: RunningTask) -> int:
    """Where in the history the window starts: at a number of the session divisible by STEP."""
    total = task.earlier + len(task.history)
    start = max(0, -(-(total - MOST) // STEP) * STEP - task.earlier)
    sizes = [len(_text(message)) for message in task.history[start:]]
    lost = 0
    while sum(sizes[lost:]) > CHARACTERS and len(sizes) - lost > STEP:
        lost += STEP
    while sum(sizes[lost:]) > CHARACTERS and len(sizes) - lost > 1:
        lost += 1
    return start + lost


class Memories:
    """Finds what of the past bears on a moment."""

    async def recall(self, task: RunningTask, query: str, budget: int) -> list[str]:
        """Lines worth telling a model beside the window, the oldest first.

        For now these are the newest of the session's messages that the window has lost.

        Args:
            query: what the memories should bear on.
            budget: how many tokens all lines together may have.
        """
        left = budget * CHARACTERS_PER_TOKEN
        lines: list[str] = []
        for message in reversed(task.history[: _start(task)]):
            line = _line(message)
            left -= len(line)
            if left < 0:
                break
            if line:
                lines.append(line)
        return lines[::-1]


def _line(message: Message) -> str:
    text = " ".join(_text(message).split())
    if not text:
        return ""
    if isinstance(message, UserMessage):
        return quoted(text, _LONGEST_MEMORY)
    return f"You: {clip(text, _LONGEST_MEMORY)}"


def _text(message: Message) -> str:
    if isinstance(message, AssistantMessage):
        return message.text
    if isinstance(message, UserMessage):
        content = message.content
        return content if isinstance(content, str) else plain_text(content)
    return ""
