"""Telling beside the durable writes: in order, bounded, and the text so far is never wrong."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from uuid import UUID

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from structlog.testing import capture_logs

from shared.encoding import loads
from shared.ending import end_all
from shared.errors import QueueUnavailable
from shared.events import AttemptNews, Delta, Line, Publisher, text_so_far
from shared.follow import Follower, Subscription
from shared.records import Claim, Event, Fence
from shared.redis_pool import connect_redis
from shared.settings import load_settings
from tests.links import SlowLink
from tests.waiting import PATIENCE, within
from tests.worker.attempts import NOW, TASK, claim
from worker import telling
from worker.telling import Telling

OTHER = UUID(int=9)


def event(seq: int, kind: str = "turn_start", **data: object) -> Event:
    return Event(seq, kind, TASK, NOW, data)


def of_session(session: UUID) -> Claim:
    return replace(claim(), fence=Fence(session, 1, UUID(int=1)))


def client(url: str) -> Redis:
    made = connect_redis(load_settings().model_copy(update={"redis_url": SecretStr(url)}))
    # Else a machine that stands still would be taken for a Redis that is away.
    made.connection_pool.connection_kwargs["socket_timeout"] = 2 * PATIENCE
    return made


@pytest.fixture(autouse=True)
def standing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who follows has a subscription, however long that takes."""
    monkeypatch.setattr("shared.follow._CONFIRM_SECONDS", PATIENCE)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    made = client(redis_url)
    yield made
    await made.aclose()


@asynccontextmanager
async def sending(made: Telling) -> AsyncIterator[Telling]:
    task = asyncio.create_task(made.send_for_ever())
    try:
        yield made
    finally:
        await end_all([task])


@asynccontextmanager
async def following(redis: Redis, session: UUID) -> AsyncIterator[Subscription]:
    follower = Follower(redis)
    await follower.start()
    async with follower.follow(session) as subscription:
        yield subscription
    await follower.stop()


async def heard(subscription: Subscription, count: int) -> list[Line]:
    lines: list[Line] = []
    while len(lines) < count:
        assert await subscription.wait(PATIENCE), f"only {lines} came"
        lines += subscription.take()
    return lines


def numbers(lines: Sequence[Line]) -> list[int | None]:
    return [line.seq for line in lines]


async def text_of(redis: Redis) -> str | None:
    line = await text_so_far(redis, TASK, 1)
    return None if line is None else str(loads(line.frame)["delta"])


async def test_news_are_told_in_the_order_they_came(redis: Redis) -> None:
    mine, others = claim(), of_session(OTHER)
    async with (
        following(redis, mine.fence.session_id) as one,
        following(redis, OTHER) as two,
        sending(Telling(Publisher(redis))) as told,
    ):
        for seq in range(1, 501):
            told.tell(mine, [event(seq)])
            told.tell(others, [event(seq), Delta(0, seq, "x")])
        assert numbers(await heard(one, 500)) == list(range(1, 501))
        assert numbers(await heard(two, 1000))[::2] == list(range(1, 501))


async def test_nobody_waits_for_a_redis_that_is_silent(redis: Redis, redis_url: str) -> None:
    async with SlowLink(redis_url).running() as link:
        far = client(link.url)
        async with (
            following(redis, claim().fence.session_id) as listener,
            sending(Telling(Publisher(far))) as told,
        ):
            told.tell(claim(), [event(1)])
            assert numbers(await heard(listener, 1)) == [1]
            link.fall_silent()
            # Whatever asked the silent Redis would wait for ever: it speaks only after this.
            for seq in range(2, 1002):
                told.tell(claim(), [event(seq)])
            await asyncio.sleep(0.1)
            link.speak()
            lines: list[int | None] = []
            while 1001 not in lines:
                lines += numbers(await heard(listener, 1))
            # A command whose answer did not come may be sent twice; nothing overtakes anything.
            assert list(dict.fromkeys(lines)) == list(range(2, 1002))
        await far.aclose()


