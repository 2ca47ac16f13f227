"""Turns within one worker whose slots are scarce."""

import asyncio
import threading
from uuid import UUID

import pytest

from shared.encoding import loads
from shared.levels import FIRST, key_of
from shared.queue import Hints, hint_of
from shared.redis_pool import connect_redis
from shared.store.database import Database
from tests.shared.sessions import new_session
from tests.shared.sessions import say as accept
from tests.waiting import PATIENCE, until, within
from tests.worker.hosts import Flag, Hosts, echo
from worker.agents import Answer, RunningTask


@pytest.fixture(autouse=True)
def patience(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stands still takes no session away, and does not end what is scarce."""
    hosts.settings = hosts.settings.model_copy(update={"lease_seconds": 300.0})
    monkeypatch.setattr("worker.slots._SCARCE_SECONDS", PATIENCE)
    monkeypatch.setattr("worker.host._EXCHANGE_SECONDS", PATIENCE)


class OneByOne:
    """An agent whose runs begin and end as the test says; it tells in which order they came."""

    def __init__(self) -> None:
        self.order: list[UUID] = []
        self.go: dict[int, Flag] = {}

    def nth(self, number: int) -> Flag:
        return self.go.setdefault(number, Flag())

    async def run(self, task: RunningTask) -> Answer:
        self.order.append(task.session_id)
        await self.nth(len(self.order)).wait()
        return await echo(task)

    async def begun(self, count: int) -> None:
        await until(lambda: len(self.order) >= count)


async def test_a_hint_that_waited_gives_way_to_a_better_one(hosts: Hosts, db: Database) -> None:
    agent = OneByOne()
    first, held, better = [await new_session(db, user) for user in ("a", "a", "b")]
    redis = connect_redis(hosts.settings)
    host = hosts.start(agent.run, max_in_flight=1)
    host.submit(first)
    await agent.begun(1)
    waiting = asyncio.create_task(asyncio.to_thread(host.submit, held, 1))
    await until(lambda: host._slots.wanted)
    await Hints(hosts.settings, redis).send([better])
    agent.nth(1).set()
    await within(waiting)
    await agent.begun(2)

    assert agent.order == [first, better]
    given_back = await redis.rpop(key_of(hosts.settings.queue, 1))
    assert isinstance(given_back, bytes)
    assert hint_of(loads(given_back)) == held
    agent.nth(2).set()
    await redis.aclose()


async def test_a_session_with_more_goes_behind_its_users_others_when_slots_are_wanted(
    hosts: Hosts, db: Database
) -> None:
    agent = OneByOne()
    busy, other, waits = [await new_session(db, user) for user in ("a", "a", "b")]
    await accept(db, busy, user="a")
    redis = connect_redis(hosts.settings)
    host = hosts.start(agent.run, max_in_flight=1)
    host.submit(busy)
    await agent.begun(1)
    waiting = asyncio.create_task(asyncio.to_thread(host.submit, waits))
    await until(lambda: host._slots.wanted)
    agent.nth(1).set()
    await within(waiting)
    await agent.begun(2)

    assert agent.order == [busy, waits]
    hints = {}
    for level in (FIRST, 1):
        message = await redis.rpop(key_of(hosts.settings.queue, level))
        assert isinstance(message, bytes)
        hints[level] = hint_of(loads(message))
    assert hints == {FIRST: other, 1: busy}
    agent.nth(2).set()
    await redis.aclose()


async def test_a_session_goes_on_while_nobody_waits(hosts: Hosts, db: Database) -> None:
    agent = OneByOne()
    busy, other = [await new_session(db, user) for user in ("a", "b")]
    await accept(db, busy, user="a")
    host = hosts.start(agent.run, max_in_flight=1)
    host.submit(busy)
    for number in (1, 2):
        await agent.begun(number)
        agent.nth(number).set()
    agent.nth(3).set()
    await within(asyncio.to_thread(host.submit, other))
    await agent.begun(3)

    assert agent.order == [busy, busy, other]


async def test_hints_of_a_session_that_runs_here_need_no_slot(hosts: Hosts, db: Database) -> None:
    agent = OneByOne()
    session = await new_session(db)
    host = hosts.start(agent.run, max_in_flight=1)
    host.submit(session)
    await agent.begun(1)
    for level in range(5):
        await within(asyncio.to_thread(host.submit, session, level))
    await accept(db, session)
    agent.nth(1).set()
    agent.nth(2).set()

    await agent.begun(2)


async def test_nor_do_hints_of_one_that_is_on_its_way_to_the_loop(
    hosts: Hosts, db: Database
) -> None:
    """It would wait for a slot, and get the one that its own session gives to others."""
    agent = OneByOne()
    session = await new_session(db)
    host = hosts.start(agent.run, max_in_flight=1)
    busy = threading.Event()
    host._call(busy.wait)  # the loop has something else to do
    try:
        for _ in range(3):
            await within(asyncio.to_thread(host.submit, session))
    finally:
        busy.set()
    await agent.begun(1)
    agent.nth(1).set()


async def test_without_redis_a_hint_that_waited_is_taken_as_it_is(
    hosts: Hosts, db: Database, unused_tcp_port: int
) -> None:
    agent = OneByOne()
    first, held = [await new_session(db, user) for user in ("a", "b")]
    away = f"redis://127.0.0.1:{unused_tcp_port}/0"
    host = hosts.start(agent.run, max_in_flight=1, redis_url=type(hosts.settings.redis_url)(away))
    host.submit(first)
    await agent.begun(1)
    waiting = asyncio.create_task(asyncio.to_thread(host.submit, held, 3))
    await until(lambda: host._slots.wanted)
    agent.nth(1).set()
    await within(waiting)
    await agent.begun(2)

    assert agent.order == [first, held]
    agent.nth(2).set()
