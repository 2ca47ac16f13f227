"""Following sessions, on a real Redis that is killed, frozen and restarted."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from deploy.local.valkey import EmbeddedValkey
from shared.events import Line, channel, encode_lines
from shared.follow import MAX_WAITING, MAX_WAITING_BYTES, Follower, Subscription
from tests.waiting import PATIENCE, until


@asynccontextmanager
async def running(redis: Redis, ping_seconds: float = 5.0) -> AsyncIterator[Follower]:
    follower = Follower(redis, ping_seconds=ping_seconds)
    await follower.start()
    try:
        yield follower
    finally:
        await follower.stop()


@pytest.fixture
async def follower(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Follower]:
    """It begins only when the subscription stands: Redis is there, and answers some time."""
    monkeypatch.setattr("shared.follow._CONFIRM_SECONDS", PATIENCE)
    async with running(redis) as made:
        yield made


def line(number: int) -> Line:
    return Line(number, "task", 1, b'{"n":%d}' % number)


async def publish(redis: Redis, session: UUID, *lines: Line) -> int:
    """Publish, and give the number of connections that got it."""
    return int(await redis.publish(channel(session), encode_lines(lines)))


async def taken(subscription: Subscription, count: int) -> list[Line]:
    """The next lines, waited for; none of them lost."""
    lines: list[Line] = []
    while len(lines) < count:
        assert await subscription.wait(PATIENCE), f"only {lines} came"
        assert not subscription.take_stale()
        lines += subscription.take()
    return lines


async def told_of_a_loss(subscription: Subscription) -> None:
    while not subscription.take_stale():
        assert await subscription.wait(PATIENCE), "nothing came"
        subscription.take()


def is_confirmed(follower: Follower, session: UUID) -> bool:
    """Whether Redis has confirmed the subscription, and nobody waited in vain for that."""
    return follower._followed[session].standing is None


async def subscribed(redis: Redis) -> list[bytes | str]:
    return list(await redis.pubsub_channels())


async def pubsub_connections(redis: Redis) -> int:
    return len(await redis.client_list(_type="pubsub"))


async def test_lines_come_in_order(redis: Redis, follower: Follower) -> None:
    session = uuid4()
    async with follower.follow(session) as subscription:
        assert await publish(redis, session, line(1), line(2)) == 1
        await publish(redis, session, Line(None, "task", 1, b'{"delta":"x"}'))
        await publish(redis, uuid4(), line(9))
        await publish(redis, session, line(3))

        assert await taken(subscription, 4) == [
            line(1),
            line(2),
            Line(None, "task", 1, b'{"delta":"x"}'),
            line(3),
        ]
        assert subscription.take() == []
        assert await subscription.wait(0.01) is False


async def test_what_is_no_line_is_left_out(redis: Redis, follower: Follower) -> None:
    session = uuid4()
    async with follower.follow(session) as subscription:
        for payload in (b"", b"\xff", b"no line", b"\n\n", encode_lines([line(1)]) + b"\nno line"):
            await redis.publish(channel(session), payload)
        await redis.publish("fireside:session:no-id", "x")

        assert await taken(subscription, 1) == [line(1)]


async def test_many_listeners_share_one_connection(redis: Redis, follower: Follower) -> None:
    sessions = [uuid4() for _ in range(10)]
    async with AsyncExitStack() as stack:
        subscriptions = await asyncio.gather(
            *(
                stack.enter_async_context(follower.follow(session))
                for session in sessions
                for _ in range(20)
            )
        )

        assert await pubsub_connections(redis) == 1
        assert await redis.pubsub_numsub(*map(channel, sessions)) == [
            (channel(session).encode(), 1) for session in sessions
        ]
        assert sorted(follower.sessions) == sorted(sessions)
        for number, session in enumerate(sessions):
            assert await publish(redis, session, line(number)) == 1
        for number, subscription in enumerate(subscriptions):
            assert await taken(subscription, 1) == [line(number // 20)]

    assert follower.sessions == []

    async def none_left() -> bool:
        return await subscribed(redis) == []

    await until(none_left)


async def test_the_last_listener_goes_while_a_new_one_comes(
    redis: Redis, follower: Follower
) -> None:
    session = uuid4()
    choice = random.Random(3)

    async def come_and_go(number: int) -> None:
        for turn in range(40):
            async with follower.follow(session) as subscription:
                assert is_confirmed(follower, session)
                mine = line(number * 1000 + turn)
                await publish(redis, session, mine)
                while mine not in subscription.take():
                    assert await subscription.wait(PATIENCE), "a line was lost"
                    subscription.take_stale()
            for _ in range(choice.randrange(4)):
                await asyncio.sleep(0)

    await asyncio.gather(*(come_and_go(number) for number in range(3)))

    assert follower.sessions == []


async def test_a_listener_that_comes_right_after_the_last_one_went(
    redis: Redis, follower: Follower
) -> None:
    sessions = [uuid4(), uuid4()]
    for number in range(100):
        session = sessions[number // 2 % 2]
        async with follower.follow(session) as subscription:
            assert is_confirmed(follower, session)
            assert await publish(redis, session, line(number)) == 1
            while line(number) not in subscription.take():
                assert await subscription.wait(PATIENCE), "a line was lost"


async def test_a_listener_that_is_cancelled_is_gone(redis: Redis, follower: Follower) -> None:
    async def listen() -> None:
        async with follower.follow(uuid4()) as subscription:
            await subscription.wait(60)

    tasks = [asyncio.create_task(listen()) for _ in range(20)]
    for number, task in enumerate(tasks):
        if number % 4 == 0:
            await asyncio.sleep(0)
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    assert follower.sessions == []

    async def none_left() -> bool:
        return await subscribed(redis) == []

    await until(none_left)


async def test_a_listener_that_falls_behind_must_read_the_log(
    redis: Redis, follower: Follower
) -> None:
    session = uuid4()
    async with follower.follow(session) as slow, follower.follow(session) as quick:
        lines = [line(number) for number in range(MAX_WAITING)]
        await publish(redis, session, *lines)
        assert await taken(quick, MAX_WAITING) == lines
        await publish(redis, session, line(MAX_WAITING), line(MAX_WAITING + 1))
        assert await taken(quick, 2) == [line(MAX_WAITING), line(MAX_WAITING + 1)]

        assert await slow.wait(PATIENCE)
        assert slow.take_stale() is True
        assert slow.take_stale() is False
        assert slow.take() == [line(MAX_WAITING + 1)]
        await publish(redis, session, line(7))
        assert await taken(slow, 1) == [line(7)]


async def test_a_listener_that_leaves_much_unread_must_read_the_log(
    redis: Redis, follower: Follower
) -> None:
    session = uuid4()
    big = Line(None, "task", 1, b"x" * (MAX_WAITING_BYTES - 1))
    async with follower.follow(session) as slow:
        await publish(redis, session, big, big)
        assert await taken(slow, 2) == [big, big]
        await publish(redis, session, big, big, line(1))

        assert await slow.wait(PATIENCE)
        assert slow.take_stale() is True
        assert slow.take() == []


async def test_the_poll_can_make_listeners_read_the_log(follower: Follower) -> None:
    session = uuid4()
    async with follower.follow(session) as one, follower.follow(uuid4()) as other:
        follower.mark_stale(session)
        follower.mark_stale(uuid4())

        assert await one.wait(0.01) is True
        assert [one.take_stale(), other.take_stale()] == [True, False]


async def test_a_connection_that_is_killed(redis: Redis, follower: Follower) -> None:
    one, other = uuid4(), uuid4()
    async with follower.follow(one) as first, follower.follow(other) as second:
        for number in range(3):
            assert await redis.client_kill_filter(_type="pubsub") == 1
            for subscription in (first, second):
                await told_of_a_loss(subscription)
            await publish(redis, one, line(number))
            await publish(redis, other, line(number))
            assert await taken(first, 1) == [line(number)]
            assert await taken(second, 1) == [line(number)]
    assert await pubsub_connections(redis) <= 1


async def test_connections_killed_while_listeners_come_and_go(
    redis: Redis, follower: Follower
) -> None:
    sessions = [uuid4() for _ in range(4)]
    choice = random.Random(5)
    over = asyncio.Event()

    async def come_and_go() -> None:
        while not over.is_set():
            async with follower.follow(choice.choice(sessions)) as subscription:
                await subscription.wait(choice.random() * 0.01)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(6):
            tasks.create_task(come_and_go())
        for _ in range(5):

            async def stands() -> bool:
                return await pubsub_connections(redis) == 1

            await until(stands)
            await redis.client_kill_filter(_type="pubsub")
        over.set()

    session = uuid4()
    async with follower.follow(session) as subscription:

        async def only_this() -> bool:
            return await subscribed(redis) == [channel(session).encode()]

        await until(only_this)
        assert await pubsub_connections(redis) == 1
        subscription.take_stale()
        await publish(redis, session, line(1))
        while line(1) not in subscription.take():
            assert await subscription.wait(PATIENCE), "a line was lost"


async def test_redis_is_away_and_comes_back(redis: Redis, valkey_server: EmbeddedValkey) -> None:
    session = uuid4()
    await asyncio.to_thread(valkey_server.kill)
    try:
        async with running(redis) as follower:
            started = time.monotonic()
            async with follower.follow(session) as subscription:
                assert 1.5 < time.monotonic() - started < 15
                assert not subscription.take_stale()
                assert await subscription.wait(0.01) is False

                await asyncio.to_thread(valkey_server.start)

                await told_of_a_loss(subscription)
                assert await publish(redis, session, line(1)) == 1
                assert await taken(subscription, 1) == [line(1)]
    finally:
        if not valkey_server.alive:
            await asyncio.to_thread(valkey_server.start)


async def test_a_restart_of_redis(
    redis: Redis, follower: Follower, valkey_server: EmbeddedValkey
) -> None:
    session = uuid4()
    async with follower.follow(session) as subscription:
        await asyncio.to_thread(valkey_server.restart)

        await told_of_a_loss(subscription)
        async with follower.follow(session) as later:
            await publish(redis, session, line(1))
            assert await taken(subscription, 1) == [line(1)]
            assert await taken(later, 1) == [line(1)]


class Link:
    """A link to Redis that can fall silent without being closed."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 0
        self._pipes: list[asyncio.Task[None]] = []
        self._writers: list[asyncio.StreamWriter] = []
        self.accepted = 0
        self.answers = 0
        """That came by the newest connection."""

    async def start(self, url: str) -> tuple[asyncio.Server, str]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        parts = urlsplit(url)
        return server, url.replace(f":{parts.port}", f":{port}")

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self.answers = 0
        far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        self._writers += [writer, far_writer]
        self._pipes += [
            asyncio.create_task(self._pipe(reader, far_writer, 0)),
            asyncio.create_task(self._pipe(far_reader, writer, 1)),
        ]

    async def _pipe(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: int
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
                self.answers += answers

    def fall_silent(self) -> None:
        """Nothing goes through the connections that stand; new ones work."""
        for pipe in self._pipes:
            pipe.cancel()

    async def close(self, server: asyncio.Server) -> None:
        server.close()
        self.fall_silent()
        await asyncio.gather(*self._pipes, return_exceptions=True)
        for writer in self._writers:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def test_a_link_that_falls_silent_is_given_up(redis: Redis, redis_url: str) -> None:
    link = Link(redis_url)
    server, url = await link.start(redis_url)
    through = Redis.from_url(url)
    session = uuid4()
    async with (
        running(through, ping_seconds=0.1) as follower,
        follower.follow(session) as subscription,
    ):
        # A quiet link is no silent one: it is asked far more often than a silent one is given up
        # after. What a machine that stood still may have cost is made good by the next.
        await until(lambda: link.answers >= 10)
        subscription.take_stale()
        subscription.take()
        before = link.accepted

        link.fall_silent()

        await told_of_a_loss(subscription)
        assert link.accepted > before

        async def goes_on() -> bool:
            await publish(redis, session, line(1))
            return await subscription.wait(0.1) and line(1) in subscription.take()

        await until(goes_on)
    await through.aclose()
    await link.close(server)


async def test_stop_closes_the_connection(redis: Redis) -> None:
    async with running(redis) as follower, follower.follow(uuid4()):
        assert await pubsub_connections(redis) == 1

    async def none_left() -> bool:
        return await pubsub_connections(redis) == 0

    await until(none_left)
