"""Reading many streams at one pace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, aclosing

import pytest

from agent_core import (
    LlmContext,
    Model,
    StreamDone,
    StreamOptions,
    TextDelta,
    UserMessage,
    stream_model,
)
from agent_core.openai_stream import stream_openai
from agent_core.reading_pace import (
    BEAT_SECONDS,
    FEW_STREAMS,
    LONGEST_BEAT,
    STREAMS_A_BEAT,
    PacedReading,
)
from deploy.models.control import ScriptedModel

CONTEXT = LlmContext("", [UserMessage("hi")])
TEXT = " ".join(f"word{number}" for number in range(60))


class Transport(asyncio.ReadTransport):
    """Knows whether it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = True
        self.closed = False
        self.read_on = asyncio.Event()

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        assert not self.closed
        self.reads = False

    def resume_reading(self) -> None:
        assert not self.closed
        self.reads = True
        self.read_on.set()


async def test_of_many_streams_each_is_read_on_at_the_same_beat() -> None:
    transports = [Transport() for _ in range(FEW_STREAMS + 1)]
    with ExitStack() as stack:
        readings = [stack.enter_context(PacedReading()) for _ in transports]
        for reading, transport in zip(readings, transports, strict=True):
            reading.rest(transport)
            reading.rest(transport)  # as good as once
        assert not any(transport.reads for transport in transports)

        await transports[0].read_on.wait()

        assert all(transport.reads for transport in transports)
        for reading, transport in zip(readings, transports, strict=True):
            reading.rest(transport)
        assert not any(transport.reads for transport in transports)
    assert all(transport.reads for transport in transports)  # whoever ends leaves nothing at rest


async def test_few_streams_are_read_as_they_come() -> None:
    transports = [Transport() for _ in range(FEW_STREAMS)]
    with ExitStack() as stack:
        for transport in transports:
            stack.enter_context(PacedReading()).rest(transport)

        assert all(transport.reads for transport in transports)


@pytest.mark.parametrize(
    ("streams", "beats"),
    [
        (FEW_STREAMS + 1, 1),
        (STREAMS_A_BEAT, 1),
        (STREAMS_A_BEAT + 1, 2),
        (20 * STREAMS_A_BEAT, LONGEST_BEAT),
    ],
)
async def test_the_more_streams_the_longer_each_rests(
    streams: int, beats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    timed: list[float] = []
    with ExitStack() as stack, monkeypatch.context() as patched:
        readings = [stack.enter_context(PacedReading()) for _ in range(streams)]
        patched.setattr(loop, "time", lambda: 1200.01)
        patched.setattr(loop, "call_at", lambda at, _: timed.append(at))
        readings[0].rest(Transport())

    assert timed == [pytest.approx(1200 + beats * BEAT_SECONDS)]


async def test_what_is_closed_or_gone_is_left_alone() -> None:
    closed, closing = Transport(), Transport()
    closed.closed = True
    with ExitStack() as stack:
        readings = [stack.enter_context(PacedReading()) for _ in range(FEW_STREAMS + 1)]
        readings[0].rest(None)
        readings[1].rest(closed)
        readings[2].rest(closing)
        other = Transport()
        readings[3].rest(other)
        closing.closed = True
        await other.read_on.wait()

    assert not closing.reads  # nobody touched it again


def streaming(server: ScriptedModel) -> Model:
    return Model("m", "local", base_url=server.url, api="openai")


async def test_many_answers_come_whole(scripted_model: ScriptedModel) -> None:
    scripted_model.script({"reply": {"text": TEXT, "duration": 0.4}})
    model = streaming(scripted_model)

    async def answer() -> tuple[str, str]:
        said, last = "", None
        async for event in stream_model(model, CONTEXT, StreamOptions()):
            said += event.delta if isinstance(event, TextDelta) else ""
            last = event
        assert isinstance(last, StreamDone)
        return said, last.message.text

    answers = await asyncio.gather(*(answer() for _ in range(3 * FEW_STREAMS)))

    assert set(answers) == {(TEXT, TEXT)}


async def test_an_answer_that_rests_can_be_broken_off(scripted_model: ScriptedModel) -> None:
    scripted_model.script({"reply": {"text": TEXT, "fault": {"kind": "hang", "after": 3}}})
    model = streaming(scripted_model)

    async def begun() -> None:
        async with aclosing(stream_openai(model, CONTEXT, StreamOptions())) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    break
            reading = asyncio.ensure_future(consumed(events))
            await asyncio.sleep(0)  # it has read what there is, and rests
            reading.cancel()
            await asyncio.wait([reading])

    await asyncio.gather(*(begun() for _ in range(3 * FEW_STREAMS)))

    await scripted_model.until(in_flight=0)


async def consumed(events: AsyncIterator[object]) -> None:
    async for _ in events:
        pass
