"""A Redis that is slow, silent, full or away: nothing waits for it, and nothing is lost."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import httpx
import psycopg
import pytest
from redis.asyncio import Redis

from deploy.local.fleet import Fleet
from deploy.local.valkey import EmbeddedValkey
from deploy.models.control import ScriptedModel
from tests.acceptance.player import Player, ended
from tests.links import SlowLink
from tests.waiting import until

PLAYERS = 20
QUICK = '[[script: {"chunks": ["one ", "two"], "duration": 0.2}]]'
ACCEPT_SECONDS = 0.5
"""How long accepting an action may take; a commit takes a few milliseconds."""


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    """A server of this test's own, to be treated badly."""
    with EmbeddedValkey(tmp_path / "valkey", durable=False) as server:
        yield server


class Stand:
    """A gateway and two workers whose Redis is at the far end of a link, and players on sockets."""

    def __init__(
        self, fleet: Fleet, valkey: EmbeddedValkey, link: SlowLink, http: httpx.AsyncClient
    ) -> None:
        self.fleet = fleet
        self.valkey = valkey
        self.link = link
        self.http = http
        self.players: list[Player] = []
        self._sockets: list[asyncio.Task[None]] = []

    async def seat(self, players: int) -> None:
        self.players = await asyncio.gather(
            *(Player.begin(self.http, agent="companion") for _ in range(players))
        )
        self._sockets = [asyncio.create_task(self._listen(player)) for player in self.players]
        await self.until_ended([player.opening for player in self.players], 15)

    async def _listen(self, player: Player) -> None:
        async with player.socket() as socket:
            while True:
                player.take(json.loads(await socket.recv()))

    async def act(self, text: str) -> tuple[list[str], float]:
        """Each player acts; the tasks, and the seconds that the slowest answer took."""

        async def timed(player: Player) -> tuple[str, float]:
            began = time.monotonic()
            task = (await player.act({"type": "say", "text": text}))["task_id"]
            return task, time.monotonic() - began

        acted = await asyncio.gather(*map(timed, self.players))
        return [task for task, _ in acted], max(seconds for _, seconds in acted)

    async def until_ended(self, tasks: list[str], seconds: float) -> float:
        """Wait until the open sockets have told that these have ended; how long it took."""
        began = time.monotonic()

        def all_have() -> bool:
            return all(t in ended(p.events) for p, t in zip(self.players, tasks, strict=True))

        await until(all_have, seconds)
        return time.monotonic() - began

    def sockets_stand(self) -> bool:
        return not any(task.done() for task in self._sockets)

    async def leave(self) -> None:
        for task in self._sockets:
            task.cancel()
        await asyncio.gather(*self._sockets, return_exceptions=True)


@pytest.fixture
async def stand(
    tmp_path: Path,
    stories: Path,
    postgres_url: str,
    valkey: EmbeddedValkey,
    scripted_model: ScriptedModel,
) -> AsyncIterator[Stand]:
    async with SlowLink(valkey.url).running() as link:
        with Fleet(
            tmp_path,
            postgres=postgres_url,
            redis=link.url,
            model=scripted_model.url,
            model_path="direct",
            story_folders=str(stories),
            poll_seconds="0.5",
        ) as fleet:
            await asyncio.to_thread(fleet.add_gateway)
            for _ in range(2):
                await asyncio.to_thread(fleet.add_worker)
            async with httpx.AsyncClient(base_url=fleet.url, timeout=60) as http:
                made = Stand(fleet, valkey, link, http)
                await made.seat(PLAYERS)
                yield made
                await made.leave()
            # Their Redis lives on this loop, so they must not end while it is blocked.
            for child in [*fleet.workers, *fleet.gateways]:
                await asyncio.to_thread(child.stop)


