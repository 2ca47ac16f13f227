"""A Redis that is slow, silent, full or away: nothing waits for it, and nothing is lost."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from statistics import median
from typing import TypeAlias

import httpx
import psycopg
import pytest
import pytest_asyncio
from redis.asyncio import Redis
from websockets.exceptions import ConnectionClosed, InvalidMessage

from deploy.local.fleet import Fleet
from deploy.local.model import ScriptedModelProcess
from deploy.local.postgres import EmbeddedPostgres
from deploy.local.valkey import EmbeddedValkey
from deploy.models.control import ScriptedModel
from tests.acceptance.conftest import LONG_LEASE
from tests.acceptance.player import Player, ended
from tests.clients import http_client
from tests.links import SlowLink
from tests.nursery import BornFleet
from tests.waiting import PATIENCE, PAUSE, until

PLAYERS = 20
QUICK = '[[script: {"chunks": ["one ", "two"], "duration": 0.2}]]'
HELD = '[[script: {"chunks": ["a", "b", "c"], "fault": {"kind": "hang", "after": 1}}]]'
ACCEPT_SECONDS = 1.5
"""How long accepting an action may take for most; a commit takes a few milliseconds."""

ROUNDS = 3
"""How often all act: a machine that pauses delays a round or two, a wait for Redis all of them."""


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
        self._seated = False

    @classmethod
    @asynccontextmanager
    async def built(cls, folder: Path, postgres: str, model: str) -> AsyncIterator["Stand"]:
        """One with players in their seats, whose first tasks have ended."""
        (folder / "stories").mkdir()
        with EmbeddedValkey(folder / "valkey", durable=False) as valkey:
            async with SlowLink(valkey.url).running() as link:
                with BornFleet(
                    folder,
                    postgres=postgres,
                    redis=link.url,
                    model=model,
                    model_path="direct",
                    story_folders=str(folder / "stories"),
                    poll_seconds="0.5",
                    lease_seconds=LONG_LEASE,  # what is repeated is so because of Redis
                ) as fleet:
                    await asyncio.to_thread(fleet.add_gateway)
                    for _ in range(2):
                        await asyncio.to_thread(fleet.add_worker)
                    async with http_client(fleet.url, timeout=60) as http:
                        made = cls(fleet, valkey, link, http)
                        await made.seat(PLAYERS)
                        yield made
                        await made.leave()
                    # Their Redis lives on this loop, so they must not end while it is blocked.
                    for child in [*fleet.workers, *fleet.gateways]:
                        await asyncio.to_thread(child.kill)

    async def seat(self, players: int) -> None:
        self.players = await asyncio.gather(
            *(Player.begin(self.http, agent="companion") for _ in range(players))
        )
        self._sockets = [asyncio.create_task(self._listen(player)) for player in self.players]
        await self.until_ended([player.opening for player in self.players], 2 * PATIENCE)
        self._seated = True

    async def _listen(self, player: Player) -> None:
        """Hear all on one socket; on a busy machine the first ones may be refused."""
        while True:
            try:
                async with player.socket() as socket:
                    while True:
                        player.take(json.loads(await socket.recv()))
            except (ConnectionClosed, InvalidMessage, OSError):
                if self._seated:
                    raise
                await asyncio.sleep(PAUSE)

    async def act(self, text: str) -> tuple[list[str], list[float]]:
        """Each player acts; the tasks, and the seconds that the answers took."""

        async def timed(player: Player) -> tuple[str, float]:
            began = time.monotonic()
            task = (await player.act({"type": "say", "text": text}))["task_id"]
            return task, time.monotonic() - began

        acted = await asyncio.gather(*map(timed, self.players))
        return [task for task, _ in acted], [seconds for _, seconds in acted]

    async def act_in_rounds(self, text: str) -> tuple[list[str], float]:
        """All act, time after time; the tasks of the last time, and the median of the answers of
        the quickest round."""
        medians = []
        for _ in range(ROUNDS):
            tasks, seconds = await self.act(text)
            medians.append(median(seconds))
        return tasks, min(medians)

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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lasting_stand(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: EmbeddedPostgres,
    database_template: str,
    scripted_model_process: ScriptedModelProcess,
) -> AsyncIterator[Stand]:
    """One for all faults that it is to outlive."""
    url = postgres_server.create_database("redis_faults", template=database_template)
    folder = tmp_path_factory.mktemp("redis-faults")
    async with Stand.built(folder, url, scripted_model_process.url) as made:
        yield made


@pytest.fixture
def stand(lasting_stand: Stand, scripted_model: ScriptedModel) -> Stand:
    assert lasting_stand.sockets_stand()
    return lasting_stand


@pytest_asyncio.fixture(loop_scope="module")
async def own_stand(
    tmp_path: Path, postgres_url: str, scripted_model: ScriptedModel
) -> AsyncIterator[Stand]:
    """One of the test's own, whose processes it may stop."""
    async with Stand.built(tmp_path, postgres_url, scripted_model.url) as made:
        yield made


