"""Sessions that a worker holds: what their tasks see, where their hints go, and who takes over."""

import asyncio
import gc
import random
import re
import weakref
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from redis.asyncio import Redis
from sqlalchemy import TextClause, text

from agent_core import Message, UserMessage, message_from_dict
from deploy.local.postgres import EmbeddedPostgres
from shared.homes import GONE_SECONDS, Homes
from shared.queue import Hints
from shared.store import sessions
from shared.store.database import Database, Rows
from tests.shared.sessions import ME, new_session
from tests.shared.sessions import say as accept
from tests.shared.tables import empty
from tests.waiting import PATIENCE, until, within
from tests.worker.hosts import Flag, Hosts, say
from worker.agents import Answer, RunningTask, TaskFailed
from worker.host import Host
from worker.narration import tell
from worker.transcript import HISTORY_MESSAGES


@pytest.fixture(scope="session")
def warm_url(postgres_server: EmbeddedPostgres, database_template: str) -> Iterator[str]:
    yield postgres_server.create_database("warm", template=database_template)
    postgres_server.drop_database("warm")


@pytest.fixture
def postgres_url(warm_url: str) -> str:
    empty(warm_url)
    return warm_url


@pytest.fixture(autouse=True)
def patience(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stands still takes no session away, and no worker for one that froze."""
    hosts.settings = hosts.settings.model_copy(update={"lease_seconds": 300.0})
    monkeypatch.setattr("shared.homes.GONE_SECONDS", 2 * PATIENCE)


@pytest.fixture
def soon_gone(patience: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who says nothing is passed over as soon as ever."""
    monkeypatch.setattr("shared.homes.GONE_SECONDS", GONE_SECONDS)


BRANCH = text(
    """
    with recursive branch as (
        select m.no, m.parent, m.message, 1 as depth from messages m join sessions s
            on s.id = m.session_id and m.no = s.head_message where s.id = :s
        union all
        select m.no, m.parent, m.message, b.depth + 1 from branch b join messages m
            on m.session_id = :s and m.no = b.parent
        where b.depth < :limit
    )
    select no, message from branch order by no
    """
)

# What another worker's claim does to the lease; it has run out already.
STEAL = text(
    "update sessions set epoch = epoch + 1, lease_token = gen_random_uuid(),"
    " lease_until = clock_timestamp(), ready_at = null where id = :s"
)

UNDO = text("update sessions set head_message = :head where id = :s")

# What a backup of a while ago and the lift after it leave: the same numbers, given out again.
FORGET = text("delete from messages where session_id = :s and no > :head")
LIFT = text(
    "update sessions set head_message = :head, next_message = :head + 1, epoch = epoch + 1000000,"
    " generation = generation + 1 where id = :s"
)


async def branch(db: Database, session: UUID) -> Rows:
    """The newest messages of a session's branch, as the tables have them."""
    return await db.rows(BRANCH, {"s": session, "limit": HISTORY_MESSAGES})


def read(host: Host) -> dict[str, int]:
    """What a host's cache has counted of its claims."""
    found = {
        sample.labels["result"]: int(sample.value)
        for family in host.figures.collect()
        for sample in family.samples
        if sample.name == "fireside_agent_cache_lookups_total"
    }
    return {result: count for result, count in found.items() if count}


async def idle(db: Database, session: UUID) -> None:
    async def is_idle() -> bool:
        return (await sessions.get(db, ME, session)).status == "idle"

    await until(is_idle)


@dataclass
class Witness:
    """An agent that writes down what it is shown, and what the tables say at that moment.

    It runs on the loops of hosts, so it has connections of its own.
    """

    url: str
    shown: list[list[Message]] = field(default_factory=list)
    stood: list[list[Message]] = field(default_factory=list)
    earlier: list[int] = field(default_factory=list)
    attempts: int = 0
    lost: set[UUID] = field(default_factory=set)

    async def run(self, task: RunningTask) -> Answer:
        self.attempts += 1
        rows = await self._run(BRANCH, {"s": task.session_id, "limit": HISTORY_MESSAGES})
        self.stood.append([message_from_dict(message) for _, message in rows])
        self.shown.append(deepcopy(list(task.history)))
        self.earlier.append(task.earlier)
        for message in task.history:
            message.timestamp = -1  # an agent may do what it likes with what is its own
        match str(task.action.get("text", "hello")):
            case "fail":
                tell(task, UserMessage("before it failed"))
                raise TaskFailed("no", "it does")
            case "lose" if task.signal.is_set() is False and not self._lost(task):
                await self._run(STEAL, {"s": task.session_id})
                return say(task, "nobody hears it")
            case "nothing":
                return Answer("", {})
            case words:
                return say(task, words)

    async def _run(self, statement: TextClause, parameters: dict[str, object]) -> list[Any]:
        query = re.sub(r":(\w+)", r"%(\1)s", statement.text)
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            cursor = await connection.execute(query, parameters)
            return await cursor.fetchall() if cursor.description else []

    def _lost(self, task: RunningTask) -> bool:
        """Whether this task has lost an attempt already."""
        was = task.task_id in self.lost
        self.lost.add(task.task_id)
        return was


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["say", "say", "say", "fail", "lose", "nothing", "undo", "restore", "new"]),
        st.integers(0, 1),
    ),
    min_size=4,
    max_size=14,
)