Fault: TypeAlias = Callable[[Stand], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def slow(stand: Stand) -> AsyncIterator[None]:
    stand.link.delay = 0.2
    yield
    stand.link.delay = 0.0


@asynccontextmanager
async def very_slow(stand: Stand) -> AsyncIterator[None]:
    stand.link.delay = 2.0
    yield
    stand.link.delay = 0.0


@asynccontextmanager
async def silent(stand: Stand) -> AsyncIterator[None]:
    stand.link.fall_silent()
    yield
    stand.link.speak()


@asynccontextmanager
async def full(stand: Stand) -> AsyncIterator[None]:
    async with Redis.from_url(stand.valkey.url) as redis:
        await redis.config_set("maxmemory", 1)
        yield
        await redis.config_set("maxmemory", 0)


@asynccontextmanager
async def away(stand: Stand) -> AsyncIterator[None]:
    await asyncio.to_thread(stand.valkey.kill)
    yield
    await asyncio.to_thread(stand.valkey.start)


@pytest.mark.parametrize("fault", [slow, very_slow, silent, full, away])
async def test_nobody_waits_for_redis(stand: Stand, fault: Fault) -> None:
    running, _ = await stand.act('[[script: {"chunks": ["a", "b", "c"], "duration": 2.0}]]')
    await asyncio.sleep(0.5)
    async with fault(stand):
        took = await stand.until_ended(running, 10)
        tasks, slowest = await stand.act(QUICK)
        later = await stand.until_ended(tasks, 15)
        print(f"What ran had ended {took:.2f} s later, the slowest answer took")
        print(f"{slowest:.3f} s, what was accepted meanwhile had ended {later:.2f} s later")
        assert slowest < ACCEPT_SECONDS
        assert stand.sockets_stand()

    tasks, slowest = await stand.act(QUICK)
    again = await stand.until_ended(tasks, 20)
    print(f"afterwards {slowest:.3f} s and {again:.2f} s")
    assert stand.sockets_stand()
    for player in stand.players:
        assert [event["seq"] for event in player.events] == list(range(1, len(player.events) + 1))
        assert {len(found) for found in ended(player.events).values()} == {1}
        assert {found[0]["type"] for found in ended(player.events).values()} == {"task_completed"}


@pytest.mark.parametrize("end", [EmbeddedValkey.stop, EmbeddedValkey.kill])
async def test_a_restart_repeats_no_running_task(
    stand: Stand,
    end: Callable[[EmbeddedValkey], None],
    scripted_model: ScriptedModel,
    postgres_url: str,
) -> None:
    """Under load: all players have a task that runs, and act again while Redis is away.

    It comes back empty, with neither hints nor subscriptions.
    """
    before = len(scripted_model.calls())
    running, _ = await stand.act('[[script: {"chunks": ["a", "b", "c"], "duration": 3.0}]]')
    await scripted_model.until(in_flight=PLAYERS)

    await asyncio.to_thread(end, stand.valkey)
    meanwhile, slowest = await stand.act(QUICK)
    assert slowest < ACCEPT_SECONDS
    await asyncio.to_thread(stand.valkey.start)
    afterwards, _ = await stand.act(QUICK)

    for tasks in (running, meanwhile, afterwards):
        await stand.until_ended(tasks, 20)
    assert len(scripted_model.calls()) - before == 3 * PLAYERS
    with psycopg.connect(postgres_url) as connection:
        starts = connection.execute("select distinct claims, attempts from tasks").fetchall()
    assert starts == [(1, 1)]
    assert stand.sockets_stand()


@pytest.mark.parametrize("fault", [silent, away])
async def test_processes_stop_although_redis_does_not_answer(stand: Stand, fault: Fault) -> None:
    await stand.act('[[script: {"chunks": ["a", "b", "c"], "duration": 1.0}]]')
    async with fault(stand):
        await asyncio.sleep(0.5)
        took = []
        for child in (*stand.fleet.workers, *stand.fleet.gateways):
            began = time.monotonic()
            await asyncio.to_thread(child.stop)
            took.append(time.monotonic() - began)

    print("stopped after", *(f"{seconds:.1f}" for seconds in took), "seconds")
    assert max(took) < 25
