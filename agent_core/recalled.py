"""Memories as a model is told them: in the order of time, under the days when they were said.

A note has the lines as they are told, so that whatever process composes a request from it tells
the same: the first memory of a day carries the day's name in its text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from agent_core.context_notes import RecalledMemory
from agent_core.tokens import count_tokens

LINE_TOKENS = 1  # the dash before a line; its end goes with the sign before it


def filled(ranked: Iterable[RecalledMemory], budget: int) -> list[RecalledMemory]:
    """As many of the best memories as `budget` tokens take, with the days that they are told under.

    One that is too long for what is left gives way to shorter ones behind it; what was said twice
    in the same words on one day is taken once.

    Args:
        ranked: the best first.
    """
    taken: list[RecalledMemory] = []
    days, said, left = {""}, set[tuple[str, str]](), budget
    for memory in ranked:
        words = (memory.day, memory.text)
        # A blank at its beginning counts where it comes behind that of a heading.
        tokens = tokens_of([memory]) + memory.text[:1].isspace()
        if memory.day not in days:
            tokens += count_tokens(_heading(memory.day))
        if tokens > left or words in said:
            continue
        taken.append(memory)
        left -= tokens
        days.add(memory.day)
        said.add(words)
    return taken


def told_by_day(memories: Iterable[RecalledMemory]) -> list[RecalledMemory]:
    """Memories as they are told and noted, the earliest first: with its day before the first one of
    each."""
    told: list[RecalledMemory] = []
    day = ""
    for memory in sorted(memories, key=lambda memory: memory.said_at):
        text = memory.text
        if memory.day and memory.day != day:
            text, day = _heading(memory.day) + text, memory.day
        told.append(replace(memory, text=text, day=""))
    return told


def tokens_of(memories: Sequence[RecalledMemory]) -> int:
    """What memories take as lines, by estimate."""
    return sum(count_tokens(memory.text) + LINE_TOKENS for memory in memories)


def _heading(day: str) -> str:
    # A line of its own in the list that is made of the texts.
    return f"{day}:\n- "
