"""A real fleet behind a pooler, and before a Postgres that stands still."""

import asyncio
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deploy.local.fleet import Fleet
from deploy.local.postgres import NOT_DURABLE, EmbeddedPostgres
from deploy.models.control import ScriptedModel
from shared.migrate import migrate
from tests.acceptance.player import Player, ended
from tests.ailing import frozen
from tests.pgbouncer import PgBouncer

HANG = '[[script: {"chunks": ["a ", "b "], "fault": {"kind": "hang", "after": 1}}]]'
SLOW = '[[script: {"chunks": ["one ", "two ", "three "], "ttft": 0.1, "duration": 0.5}]]'


@pytest.fixture
def pooled(
    tmp_path: Path,
    postgres_url: str,
    pgbouncer: PgBouncer,
    redis_url: str,
    scripted_model: ScriptedModel,
) -> Iterator[Fleet]:
    """A fleet that has Postgres through a pooler only."""
    with Fleet(
        tmp_path,
        postgres=pgbouncer.url_of(postgres_url.rpartition("/")[2]),
        redis=redis_url,
        model=scripted_model.url,
        model_path="direct",
        database_pooler="transaction",
        story_folders=str(Path(__file__).parents[2] / "stories"),
    ) as fleet:
        fleet.add_gateway()
        fleet.add_worker()
        yield fleet


async def test_a_fleet_behind_a_pooler(pooled: Fleet, pgbouncer: PgBouncer) -> None:
    async with httpx.AsyncClient(base_url=pooled.url, timeout=60) as http:
        players = await asyncio.gather(
            *(Player.begin(http, agent="companion") for _ in range(5)),
            *(Player.begin(http, agent="story") for _ in range(3)),
        )

        async def play(player: Player) -> None:
            await player.until_ended(player.opening)
            tasks = [
                (await player.act({"type": "say", "text": SLOW}, key=f"say-{no}"))["task_id"]
                for no in range(4)
            ]
            await player.until_ended(*tasks)

        playing = asyncio.gather(*(play(player) for player in players))
        await asyncio.sleep(1.0)  # while they play
        await asyncio.to_thread(pgbouncer.restart)
        await playing

    for player in players:
        assert [e["seq"] for e in player.events] == list(range(1, len(player.events) + 1))
        assert {e[0]["type"] for e in ended(player.events).values()} == {"task_completed"}
        assert [len(e) for e in ended(player.events).values()] == [1] * 5
        assert "task_restarted" not in {e["type"] for e in player.events}


async def test_a_worker_ends_in_time_though_postgres_stands_still(
    tmp_path: Path,
    postgres_server: EmbeddedPostgres,
    postgres_url: str,
    redis_url: str,
    scripted_model: ScriptedModel,
) -> None:
    drain = 1.0
    with Fleet(
        tmp_path,
        postgres=postgres_url,
        redis=redis_url,
        model=scripted_model.url,
        model_path="direct",
        drain_seconds=str(drain),
    ) as fleet:
        fleet.add_gateway()
        worker = fleet.add_worker()
        async with httpx.AsyncClient(base_url=fleet.url, timeout=60) as http:
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
            await http.post(f"/v1/tasks/{task}/cancel")
            await player.until_ended(task)

    assert took < drain + 8  # a statement without an answer is given up after 12 s
    assert worker.returncode == 0


@pytest.mark.parametrize("later", [0.0, 0.3])
async def test_a_worker_ends_in_order_though_postgres_is_gone(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    redis_url: str,
    scripted_model: ScriptedModel,
    later: float,
) -> None:
    """It stops as in a crash, when the worker was just told to stop or while it drains."""
    drain, count = 1.0, 8
    folder = tmp_path_factory.mktemp("own") / "postgres"
    with EmbeddedPostgres(folder, settings=NOT_DURABLE) as postgres:
        migrate(url := postgres.create_database("gone"))
        with Fleet(
            tmp_path,
            postgres=url,
            redis=redis_url,
            model=scripted_model.url,
            model_path="direct",
            drain_seconds=str(drain),
        ) as fleet:
            fleet.add_gateway()
            worker = fleet.add_worker()
            async with httpx.AsyncClient(base_url=fleet.url, timeout=60) as http:
                players = [await Player.begin(http, agent="companion") for _ in range(count)]
                hanging = [
                    (await player.act({"type": "say", "text": HANG}))["task_id"]
                    for player in players
                ]
                await scripted_model.until(in_flight=count, timeout=30)
                began = time.monotonic()
                worker.signal(signal.SIGTERM)
                await asyncio.sleep(later)
                postgres.signal(signal.SIGQUIT)  # what `pg_ctl stop -m immediate` sends
                assert await asyncio.to_thread(worker.wait, 20)
                took = time.monotonic() - began
                said = worker.output()

                assert await asyncio.to_thread(postgres.wait, 20)
                postgres.start()
                scripted_model.reset()
                fleet.add_worker()
                for player, task in zip(players, hanging, strict=True):
                    await http.post(f"/v1/tasks/{task}/cancel")
                    await player.until_ended(task)

    assert worker.returncode == 0, said
    assert took < drain + 6
    for player in players:
        assert [len(e) for e in ended(player.events).values()] == [1, 1]
