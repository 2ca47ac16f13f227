"""Events on their way to clients: lines, frames, what is published and what is kept."""

import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from shared.encoding import dumps, loads
from shared.errors import QueueUnavailable
from shared.events import (
    CANCEL_CHANNEL,
    TERMINAL_TYPES,
    TEXT_SECONDS,
    TEXT_STRETCH,
    AttemptNews,
    Delta,
    Line,
    Publisher,
    channel,
    decode_lines,
    delta_frame,
    encode_lines,
    event_frame,
    text_key,
    text_so_far,
)
from shared.records import Event
from shared.redis_pool import connect_redis
from shared.settings import load_settings
from tests.ports import promised_port
from tests.waiting import PATIENCE

SESSION, TASK = UUID(int=1), UUID(int=2)
AT = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)

frames = st.dictionaries(st.text(), st.text() | st.integers(0, 9), max_size=3).map(dumps)
lines = st.builds(
    Line,
    seq=st.none() | st.integers(0, 2**63),
    task_id=st.uuids().map(str) | st.just(""),
    attempt=st.integers(0, 2**31),
    frame=frames,
)


@given(st.lists(lines, max_size=5))
def test_lines_come_back_as_they_went(sent: list[Line]) -> None:
    assert decode_lines(encode_lines(sent)) == sent


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 128, 65_535, 65_536, 1_000_000])
def test_a_frame_is_a_message_of_a_websocket(size: int) -> None:
    client = ClientProtocol(parse_uri("ws://example.com/"), state=State.OPEN, max_size=None)
    line = Line(1, "task", 1, b"x" * size)
    client.receive_data(line.message)

    assert client.events_received() == [Frame(Opcode.TEXT, line.frame)]
    assert line.message is line.message


@given(st.lists(lines, min_size=1, max_size=4), st.data())
def test_malformed_lines_are_left_out(sent: list[Line], data: st.DataObject) -> None:
    bad = data.draw(
        st.sampled_from(
            [
                b"",
                b" ",
                b"text",
                b"1:2 {}",
                b"1:2:3:4 {}",
                b"x:t:1 {}",
                b":t:1 {}",
                b"1:t:x {}",
                b"1:t: {}",
                b"1:\xff:1 {}",
                b"\xff\xfe",
                b"9" * 5000 + b":t:1 {}",
            ]
        )
    )
    parts = encode_lines(sent).split(b"\n")
    parts.insert(data.draw(st.integers(0, len(parts))), bad)

    assert decode_lines(b"\n".join(parts)) == sent


@given(st.binary())
def test_no_bytes_are_an_error(payload: bytes) -> None:
    for line in decode_lines(payload):
        assert isinstance(line, Line)


def test_an_events_frame() -> None:
    frame = event_frame(Event(7, "turn_start", TASK, AT, {"text": "a\nb\0\ud800"}))

    assert loads(frame) == {
        "seq": 7,
        "type": "turn_start",
        "task_id": str(TASK),
        "at": "2030-01-02T03:04:05.678901+00:00",
        "data": {"text": "a\nb\ufffd\ufffd"},
    }
    assert b"\n" not in frame


def test_an_events_frame_without_a_task() -> None:
    frame = event_frame(Event(1, "state_changed", None, AT, {}))

    assert loads(frame)["task_id"] is None


def test_a_deltas_frame() -> None:
    assert loads(delta_frame(TASK, 2, Delta(3, 40, "hé\n"))) == {
        "type": "message_update",
        "task_id": str(TASK),
        "attempt": 2,
        "message": 3,
        "offset": 40,
        "delta": "hé\n",
    }


def test_terminal_types() -> None:
    assert {"task_completed", "task_failed", "task_cancelled", "task_dead"} == TERMINAL_TYPES


@pytest.fixture
async def listening(redis: Redis) -> AsyncIterator[PubSub]:
    """A plain subscription to the session and to cancels."""
    async with redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe(channel(SESSION), CANCEL_CHANNEL)
        for _ in range(2):
            assert await pubsub.get_message(timeout=PATIENCE) is None
        yield pubsub


async def heard(listening: PubSub) -> tuple[bytes, bytes]:
    """The next message: its channel and payload."""
    while True:
        message = await listening.get_message(timeout=PATIENCE)
        if message is not None:
            return message["channel"], message["data"]


async def test_published_events(redis: Redis, listening: PubSub) -> None:
    events = [
        Event(4, "turn_start", TASK, AT, {}),
        Event(5, "state_changed", None, AT, {"state": {}}),
    ]
    publisher = Publisher(redis)

    await publisher.events_of_many([(SESSION, [])])
    await publisher.events_of_many([(SESSION, events)])

    name, payload = await heard(listening)
    assert name == channel(SESSION).encode()
    assert decode_lines(payload) == [
        Line(4, str(TASK), 0, event_frame(events[0])),
        Line(5, "", 0, event_frame(events[1])),
    ]


async def test_a_published_cancel(redis: Redis, listening: PubSub) -> None:
    await Publisher(redis).cancel(SESSION, TASK)

    assert await heard(listening) == (CANCEL_CHANNEL.encode(), f"{SESSION}:{TASK}".encode())


