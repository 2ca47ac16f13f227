"""A real fleet behind a pooler, and before a Postgres that stands still."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import pytest

from deploy.local.fleet import Fleet
from deploy.local.postgres import NOT_DURABLE, EmbeddedPostgres
from deploy.local.server import ROOT
from deploy.models.control import ScriptedModel
from shared.migrate import migrate
from tests.acceptance.conftest import end_at_once
from tests.acceptance.player import Player, ended
from tests.ailing import frozen
from tests.clients import http_client
from tests.nursery import BornFleet
from tests.pgbouncer import PgBouncer
from tests.waiting import PATIENCE, until

HANG = '[[script: {"chunks": ["a ", "b "], "fault": {"kind": "hang", "after": 1}}]]'
SLOW = '[[script: {"chunks": ["one ", "two ", "three "], "ttft": 0.1, "duration": 0.5}]]'


Fleets = Callable[..., AbstractContextManager[Fleet]]


@pytest.fixture
def fleet_on(tmp_path: Path, redis_url: str, scripted_model: ScriptedModel) -> Fleets:
    """A gateway and a worker on a Postgres of the test's, with settings of the test's."""

    @contextmanager
    def standing(postgres: str, **settings: str) -> Iterator[Fleet]:
        with BornFleet(
            tmp_path,
            postgres=postgres,
            redis=redis_url,
            model=scripted_model.url,
            model_path="direct",
            **settings,
        ) as fleet:
            fleet.add_gateway()
            fleet.add_worker()
            yield fleet
            end_at_once(fleet)

    return standing


@pytest.fixture
def pooled(fleet_on: Fleets, postgres_url: str, pgbouncer: PgBouncer) -> Iterator[Fleet]:
    """A fleet that has Postgres through a pooler only."""
    with fleet_on(
        pgbouncer.url_of(postgres_url.rpartition("/")[2]),
        database_pooler="transaction",
        story_folders=str(ROOT / "stories"),
        lease_seconds="60",  # a machine that stands still is not what is looked at here
    ) as fleet:
        yield fleet


async def test_a_fleet_behind_a_pooler(pooled: Fleet, pgbouncer: PgBouncer) -> None:
    async with http_client(pooled.url, timeout=60) as http:
        players = await asyncio.gather(
            *(Player.begin(http, agent="companion") for _ in range(5)),
            *(Player.begin(http, agent="story") for _ in range(3)),
        )

        async def play(player: Player) -> None:
            await player.until_ended(player.opening)
            tasks = [
                await player.act_whatever_happens({"type": "say", "text": SLOW}, f"say-{no}")
                for no in range(4)
            ]
            await player.until_ended(*tasks)

        playing = asyncio.gather(*(play(player) for player in players))
        for _ in range(3):
            await asyncio.sleep(0.5)  # while they play
            await asyncio.to_thread(pgbouncer.restart)
        await playing

    for player in players:
        assert [e["seq"] for e in player.events] == list(range(1, len(player.events) + 1))
        assert {e[0]["type"] for e in ended(player.events).values()} == {"task_completed"}
        assert [len(e) for e in ended(player.events).values()] == [1] * 5
        assert "task_restarted" not in {e["type"] for e in player.events}


async def test_a_worker_ends_in_time_though_postgres_stands_still(
    fleet_on: Fleets,
    postgres_server: EmbeddedPostgres,
    postgres_url: str,
    scripted_model: ScriptedModel,
) -> None:
    drain = 1.0

    async def seconds_to_stop(fleet: Fleet, http: httpx.AsyncClient) -> float:
        worker = fleet.workers[-1]
        player = await Player.begin(http, agent="companion")
        task = (await player.act({"type": "say", "text": HANG}))["task_id"]
        await player.follow_until(
            lambda events: any(
                e["type"] == "message_start" and e["task_id"] == task for e in events
            )
        )
        with frozen(postgres_server):
            began = time.monotonic()
            await asyncio.to_thread(worker.stop)
            took = time.monotonic() - began
        scripted_model.reset()
        fleet.add_worker()
        await cancel(http, task)
        await player.until_ended(task)
        assert worker.returncode == 0
        return took

    with fleet_on(postgres_url, drain_seconds=str(drain)) as fleet:
        async with http_client(fleet.url, timeout=60) as http:
            # A statement without an answer is given up after 12 s.
            await is_quick_at_last(lambda: seconds_to_stop(fleet, http), drain + 8)


@pytest.mark.parametrize("later", [0.0, 0.3])
async def test_a_worker_ends_in_order_though_postgres_is_gone(
    fleet_on: Fleets,
    tmp_path_factory: pytest.TempPathFactory,
    scripted_model: ScriptedModel,
    later: float,
) -> None:
    """It stops as in a crash, when the worker was just told to stop or while it drains."""
    drain, count = 1.0, 8
    folder = tmp_path_factory.mktemp("own") / "postgres"

    async def seconds_to_stop(
        fleet: Fleet, http: httpx.AsyncClient, postgres: EmbeddedPostgres
    ) -> float:
        worker = fleet.workers[-1]
        players = [await Player.begin(http, agent="companion") for _ in range(count)]
        hanging = [
            (await player.act({"type": "say", "text": HANG}))["task_id"] for player in players
        ]
        await scripted_model.until(in_flight=count, timeout=30)
        began = time.monotonic()
        worker.signal(signal.SIGTERM)
        await asyncio.sleep(later)
        postgres.signal(signal.SIGQUIT)  # what `pg_ctl stop -m immediate` sends
        assert await asyncio.to_thread(worker.wait, 2 * PATIENCE)
        took = time.monotonic() - began
        said = worker.output()

        assert await asyncio.to_thread(postgres.wait, PATIENCE)
        postgres.start()
        scripted_model.reset()
        fleet.add_worker()
        for player, task in zip(players, hanging, strict=True):
            await cancel(http, task)
            await player.until_ended(task)
            assert [len(e) for e in ended(player.events).values()] == [1, 1]
        assert worker.returncode == 0, said
        return took

    with EmbeddedPostgres(folder, settings=NOT_DURABLE) as postgres:
        migrate(url := postgres.create_database("gone"))
        with fleet_on(url, drain_seconds=str(drain)) as fleet:
            async with http_client(fleet.url, timeout=60) as http:
                # Attempts that are not to end wait 30 s for a Postgres that is away.
                await is_quick_at_last(lambda: seconds_to_stop(fleet, http, postgres), drain + 6)


async def cancel(http: httpx.AsyncClient, task: str) -> None:
    """Cancel a task as soon as the gateway has Postgres again."""

    async def is_heard() -> bool:
        return (await http.post(f"/v1/tasks/{task}/cancel")).status_code != 503

    await until(is_heard)


async def is_quick_at_last(stop: Callable[[], Awaitable[float]], seconds: float) -> None:
    """Stop a worker in less than so many seconds; a busy machine may be late once, and not each
    time."""
    took = [await stop()]
    while min(took) >= seconds and len(took) < 3:
        took.append(await stop())
    print("stopped after", *(f"{one:.1f}" for one in took), "s")
    assert min(took) < seconds
