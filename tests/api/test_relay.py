"""The relay under faults: whatever breaks between, each client sees each event exactly once."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from api.gateway import Gateway
from api.relay import View
from deploy.local.valkey import EmbeddedValkey
from shared.encoding import loads
from shared.events import Line, text_key
from shared.follow import Subscription
from shared.records import Claim, NewEvent
from shared.settings import Settings
from shared.store.database import Database
from tests.api.clients import TERMINAL, Client
from tests.api.conftest import serving
from tests.api.worker import FakeWorker
from tests.clients import http_client
from tests.waiting import until


async def work(worker: FakeWorker, session_id: str, events: int, go_on: asyncio.Event) -> None:
    """A task that gives many events with text between them, as fast as the test lets it."""
    claim = await worker.start(session_id)
    for number in range(events):
        await worker.stream(claim, number, 0, "Some ")
        await worker.stream(claim, number, 5, "text.")
        await worker.write(claim, NewEvent("message_end", {"message": {"number": number}}))
        if number == events // 2:
            await go_on.wait()
    await worker.end(claim, "cancelled")


async def follow_with_drops(
    client: Client, session_id: str, drops: int, seed: int, enough: asyncio.Event
) -> list[dict[str, Any]]:
    """All numbered frames that a client collects which loses its connection again and again."""
    chance = random.Random(seed)
    frames: list[dict[str, Any]] = []
    while True:
        after = frames[-1]["seq"] if frames else 0
        patience = chance.randint(1, 12) if drops else 10**6
        async with client.socket(session_id, after=after) as socket:
            for _ in range(patience):
                frame = await socket.receive()
                if "seq" in frame:
                    frames.append(frame)
                if frame["type"] in TERMINAL:
                    return frames
            socket.connection.transport.abort()  # as a phone does in a tunnel
        drops -= 1
        if drops == 0:
            enough.set()


async def test_a_client_that_drops_20_times_sees_each_event_once(
    client: Client, worker: FakeWorker
) -> None:
    session = await client.session()
    dropped = asyncio.Event()
    working = asyncio.create_task(work(worker, session["id"], 300, dropped))
    frames = await follow_with_drops(client, session["id"], 20, seed=7, enough=dropped)
    await working

    assert [frame["seq"] for frame in frames] == list(range(1, 304))
    assert frames == await client.log(session["id"])


async def test_two_sockets_of_a_session_see_the_same(client: Client, worker: FakeWorker) -> None:
    session = await client.session()
    done = asyncio.Event()
    done.set()
    async with (
        client.socket(session["id"], after=0) as one,
        client.socket(session["id"], after=0) as other,
    ):
        # Who still reads the log when a message ends has its text from there, and no pieces.
        first, second = await one.until("task_queued"), await other.until("task_queued")
        await work(worker, session["id"], 20, done)
        first += await one.until_end()
        second += await other.until_end()

    assert first == second
    assert [frame["type"] for frame in first].count("message_update") == 40


async def test_a_killed_redis_loses_no_event(
    frail: Settings, own_valkey: EmbeddedValkey, db: Database
) -> None:
    killed = asyncio.Event()
    async with (
        serving(frail) as url,
        http_client(url) as http,
        FakeWorker.connected(frail, db) as worker,
    ):
        client = Client(http, url)
        session = await client.session()
        async with client.socket(session["id"], after=0) as socket:
            await socket.joined()
            working = asyncio.create_task(work(worker, session["id"], 40, killed))
            frames = [*socket.early, *await socket.until("message_end")]
            await asyncio.to_thread(own_valkey.kill)
            killed.set()
            await working
            await asyncio.to_thread(own_valkey.start)
            frames += await socket.until_end()
            numbers = [frame["seq"] for frame in frames if "seq" in frame]

            # And what comes after is pushed again, not only found by comparing.
            await client.act(session["id"])
            await worker.answer(session["id"])
            again = await socket.until_end()

    assert numbers == list(range(1, 44))
    assert [frame["seq"] for frame in again if "seq" in frame] == list(range(44, 49))


async def test_a_request_does_not_wait_for_a_dead_redis(
    frail: Settings, own_valkey: EmbeddedValkey, db: Database
) -> None:
    async with (
        serving(frail) as url,
        http_client(url) as http,
        FakeWorker.connected(frail, db) as worker,
    ):
        client = Client(http, url)
        session = await client.session()
        own_valkey.kill()
        began = asyncio.get_running_loop().time()
        for number in range(20):
            await client.act(session["id"], text=f"{number}")
        took = asyncio.get_running_loop().time() - began
        async with client.socket(session["id"], after=0) as socket:
            frames = [await socket.receive() for _ in range(21)]
            claim = await worker.start(session["id"])
            await worker.end(claim, "cancelled")
            frames += await socket.until_end()
        own_valkey.start()

    assert took < 20  # a Redis that is waited for would cost each of them seconds
    assert [frame["seq"] for frame in frames] == list(range(1, 24))


async def test_a_frozen_redis_holds_nobody_up(
    frail: Settings, own_valkey: EmbeddedValkey, db: Database
) -> None:
    async with serving(frail) as url, http_client(url) as http:
        client = Client(http, url)
        session = await client.session()
        own_valkey.signal(signal.SIGSTOP)
        began = asyncio.get_running_loop().time()
        for number in range(20):
            await client.act(session["id"], text=f"{number}")
        took = asyncio.get_running_loop().time() - began
        own_valkey.signal(signal.SIGCONT)

    assert took < 20  # a Redis that is waited for would cost each of them seconds


async def test_1000_doubled_actions_become_1000_tasks(client: Client) -> None:
    session = await client.session()

    async def send_all(order: int) -> dict[str, str]:
        names = [f"a{number}" for number in range(1000)]
        random.Random(order).shuffle(names)
        acks: dict[str, str] = {}
        async with client.socket(session["id"], after=0) as socket:

            async def send() -> None:
                for name in names:
                    action = {"type": "say", "text": name}
                    await socket.send({"type": "action", "id": name, "action": action})

            sending = asyncio.create_task(send())
            while len(acks) < len(names):
                frame = await socket.receive()
                if frame["type"] == "ack":
                    acks[frame["id"]] = frame["task_id"]
            await sending
        return acks

    one, other = await asyncio.gather(send_all(1), send_all(2))
    log = await client.log(session["id"]) + await client.log(session["id"], after=1000)

    assert one == other
    assert len(set(one.values())) == 1000
    assert [event["seq"] for event in log] == list(range(1, 1002))
    assert {event["data"]["client_action_id"] for event in log[1:]} == set(one)


async def test_listeners_that_come_and_go_leave_one_that_hears(
    client: Client, worker: FakeWorker
) -> None:
    session = await client.session()
    for _ in range(30):
        async with client.socket(session["id"], after=0) as socket:
            await socket.joined()
    async with client.socket(session["id"], after=1) as socket:
        await socket.joined()
        claim = await worker.start(session["id"])
        await worker.stream(claim, 0, 0, "Pushed")
        frames = await socket.until("message_update")

    assert [frame["type"] for frame in frames] == ["task_started", "message_update"]


@asynccontextmanager
async def viewing(
    settings: Settings, client: Client, worker: FakeWorker
) -> AsyncIterator[tuple[View, Subscription, Claim]]:
    """A client's view of a session whose first task has begun; it has not joined yet, though its
    subscription stands."""
    session = UUID((await client.session())["id"])
    parts = Gateway.from_settings(settings)
    async with parts.running(), parts.follower.follow(session) as subscription:
        claim = await worker.start(str(session))
        yield View(parts, "local", session, subscription), subscription, claim


async def arrived(subscription: Subscription, count: int) -> None:
    """Wait until lines have come, and leave them where they are."""
    await until(lambda: len(subscription._lines) >= count)


def shown(lines: Any) -> list[Any]:
    """Deltas as (message, offset, text), events as their types."""
    frames = [loads(line.frame) for line in lines]
    return [
        (frame["message"], frame["offset"], frame["delta"])
        if frame["type"] == "message_update"
        else frame["type"]
        for frame in frames
    ]


async def come(view: View) -> list[Any]:
    """All that the view has for its client now."""
    lines: list[Line] = []
    while more := await view.next_lines():
        lines += more
    return shown(lines)


async def test_a_late_client_gets_each_piece_of_text_once(
    settings: Settings, client: Client, worker: FakeWorker
) -> None:
    async with viewing(settings, client, worker) as (view, subscription, claim):
        await worker.stream(claim, 0, 0, "Some ")
        await worker.stream(claim, 0, 5, "text")
        await arrived(subscription, 3)
        await view.join(None)
        first = await come(view)
        await worker.stream(claim, 0, 9, " and")
        await arrived(subscription, 1)
        second = await come(view)
        await worker.stream(claim, 0, 13, " more")
        await arrived(subscription, 1)
        subscription.mark_stale()  # that piece is lost
        third = await come(view)
        subscription.mark_stale()
        nothing = await come(view)
        await worker.stream(claim, 0, 18, ".")
        await worker.stream(claim, 1, 0, "Anew")
        await arrived(subscription, 2)
        last = await come(view)

    assert first == [(0, 0, "Some text")]
    assert second == [(0, 9, " and")]
    assert third == [(0, 13, " more")]
    assert nothing == []
    assert last == [(0, 18, "."), (1, 0, "Anew")]


async def test_a_text_whose_beginning_is_gone_waits_for_its_messages_end(
    settings: Settings, client: Client, worker: FakeWorker
) -> None:
    async with viewing(settings, client, worker) as (view, subscription, claim):
        await worker.stream(claim, 0, 0, "Some ")
        await arrived(subscription, 2)
        await worker.publisher._redis.delete(text_key(claim.task_id, claim.attempt))
        subscription.mark_stale()
        await view.join(None)
        await worker.stream(claim, 0, 5, "text.")
        await worker.write(claim, NewEvent("message_end", {"message": {}}))
        await worker.stream(claim, 1, 0, "Anew")
        await arrived(subscription, 3)
        frames = await come(view)

    assert frames == ["message_end", (1, 0, "Anew")]


async def test_the_text_so_far_comes_behind_what_began_its_message(
    settings: Settings, client: Client, worker: FakeWorker
) -> None:
    async with viewing(settings, client, worker) as (view, subscription, claim):
        await view.join(None)
        await worker.write(claim, NewEvent("message_start", {"message": {}}))
        await worker.stream(claim, 0, 0, "Some ")
        await arrived(subscription, 3)
        frames = await come(view)

    assert frames == ["message_start", (0, 0, "Some ")]