@pytest.fixture
def little_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too much is reached soon."""
    monkeypatch.setattr(telling, "MAX_WAITING", 1000)


@pytest.mark.usefixtures("little_waits")
async def test_what_is_too_much_is_dropped_with_one_line_in_the_log(redis: Redis) -> None:
    told = Telling(Publisher(redis))
    with capture_logs() as logs:
        for seq in range(1, telling.MAX_WAITING + 101):
            told.tell(claim(), [event(seq)])
        async with following(redis, claim().fence.session_id) as listener:
            await told.send_the_rest(PATIENCE)
            told.tell(claim(), [event(0)])
            await told.send_the_rest(PATIENCE)
            last = 1
            while last != 0:
                assert await listener.wait(PATIENCE)
                listener.take_stale()
                last = next((line.seq for line in listener.take() if line.seq == 0), 1)

    assert [(entry["event"], entry["log_level"]) for entry in logs] == [
        ("clients are not told, they find it in the log", "warning"),
        ("clients are told again", "info"),
    ]
    assert logs[1]["not_told"] == 100


@pytest.mark.usefixtures("little_waits")
async def test_of_a_message_with_a_lost_piece_no_text_is_kept(redis: Redis) -> None:
    told = Telling(Publisher(redis))
    told.tell(claim(), [Delta(0, 0, "one ")])
    await told.send_the_rest(PATIENCE)
    assert await text_of(redis) == "one "
    for seq in range(telling.MAX_WAITING):
        told.tell(of_session(OTHER), [event(seq + 1)])
    told.tell(claim(), [Delta(0, 4, "two ")])  # one too many
    await told.send_the_rest(PATIENCE)
    told.tell(claim(), [Delta(0, 8, "three")])
    await told.send_the_rest(PATIENCE)
    assert await text_of(redis) is None

    told.tell(claim(), [event(1, "message_end", number=0), Delta(1, 0, "next")])
    told.tell(claim(), [Delta(1, 4, " and on")])
    await told.send_the_rest(PATIENCE)
    assert await text_of(redis) == "next and on"


async def test_the_text_of_a_message_whose_end_was_lost_goes(redis: Redis) -> None:
    flaky = Flaky(redis)
    told = Telling(flaky)
    told.tell(claim(), [Delta(0, 0, "one ")])
    await told.send_the_rest(PATIENCE)
    flaky.failures = ["before"]
    told.tell(claim(), [event(1, "message_end", number=0)])
    await told.send_the_rest(PATIENCE)
    assert await text_of(redis) == "one "
    told.tell(claim(), [event(2)])
    await told.send_the_rest(PATIENCE)

    assert await text_of(redis) is None


async def test_a_full_redis_passes_lines_on_and_keeps_no_text(redis: Redis) -> None:
    async with following(redis, claim().fence.session_id) as listener:
        told = Telling(Publisher(redis))
        await redis.config_set("maxmemory", 1)
        try:
            told.tell(claim(), [event(1), Delta(0, 0, "one ")])
            told.tell(claim(), [Delta(0, 4, "two")])
            await told.send_the_rest(PATIENCE)
            assert numbers(await heard(listener, 3)) == [1, None, None]
            assert await text_of(redis) is None
        finally:
            await redis.config_set("maxmemory", 0)
        told.tell(claim(), [Delta(0, 7, "three")])
        await told.send_the_rest(PATIENCE)
        assert await text_of(redis) is None
        told.tell(claim(), [Delta(1, 0, "next")])
        await told.send_the_rest(PATIENCE)
        assert await text_of(redis) == "next"


class Flaky(Publisher):
    """A publisher that fails as its list of failures says: before it has told, or after."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis)
        self.failures: list[str] = []

    async def attempts(self, batch: Sequence[AttemptNews]) -> list[bool]:
        failure = self.failures.pop(0) if self.failures else ""
        if failure == "before":
            raise QueueUnavailable("away")
        kept = await super().attempts(batch)
        if failure == "after":
            raise QueueUnavailable("no answer came")
        return kept


@pytest.mark.parametrize("seed", range(12))
async def test_the_text_so_far_has_no_holes(redis: Redis, seed: int) -> None:
    choice = random.Random(seed)
    flaky = Flaky(redis)
    told = Telling(flaky)
    message, text, whole = 0, "", 0
    texts: dict[int, str] = {}
    for seq in range(1, 150):
        entries: list[Event | Delta] = []
        for _ in range(choice.randint(1, 3)):
            if text and choice.random() < 0.15:
                entries.append(event(seq, "message_end", number=message))
                message, text = message + 1, ""
            piece = f"{choice.randint(0, 99)}\n"
            entries.append(Delta(message, len(text), piece))
            texts[message] = text = text + piece
        told.tell(claim(), entries)
        if choice.random() < 0.6:
            flaky.failures = choice.choices(["", "", "", "before", "after"], k=1)
            await told.send_the_rest(PATIENCE)
            flaky.failures = []
            line = await text_so_far(redis, TASK, 1)
            if line is not None:
                frame = loads(line.frame)
                assert texts[frame["message"]].startswith(frame["delta"])
                whole += frame["delta"] == text
    assert whole > 10


async def test_news_that_wait_are_told_at_the_end(redis: Redis) -> None:
    async with following(redis, claim().fence.session_id) as listener:
        made = Telling(Publisher(redis))
        async with sending(made):
            pass
        for seq in range(1, 300):
            made.tell(claim(), [event(seq)])
        await within(made.send_the_rest(PATIENCE))
        assert numbers(await heard(listener, 299)) == list(range(1, 300))


async def test_the_end_does_not_wait_for_a_silent_redis(redis_url: str) -> None:
    async with SlowLink(redis_url).running() as link:
        far = client(link.url)
        link.fall_silent()
        made = Telling(Publisher(far))
        made.tell(claim(), [event(1)])
        await within(made.send_the_rest(0.3))
        await far.aclose()


class Swallowing(Publisher):
    """A publisher that does not end at the first cancellation: redis-py's may not on 3.11."""

    async def attempts(self, batch: Sequence[AttemptNews]) -> list[bool]:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()
        raise AssertionError


async def test_the_end_does_not_wait_for_one_that_swallows_its_cancellation(redis: Redis) -> None:
    made = Telling(Swallowing(redis))
    made.tell(claim(), [event(1)])

    await within(made.send_the_rest(0.01))


async def test_an_end_while_news_are_on_their_way(redis_url: str) -> None:
    async with SlowLink(redis_url).running() as link:
        far = client(link.url)
        link.delay = 0.05
        for pause in range(15):
            made = Telling(Publisher(far))
            task = asyncio.create_task(made.send_for_ever())
            for seq in range(1, 400):
                made.tell(claim(), [event(seq)])
            await asyncio.sleep(pause * 0.004)
            await within(end_all([task]))
            await within(made.send_the_rest(PATIENCE))
        await far.aclose()