Fault: TypeAlias = Callable[[Stand], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def slow(stand: Stand) -> AsyncIterator[None]:
    stand.link.delay = 0.2
    try:
        yield
    finally:
        stand.link.delay = 0.0


@asynccontextmanager
async def very_slow(stand: Stand) -> AsyncIterator[None]:
    stand.link.delay = 2.0
    try:
        yield
    finally:
        stand.link.delay = 0.0


@asynccontextmanager
async def silent(stand: Stand) -> AsyncIterator[None]:
    stand.link.fall_silent()
    try:
        yield
    finally:
        stand.link.speak()


@asynccontextmanager
async def full(stand: Stand) -> AsyncIterator[None]:
    async with Redis.from_url(stand.valkey.url) as redis:
        await redis.config_set("maxmemory", 1)
        try:
            yield
        finally:
            await redis.config_set("maxmemory", 0)


@asynccontextmanager
async def away(stand: Stand) -> AsyncIterator[None]:
    await asyncio.to_thread(stand.valkey.kill)
    try:
        yield
    finally:
        await asyncio.to_thread(stand.valkey.start)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("fault", [slow, very_slow, silent, full, away])
async def test_nobody_waits_for_redis(
    stand: Stand, scripted_model: ScriptedModel, fault: Fault
) -> None:
    running, _ = await stand.act(HELD)
    await scripted_model.until(in_flight=PLAYERS)
    async with fault(stand):
        scripted_model.release()
        took = await stand.until_ended(running, PATIENCE)
        tasks, answer = await stand.act_in_rounds(QUICK)
        later = await stand.until_ended(tasks, PATIENCE)
        print(f"What ran had ended {took:.2f} s later, an answer took")
        print(f"{answer:.3f} s, what was accepted meanwhile had ended {later:.2f} s later")
        assert answer < ACCEPT_SECONDS
        assert stand.sockets_stand()

    tasks, answers = await stand.act(QUICK)
    again = await stand.until_ended(tasks, PATIENCE)
    print(f"afterwards {median(answers):.3f} s and {again:.2f} s")
    assert stand.sockets_stand()
    for player in stand.players:
        assert [event["seq"] for event in player.events] == list(range(1, len(player.events) + 1))
        assert {len(found) for found in ended(player.events).values()} == {1}
        assert {found[0]["type"] for found in ended(player.events).values()} == {"task_completed"}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("end", [EmbeddedValkey.stop, EmbeddedValkey.kill])
async def test_a_restart_repeats_no_running_task(
    stand: Stand, end: Callable[[EmbeddedValkey], None], scripted_model: ScriptedModel
) -> None:
    """Under load: all players have a task that runs, and act again while Redis is away.

    It comes back empty, with neither hints nor subscriptions.
    """
    before = len(scripted_model.calls())
    running, _ = await stand.act(HELD)
    await scripted_model.until(in_flight=PLAYERS)

    await asyncio.to_thread(end, stand.valkey)
    try:
        scripted_model.release()
        meanwhile, answer = await stand.act_in_rounds(QUICK)
        assert answer < ACCEPT_SECONDS
    finally:
        await asyncio.to_thread(stand.valkey.start)
    afterwards, _ = await stand.act(QUICK)

    for tasks in (running, meanwhile, afterwards):
        await stand.until_ended(tasks, PATIENCE)
    assert len(scripted_model.calls()) - before == (2 + ROUNDS) * PLAYERS
    with psycopg.connect(stand.fleet.env["DATABASE_URL"]) as connection:
        starts = connection.execute(
            "select distinct claims, attempts from tasks where id = any(cast(%s as uuid[]))",
            [[*running, *meanwhile, *afterwards]],
        ).fetchall()
    assert starts == [(1, 1)]
    assert stand.sockets_stand()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("fault", [silent, away])
async def test_processes_stop_although_redis_does_not_answer(
    own_stand: Stand, scripted_model: ScriptedModel, fault: Fault
) -> None:
    stand = own_stand
    await stand.act(HELD)
    await scripted_model.until(in_flight=PLAYERS)

    async def let_go() -> None:
        """Let the tasks end as soon as a worker that stops waits for them."""

        def drains() -> bool:
            lines = [line for worker in stand.fleet.workers for line in worker.output()]
            return any("draining" in line for line in lines)

        await until(drains)
        scripted_model.release()

    async with fault(stand), asyncio.TaskGroup() as meanwhile:
        meanwhile.create_task(let_go())
        took = []
        for child in (*stand.fleet.workers, *stand.fleet.gateways):
            began = time.monotonic()
            await asyncio.to_thread(child.stop)
            took.append(time.monotonic() - began)

    print("stopped after", *(f"{seconds:.1f}" for seconds in took), "seconds")
    assert max(took) < 25
