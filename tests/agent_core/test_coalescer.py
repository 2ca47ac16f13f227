"""Deltas that are collected for relays."""

from __future__ import annotations

import asyncio

import pytest

from agent_core import (
    AgentEvent,
    AssistantMessage,
    CoalescedDelta,
    DeltaCoalescer,
    MessageEnd,
    MessageStart,
    MessageUpdate,
    TextDelta,
    ThinkingDelta,
)
from agent_core.testing import answer, call, calls
from tests.agent_core.agents import Scripted, ok
from tests.waiting import within

MESSAGE = AssistantMessage([])


def delta(text: str) -> AgentEvent:
    return MessageUpdate(MESSAGE, TextDelta(0, text, MESSAGE), 4)


class Relay:
    """Takes what is emitted."""

    def __init__(self) -> None:
        self.got: list[CoalescedDelta] = []
        self.some = asyncio.Event()

    async def emit(self, piece: CoalescedDelta) -> None:
        self.got.append(piece)
        self.some.set()


async def test_deltas_are_emitted_before_any_other_event() -> None:
    relay = Relay()
    coalescer = DeltaCoalescer(relay.emit, max_delay=60)
    await coalescer.listen(MessageStart(MESSAGE))
    for text in ("On", "ce", " é😀"):
        await coalescer.listen(delta(text))
    await coalescer.listen(MessageUpdate(MESSAGE, ThinkingDelta(0, "hm", MESSAGE)))
    assert relay.got == []

    await coalescer.listen(MessageEnd(MESSAGE))
    await coalescer.listen(MessageStart(MESSAGE))
    await coalescer.listen(delta("next"))
    await coalescer.flush()
    await coalescer.listen(delta("!"))
    await coalescer.flush()

    assert relay.got == [
        CoalescedDelta("Once é😀", 0, 4),
        CoalescedDelta("next", 0, 4),
        CoalescedDelta("!", 4, 4),
    ]


async def test_many_tokens_are_emitted_at_once() -> None:
    relay = Relay()
    coalescer = DeltaCoalescer(relay.emit, max_delay=60, max_tokens=3)
    for _ in range(7):
        await coalescer.listen(delta("ab"))
    await coalescer.listen(delta("a long line of text"))

    assert [piece.text for piece in relay.got] == ["ababab", "ababab", "aba long line of text"]
    assert [piece.offset for piece in relay.got] == [0, 6, 12]


async def test_a_few_are_emitted_after_a_delay() -> None:
    relay = Relay()
    coalescer = DeltaCoalescer(relay.emit, max_delay=0.001)
    await coalescer.listen(delta("a"))
    await within(relay.some.wait())

    assert [piece.text for piece in relay.got] == ["a"]


async def test_a_relay_that_fails_late_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    failed = asyncio.Event()

    async def emit(_: CoalescedDelta) -> None:
        failed.set()
        raise ConnectionError("no relay")

    coalescer = DeltaCoalescer(emit, max_delay=0)
    await coalescer.listen(delta("a"))
    await within(failed.wait())
    await asyncio.sleep(0)

    assert "emitting deltas failed" in caplog.text
    await coalescer.flush()


async def test_an_agents_text_arrives_whole() -> None:
    relay = Relay()
    scripted = Scripted([calls(call("c1", "ok"), text="wait"), "one two three four"], ok)
    scripted.agent.subscribe(DeltaCoalescer(relay.emit, max_tokens=2).listen)

    await scripted.agent.prompt("hi")

    assert "".join(piece.text for piece in relay.got) == "one two three four"
    assert answer("x").text == "x"