async def told(redis: Redis, attempt: int, entries: Sequence[Event | Delta]) -> None:
    """Publish what an attempt gave; its text is kept."""
    assert await Publisher(redis).attempts([AttemptNews(SESSION, TASK, attempt, entries)]) == [True]


def delta_line(attempt: int, delta: Delta) -> Line:
    return Line(None, str(TASK), attempt, delta_frame(TASK, attempt, delta))


async def test_what_an_attempt_gives_keeps_its_order(redis: Redis, listening: PubSub) -> None:
    begun = Event(4, "message_start", TASK, AT, {"number": 0})
    delta = Delta(0, 0, "Once\n")

    await told(redis, 2, [begun, delta])

    _, payload = await heard(listening)
    assert decode_lines(payload) == [
        Line(4, str(TASK), 2, event_frame(begun)),
        delta_line(2, delta),
    ]


async def test_the_text_so_far(redis: Redis) -> None:
    assert await text_so_far(redis, TASK, 1) is None

    await told(redis, 1, [Delta(0, 0, "Once\n")])
    await told(redis, 1, [Delta(0, 5, "upon \U0001f600")])

    so_far = delta_line(1, Delta(0, 0, "Once\nupon \U0001f600"))
    assert await text_so_far(redis, TASK, 1) == so_far
    assert TEXT_SECONDS - 60 < await redis.ttl(text_key(TASK, 1)) <= TEXT_SECONDS


async def test_a_text_that_grows_is_kept_for_longer(redis: Redis) -> None:
    await told(redis, 1, [Delta(0, 0, "a" * (TEXT_STRETCH - 1))])
    await redis.expire(text_key(TASK, 1), 100)
    await told(redis, 1, [Delta(0, TEXT_STRETCH - 1, "b")])

    assert await redis.ttl(text_key(TASK, 1)) > 100


async def test_each_attempt_and_each_message_has_a_text_of_its_own(redis: Redis) -> None:
    for attempt, message in ((1, 0), (1, 2), (2, 0)):
        await told(redis, attempt, [Delta(message, 0, "old")])
        await told(redis, attempt, [Delta(message, 0, "new"), Delta(message, 3, "er")])

        expected = delta_line(attempt, Delta(message, 0, "newer"))
        assert await text_so_far(redis, TASK, attempt) == expected
    assert await text_so_far(redis, TASK, 1) == delta_line(1, Delta(2, 0, "newer"))


async def test_the_text_of_a_message_goes_with_its_end(redis: Redis) -> None:
    await told(redis, 1, [Delta(0, 0, "whole")])
    await told(redis, 1, [Event(5, "message_end", TASK, AT, {"number": 0})])

    assert await text_so_far(redis, TASK, 1) is None


async def test_a_text_whose_beginning_ran_out_is_not_given(redis: Redis) -> None:
    await told(redis, 1, [Delta(0, 5, "tail\nof it")])

    assert await text_so_far(redis, TASK, 1) is None


@pytest.mark.parametrize(
    "kept", [b"", b"\n", b"x", b":\nx", b"-1\nx", b"x\ny", b"1\ny", b"\0\ny", b"\0x\ny"]
)
async def test_a_kept_text_that_someone_else_wrote(redis: Redis, kept: bytes) -> None:
    await redis.set(text_key(TASK, 1), kept)

    assert await text_so_far(redis, TASK, 1) is None


async def test_a_kept_text_that_is_cut_within_a_character(redis: Redis) -> None:
    await redis.set(text_key(TASK, 1), b"\0000\na\xc3")

    assert await text_so_far(redis, TASK, 1) == delta_line(1, Delta(0, 0, "a\ufffd"))


async def test_half_a_character_in_a_delta(redis: Redis, listening: PubSub) -> None:
    await told(redis, 1, [Delta(0, 0, "a\ud83d")])
    await told(redis, 1, [Delta(0, 2, "\0b")])

    _, first = await heard(listening)
    assert decode_lines(first) == [delta_line(1, Delta(0, 0, "a\ufffd"))]
    so_far = await text_so_far(redis, TASK, 1)
    assert so_far is not None
    assert loads(so_far.frame)["delta"] == "a\ufffd\ufffdb"


async def test_with_redis_away_all_fails_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{promised_port()}/0")
    redis = connect_redis(load_settings())
    publisher = Publisher(redis)
    event = Event(1, "turn_start", TASK, AT, {})
    started = time.monotonic()

    await publisher.events_of_many([(SESSION, [])])
    for attempt in (
        publisher.events_of_many([(SESSION, [event])]),
        publisher.attempts([AttemptNews(SESSION, TASK, 1, [Delta(0, 0, "x")])]),
        publisher.cancel(SESSION, TASK),
        text_so_far(redis, uuid4(), 1),
    ):
        with pytest.raises(QueueUnavailable, match=r"127\.0\.0\.1"):
            await attempt

    assert time.monotonic() - started < 15  # each of the four could wait for 5 s
    await redis.aclose()