@given(steps=STEPS, seed=st.integers(0, 1 << 16))
@hypothesis(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
async def test_a_task_sees_what_it_would_see_without_a_cache(
    hosts: Hosts, postgres_url: str, db: Database, steps: list[tuple[str, int]], seed: int
) -> None:
    """Two workers, undone turns, a database that was put back, attempts that fail or are lost."""
    witness, chance = Witness(postgres_url), random.Random(seed)
    workers = [hosts.start(witness.run), hosts.start(witness.run)]
    session = await new_session(db)
    await run_to_end(db, workers[0], session)
    for what, number in steps:
        match what:
            case "undo" | "restore":
                await rewind(db, session, chance, forget=what == "restore")
                continue
            case "new":
                await within(asyncio.to_thread(workers[number].drain))
                workers[number] = hosts.start(witness.run)
                continue
        await accept(db, session, what)
        await run_to_end(db, workers[number], session)
    for worker in workers:
        await within(asyncio.to_thread(worker.drain))

    assert witness.shown == witness.stood


async def run_to_end(db: Database, worker: Host, session: UUID) -> None:
    """Run what waits at this worker; once more where an attempt was lost."""

    async def has_ended() -> bool:
        if worker._has_begun(session):
            return False  # a hint that comes just as it ends goes on to the session's home
        if (await sessions.get(db, ME, session)).status == "idle":
            return True
        worker.submit(session)
        return False

    await until(has_ended, 2 * PATIENCE)


async def rewind(db: Database, session: UUID, chance: random.Random, *, forget: bool) -> None:
    """Go back to an earlier message; with `forget`, as a restored backup would have it."""
    rows = await branch(db, session)
    if not rows:
        return
    head = {"s": session, "head": chance.choice(rows).no}
    if forget:
        await db.run(FORGET, head)
    await db.run(LIFT if forget else UNDO, head)


# -- hits and misses ----------------------------------------------------------------------------


async def test_a_session_that_stays_reads_no_transcript(
    hosts: Hosts, postgres_url: str, db: Database
) -> None:
    witness = Witness(postgres_url)
    host = hosts.start(witness.run)
    session = await new_session(db)
    for word in ("one", "two", "three"):
        await run_to_end(db, host, session)
        await accept(db, session, word)
    await run_to_end(db, host, session)

    assert read(host) == {"hit": 3}
    assert [len(shown) for shown in witness.shown] == [0, 2, 4, 6]


async def test_what_another_worker_has_added_is_all_that_is_read(
    hosts: Hosts, postgres_url: str, db: Database
) -> None:
    witness = Witness(postgres_url)
    one, other = hosts.start(witness.run), hosts.start(witness.run)
    session = await new_session(db)
    for number, host in enumerate((one, other, one, one)):
        await run_to_end(db, host, session)
        await accept(db, session, str(number))

    assert (read(one), read(other)) == ({"part": 1, "hit": 1}, {"miss": 1})
    assert witness.shown == witness.stood


@pytest.mark.parametrize("put_back", [[FORGET, LIFT], [UNDO]])
async def test_numbers_that_are_of_other_messages_now_are_no_hit(
    hosts: Hosts, postgres_url: str, db: Database, put_back: list[TextClause]
) -> None:
    """A backup is put back, or a turn undone, and another worker goes on from there."""
    witness = Witness(postgres_url)
    one, other = hosts.start(witness.run), hosts.start(witness.run)
    session = await new_session(db)
    for host, words in ((one, "a"), (one, "b"), (other, "c"), (one, "d")):
        await accept(db, session, words)
        await run_to_end(db, host, session)
        if words == "b":
            for statement in put_back:
                await db.run(statement, {"s": session, "head": 4})

    assert read(one) == {"hit": 2, "miss": 1}
    assert witness.shown == witness.stood


@pytest.mark.parametrize("action", ["lose", "fail"])
async def test_an_attempt_that_is_lost_leaves_nothing_behind(
    hosts: Hosts, postgres_url: str, db: Database, action: str
) -> None:
    witness = Witness(postgres_url)
    host = hosts.start(witness.run)
    session = await new_session(db)
    await run_to_end(db, host, session)
    await accept(db, session, action)
    await run_to_end(db, host, session)
    await accept(db, session, "on")
    await run_to_end(db, host, session)

    assert read(host) == ({"hit": 2, "miss": 1} if action == "lose" else {"hit": 2})
    assert witness.shown == witness.stood


async def test_without_a_cache_all_is_as_it_was(
    hosts: Hosts, postgres_url: str, db: Database
) -> None:
    witness = Witness(postgres_url)
    host = hosts.start(witness.run, cache_agents=0)
    session = await new_session(db)
    for word in ("one", "two"):
        await accept(db, session, word)
    await run_to_end(db, host, session)

    assert read(host) == {"miss": 2}
    assert witness.shown == witness.stood


async def test_a_task_that_has_ended_leaves_nothing_to_the_garbage_collector(
    hosts: Hosts, db: Database
) -> None:
    """All that a task had would else live until a pass over everything, which stops the loop."""
    runs: list[weakref.ref[object]] = []

    async def run(task: RunningTask) -> Answer:
        runs.append(weakref.ref(task.journal))
        return say(task, "bye")

    host = hosts.start(run)
    session = await new_session(db)
    gc.disable()
    try:
        await run_to_end(db, host, session)

        async def is_gone() -> bool:
            return [one() for one in runs] == [None]

        await until(is_gone)
    finally:
        gc.enable()


# -- large sessions -----------------------------------------------------------------------------


async def grow(db: Database, session: UUID, messages: int, characters: int = 100) -> None:
    """Put messages of an earlier time behind what a session has."""
    await db.run(
        text(
            """
            with grown as (
                update sessions set next_message = next_message + :n,
                    head_message = next_message + :n - 1
                where id = :s returning next_message - :n as first, head_message as head
            )
            insert into messages (session_id, no, parent, task_id, message)
            select :s, no, nullif(no - 1, 0), (select id from tasks where session_id = :s limit 1),
                jsonb_build_object('role', 'user', 'timestamp', no,
                                   'content', repeat('x', :characters))
            from grown, generate_series(first, head) as no
            """
        ),
        {"s": session, "n": messages, "characters": characters},
    )


async def test_a_session_of_ten_thousand_messages_costs_no_more_than_its_newest(
    hosts: Hosts, postgres_url: str, db: Database
) -> None:
    witness = Witness(postgres_url)
    host = hosts.start(witness.run)
    session = await new_session(db)
    await run_to_end(db, host, session)
    await grow(db, session, 10_000)
    for word in ("one", "two"):
        await accept(db, session, word)
        await run_to_end(db, host, session)

    assert [len(shown) for shown in witness.shown] == [0, HISTORY_MESSAGES, HISTORY_MESSAGES]
    assert witness.earlier == [0, 10_002 - HISTORY_MESSAGES, 10_004 - HISTORY_MESSAGES]
    assert read(host) == {"part": 1, "hit": 1} or read(host) == {"miss": 1, "hit": 1}
    assert witness.shown == witness.stood


async def test_a_message_of_sixty_kilobytes_is_held_as_any_other(
    hosts: Hosts, postgres_url: str, db: Database
) -> None:
    witness = Witness(postgres_url)
    host = hosts.start(witness.run)
    session = await new_session(db)
    words = "ü" * 30_000
    for word in (words, "on"):
        await accept(db, session, word)
    await run_to_end(db, host, session)
    await accept(db, session, "on")
    await run_to_end(db, host, session)

    assert read(host) == {"hit": 3}
    assert witness.shown == witness.stood


async def test_a_session_too_large_for_the_cache_is_read_each_time(
    hosts: Hosts, postgres_url: str, db: Database
) -> None:
    witness = Witness(postgres_url)
    host = hosts.start(witness.run, cache_bytes=100_000)
    session = await new_session(db)
    for word in ("x" * 16_000, "on", "on"):
        await accept(db, session, word)
    await run_to_end(db, host, session)

    assert read(host) == {"hit": 1, "miss": 2}
    assert witness.shown == witness.stood


# -- homes --------------------------------------------------------------------------------------


async def announced(redis: Redis, count: int) -> None:
    """Wait until so many workers say that they have room."""

    async def are_there() -> bool:
        return int(await redis.zcard("fireside:homes:fireside")) == count

    await until(are_there)


@pytest.fixture
def hints(hosts: Hosts, redis: Redis) -> Hints:
    return Hints(hosts.settings, redis)


async def test_a_sessions_hints_go_to_one_worker(
    hosts: Hosts, postgres_url: str, db: Database, redis: Redis, hints: Hints
) -> None:
    witness = Witness(postgres_url)
    workers = [hosts.start(witness.run) for _ in range(3)]
    await announced(redis, 3)
    many = [await new_session(db) for _ in range(12)]
    for turn in range(4):
        await hints.send(many, home=True)
        for session in many:
            await idle(db, session)
            await accept(db, session, str(turn))

    counts = [read(worker) for worker in workers]
    assert sum(one.get("hit", 0) for one in counts) == 36
    assert sum(sum(one.values()) for one in counts) == 36
    assert sum(bool(one) for one in counts) > 1
    assert await redis.exists("fireside") == 0


async def test_without_a_worker_that_says_it_has_room_the_queue_has_the_hint(
    db: Database, redis: Redis, hints: Hints
) -> None:
    session = await new_session(db)
    await hints.send([session], home=True)

    assert await redis.llen("fireside") == 1


async def test_what_nobody_hears_is_anyones(redis: Redis, hints: Hints, db: Database) -> None:
    """A worker that died a moment ago is announced still."""
    session = await new_session(db)
    await Homes(redis, "fireside").announce("gone")
    await hints.send([session], {session: 3}, home=True)

    assert await redis.llen("fireside\x06\x163") == 1


async def swallowed(homes: Homes, session: UUID) -> None:
    """Send a hint to a worker that listens, in the short time after it said that it is there."""

    async def is_sent() -> bool:
        await homes.announce("frozen")
        return await homes.send([(session, 0)]) == []

    await until(is_sent)


@pytest.mark.usefixtures("soon_gone")
async def test_who_says_nothing_for_a_second_is_passed_over(redis: Redis) -> None:
    homes, session = Homes(redis, "fireside"), UUID(int=1)
    async with redis.pubsub() as frozen:
        await frozen.subscribe(homes.channel("frozen"))
        await swallowed(homes, session)

        async def passed_over() -> bool:
            return await homes.send([(session, 0)]) == [(session, 0)]

        await until(passed_over, 10)


async def test_a_worker_that_is_full_leaves_a_hint_to_others_at_once(
    hosts: Hosts, db: Database, redis: Redis, hints: Hints
) -> None:
    began, go = Flag(), Flag()

    async def waiting(task: RunningTask) -> Answer:
        began.set()
        await go.wait()
        return say(task, "at last")

    hosts.start(waiting, max_in_flight=1)
    await announced(redis, 1)
    one, other = await new_session(db), await new_session(db)
    await hints.send([one], home=True)
    await within(began.wait())
    # As whoever sends it does that has read a moment ago that there is room.
    (home,) = await redis.pubsub_channels("fireside:homes:*")
    assert await redis.publish(home, f"2 {other}") == 1

    async def is_in_the_queue() -> bool:
        return int(await redis.llen("fireside\x06\x162")) == 1

    await until(is_in_the_queue)
    await announced(redis, 0)
    go.set()
    await idle(db, one)
    await announced(redis, 1)


async def test_a_worker_that_stops_is_nobodys_home(
    hosts: Hosts, postgres_url: str, db: Database, redis: Redis, hints: Hints
) -> None:
    witness = Witness(postgres_url)
    host = hosts.start(witness.run)
    await announced(redis, 1)
    await within(asyncio.to_thread(host.drain))
    # Were it still there, the next worker to look would take it for one that froze.
    assert await redis.zcard("fireside:homes:fireside") == 0
    session = await new_session(db)
    await hints.send([session], home=True)

    assert await redis.llen("fireside") == 1


async def test_a_worker_without_a_cache_is_nobodys_home(
    hosts: Hosts, postgres_url: str, db: Database, redis: Redis, hints: Hints
) -> None:
    witness = Witness(postgres_url)
    hosts.start(witness.run, cache_agents=0)
    hosts.start(witness.run)
    await announced(redis, 1)

    assert await redis.zcard("fireside:homes:fireside") == 1


@pytest.mark.parametrize("nonsense", [b"", b"0", b"x y", b"0 no", b"\xff\xff", b"99999999999 1"])
async def test_nonsense_on_a_workers_channel_does_nothing(
    hosts: Hosts, postgres_url: str, db: Database, redis: Redis, hints: Hints, nonsense: bytes
) -> None:
    witness = Witness(postgres_url)
    hosts.start(witness.run)
    await announced(redis, 1)
    for channel in await redis.pubsub_channels("fireside:homes:*"):
        await redis.publish(channel, nonsense)
    session = await new_session(db)
    await hints.send([session], home=True)
    await idle(db, session)

    assert witness.attempts == 1


async def test_redis_comes_back_and_so_do_the_homes(
    hosts: Hosts, postgres_url: str, db: Database, redis: Redis, hints: Hints
) -> None:
    witness = Witness(postgres_url)
    hosts.start(witness.run)
    await announced(redis, 1)
    await redis.client_kill_filter(_type="pubsub", skipme=True)
    await redis.flushall()
    session = await new_session(db)

    async def is_heard() -> bool:
        return not await Homes(redis, "fireside").send([(session, 0)])

    await until(is_heard)
    await idle(db, session)
    assert witness.attempts == 1


@pytest.mark.usefixtures("soon_gone")
async def test_what_a_frozen_worker_has_swallowed_is_taken_over_within_a_second(
    hosts: Hosts, postgres_url: str, db: Database, redis: Redis, hints: Hints
) -> None:
    witness = Witness(postgres_url)
    homes = Homes(redis, "fireside")
    async with redis.pubsub() as frozen:
        await frozen.subscribe(homes.channel("frozen"))
        session = await new_session(db)
        await swallowed(homes, session)
    hosts.start(witness.run, sweep_seconds=60.0)

    async def is_hinted_again() -> bool:
        return int(await redis.llen("fireside")) == 1

    await until(is_hinted_again)
