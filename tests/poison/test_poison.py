"""Tasks that end their own worker, beside innocent ones, on real processes that start again."""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from deploy.local.fleet import Fleet, Worker
from tests.acceptance.player import Player, ended
from tests.clients import http_client
from tests.waiting import PAUSE, until

WORKERS = 2
INNOCENTS = 20
MOST_DEATHS = 5

# Whole fleets start and die in a test, each process of them anew.
pytestmark = pytest.mark.timeout(600)
LONGEST = 240


class Ward:
    """A fleet whose workers are started again when they die, and what happened in it."""

    def __init__(self, fleet: Fleet, http: httpx.AsyncClient, notes: Path, database: str) -> None:
        self.fleet = fleet
        self.http = http
        self.deaths = 0
        self._notes = notes
        self._database = database

    async def begin(self) -> Player:
        player = await Player.begin(self.http, agent="kitchen")
        await player.result(player.opening)
        return player

    async def order(self, player: Player, text: str) -> str:
        task: str = (await player.act({"type": "say", "text": text}))["task_id"]
        return task

    async def start_again(self, worker: Worker) -> None:
        while True:
            if await asyncio.to_thread(worker.wait, 0.2):
                self.deaths += 1
                worker.spawn()

    async def end_leases_of_the_dead(self) -> None:
        """Let nobody wait for the end of a lease whose process an order has ended."""
        over = 0
        while True:
            noted = [line.split() for line in self._notes.read_text().splitlines()]
            if len(noted) > over and not is_alive(int(noted[over][-1])):
                over += 1
                task = noted[over - 1][0]
                times = sum(line[0] == task for line in noted[:over])
                # Where somebody else has taken it since, the lease is theirs.
                await query(
                    self._database,
                    "update sessions s set lease_until = clock_timestamp(),"
                    " ready_at = null, hint_at = clock_timestamp() from tasks t"
                    f" where t.session_id = s.id and t.id = '{task}' and t.attempts = {times}"
                    " and s.lease_token is not null returning s.id",
                )
            else:
                await asyncio.sleep(PAUSE)

    def taken_for(self, order: str) -> int:
        """How many processes took an order, workers and those of the quarantine."""
        return sum(f" {order} " in line for line in self._notes.read_text().splitlines())


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
async def ward(fleet: Fleet, tmp_path: Path, postgres_url: str) -> AsyncIterator[Ward]:
    await asyncio.to_thread(fleet.add_gateway)
    for _ in range(WORKERS):
        await asyncio.to_thread(fleet.add_worker)
    async with http_client(fleet.url, timeout=60) as http:
        ward = Ward(fleet, http, tmp_path / "notes", postgres_url)
        nurses = [asyncio.create_task(ward.start_again(worker)) for worker in fleet.workers]
        nurses.append(asyncio.create_task(ward.end_leases_of_the_dead()))
        yield ward
        for nurse in nurses:
            nurse.cancel()
        await asyncio.gather(*nurses, return_exceptions=True)


async def test_a_poison_task_ends_dead_and_takes_no_innocent_with_it(
    ward: Ward, postgres_url: str
) -> None:
    players = await asyncio.gather(*(ward.begin() for _ in range(INNOCENTS)))
    poisoned = await ward.begin()
    over = asyncio.Event()
    eating = [asyncio.create_task(eat(ward, player, over)) for player in players]

    async with asyncio.timeout(LONGEST):
        task = await ward.order(poisoned, "exit")
        after = await ward.order(poisoned, "water")
        await poisoned.until_ended(task)
        assert (await poisoned.result(after))["text"] == "water is served"
        over.set()
        meals = await asyncio.gather(*eating)

    (event,) = ended(poisoned.events)[task]
    assert (event["type"], event["data"]["error"]) == (
        "task_dead",
        {
            "code": "attempts_exhausted",
            "message": "given up after 5 attempts without a finished step; "
            "the last one had begun no step",
        },
    )
    assert ward.deaths == 4
    assert ward.taken_for("exit") <= MOST_DEATHS
    assert min(meals) > 0
    assert await outcomes(postgres_url) == {
        ("completed", "task_completed"): INNOCENTS + sum(meals) + 2,
        ("dead", "task_dead"): 1,
    }
    assert await quarantined(postgres_url) == 0


async def eat(ward: Ward, player: Player, over: asyncio.Event) -> int:
    """Order bread until it is over, and wait for each; the number of orders, all served."""
    orders = 0
    while not over.is_set():
        await player.result(await ward.order(player, "bread"))
        orders += 1
    return orders


async def test_a_task_that_crashes_once_completes(ward: Ward) -> None:
    player = await ward.begin()
    async with asyncio.timeout(LONGEST):
        answer = await player.result(await ward.order(player, "exit once"))
        await until(lambda: ward.deaths > 0)  # its end may be heard of before

    assert answer["text"] == "exit once is served"
    assert ward.deaths == 1
    assert ward.taken_for("exit once") == 2  # the second one lived


async def test_a_kill_in_the_middle_of_a_tool_is_told_with_the_tool(ward: Ward) -> None:
    player, neighbour = await ward.begin(), await ward.begin()
    async with asyncio.timeout(LONGEST):
        task = await ward.order(player, "killed in a tool")
        served = await ward.order(neighbour, "bread")
        await player.until_ended(task)
        await neighbour.result(served)

    (event,) = ended(player.events)[task]
    assert event["type"] == "task_dead"
    assert event["data"]["error"]["message"].endswith("the last one had begun tool cook (step 0)")
    assert ward.deaths == 4
    assert ward.taken_for("killed in a tool") == MOST_DEATHS


@pytest.mark.parametrize("times", [{"lease_seconds": "3", "stuck_seconds": "7"}])
async def test_a_task_that_blocks_its_worker_for_ever_is_poison_as_well(
    fleet: Fleet, ward: Ward
) -> None:
    player = await ward.begin()
    async with asyncio.timeout(LONGEST):
        task = await ward.order(player, "boil for ever")
        after = await ward.order(player, "water")
        await player.until_ended(task)
        assert (await player.result(after))["text"] == "water is served"

    assert ended(player.events)[task][0]["type"] == "task_dead"
    assert ward.deaths == 4
    assert ward.taken_for("boil for ever") == MOST_DEATHS
    assert any("agents.py" in line for worker in fleet.workers for line in worker.output())


async def outcomes(url: str) -> Counter[tuple[str, str]]:
    """How many tasks ended how, by their row and by their one terminal event."""
    rows = await query(
        url,
        "select t.status, e.type from tasks t join events e on e.task_id = t.id"
        " where e.type in ('task_completed', 'task_failed', 'task_cancelled', 'task_dead')",
    )
    return Counter((status, kind) for status, kind in rows)


async def quarantined(url: str) -> int:
    ((count,),) = await query(url, "select count(*) from sessions where quarantined")
    return int(count)


async def query(url: str, statement: str) -> list[Any]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        return await (await connection.execute(statement.encode())).fetchall()
