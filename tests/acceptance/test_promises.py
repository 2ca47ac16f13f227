"""What the server promises, seen from outside, with real processes that are killed."""

import asyncio
import json
import random

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from deploy.local.fleet import Fleet
from deploy.models.control import ScriptedModel
from tests.acceptance.conftest import LONG_LEASE
from tests.acceptance.player import Player, ended
from tests.clients import http_client
from tests.waiting import until

SESSIONS = 50
ACTIONS = 4
KILLS = 3
HANG = '[[script: {"chunks": ["a ", "b "], "fault": {"kind": "hang", "after": 1}}]]'
SLOW = '[[script: {"chunks": ["one ", "two ", "three "], "ttft": 0.1, "duration": 0.3}]]'


@pytest.fixture
def hardened(fleet: Fleet) -> Fleet:
    """One that gives no task up, however often the worker that has it is killed or stands still."""
    fleet.env |= {"FIRESIDE_MAX_ATTEMPTS": "100", "FIRESIDE_QUARANTINE_AFTER": "100"}
    return fleet


@pytest.fixture
def sure(fleet: Fleet) -> Fleet:
    """One whose worker loses no lease."""
    fleet.env["FIRESIDE_LEASE_SECONDS"] = LONG_LEASE
    return fleet


async def test_no_action_is_lost_doubled_or_out_of_order_while_the_worker_is_killed(
    hardened: Fleet, http: httpx.AsyncClient
) -> None:
    players = await asyncio.gather(
        *(Player.begin(http, agent="companion") for _ in range(SESSIONS))
    )
    async with http_client(hardened.url, timeout=60) as other:
        sent = asyncio.ensure_future(
            asyncio.gather(*(send_twice(player, other) for player in players))
        )
        killed = asyncio.ensure_future(kill_now_and_then(hardened, players))
        tasks = await sent
        await killed
    async with asyncio.timeout(90):
        await asyncio.gather(
            *(player.until_ended(*ids) for player, ids in zip(players, tasks, strict=True))
        )

    for player, ids in zip(players, tasks, strict=True):
        assert [event["seq"] for event in player.events] == list(range(1, len(player.events) + 1))
        terminal = ended(player.events)
        assert list(terminal) == [player.opening, *ids]
        assert {task: [event["type"] for event in of] for task, of in terminal.items()} == {
            task: ["task_completed"] for task in [player.opening, *ids]
        }
        messages = (await http.get(f"/v1/sessions/{player.id}/messages")).json()["messages"]
        said = [m["message"]["content"] for m in messages if m["message"]["role"] == "user"]
        assert said == [f"move {number} {SLOW}" for number in range(ACTIONS)]
    assert sum(len(ids) for ids in tasks) == SESSIONS * ACTIONS


async def send_twice(player: Player, other: httpx.AsyncClient) -> list[str]:
    """Send each action from two connections at once; the one task that both were given."""
    twin = Player(other, {"id": player.id, "task_id": player.opening})
    ids = []
    for number in range(ACTIONS):
        action = {"type": "say", "text": f"move {number} {SLOW}"}
        key = f"move-{number}"
        first, second = await asyncio.gather(player.act(action, key), twin.act(action, key))
        assert first["task_id"] == second["task_id"]
        ids.append(first["task_id"])
    return ids


async def kill_now_and_then(fleet: Fleet, players: list[Player]) -> None:
    """Kill the only worker each time that some more tasks have ended."""
    (worker,) = fleet.workers
    for kill in range(1, KILLS + 1):
        await players[kill].follow_until(lambda events: len(ended(events)) >= 2)
        worker.kill()
        worker.start()


async def test_a_client_that_drops_its_socket_sees_each_event_exactly_once(
    standing: httpx.AsyncClient,
) -> None:
    player = await Player.begin(standing, agent="companion")
    ids = [
        (await player.act({"type": "say", "text": f"{number} {SLOW}"}, str(number)))["task_id"]
        for number in range(8)
    ]
    drops = random.Random(7)
    for _ in range(20):
        frames = drops.randint(0, 5)
        async with player.socket() as socket:
            for _ in range(frames):
                player.take(json.loads(await socket.recv()))
            socket.transport.abort()
    await player.until_ended(*ids)

    assert [event["seq"] for event in player.events] == list(range(1, len(player.events) + 1))
    log = (await standing.get(f"/v1/sessions/{player.id}/events?after=0&limit=1000")).json()[
        "events"
    ]
    assert player.events == log


async def test_a_dead_model_fails_the_task_and_the_session_goes_on(
    standing: httpx.AsyncClient,
) -> None:
    player = await Player.begin(standing, agent="companion")
    fault = '[[script: {"fault": {"kind": "status", "status": 400}}]]'
    failed = (await player.act({"type": "say", "text": fault}))["task_id"]
    await player.until_ended(failed)
    answered = (await player.act({"type": "say", "text": SLOW}))["task_id"]

    assert [event["data"]["error"]["code"] for event in ended(player.events)[failed]] == [
        "model_failed"
    ]
    assert (await player.result(answered))["text"] == "one two three "


async def test_a_story_plays_on_without_its_model(standing: httpx.AsyncClient) -> None:
    player = await Player.begin(standing, agent="story", story="gate")
    fault = '[[script: {"fault": {"kind": "status", "status": 400}}]]'
    said = (await player.act({"type": "say", "text": fault}))["task_id"]
    answer = await player.result(said)
    choice = answer["choices"][0]["id"]
    chosen = (await player.act({"type": "choose", "choice_id": choice}))["task_id"]

    assert (await player.result(chosen))["text"].startswith("He yawns.")


async def test_a_choice_that_is_not_open_fails_its_task_only(standing: httpx.AsyncClient) -> None:
    player = await Player.begin(standing, agent="story", story="gate")
    opening = await player.result(player.opening)
    failed = (await player.act({"type": "choose", "choice_id": "no-such-choice"}))["task_id"]
    await player.until_ended(failed)
    choice = opening["choices"][0]["id"]
    chosen = (await player.act({"type": "choose", "choice_id": choice}))["task_id"]

    assert ended(player.events)[failed][0]["data"]["error"]["code"] == "choice_not_found"
    assert (await player.result(chosen))["text"].startswith("He yawns.")


async def test_a_running_task_is_cancelled_within_a_second(standing: httpx.AsyncClient) -> None:
    player = await Player.begin(standing, agent="companion")
    took: list[float] = []
    while min(took, default=1.0) >= 1.0 and len(took) < 10:
        took.append(await cancelled_after(player))

    print("cancelled after", *(f"{seconds:.2f}" for seconds in took), "s")
    assert min(took) < 1.0  # a busy machine may be late now and then, and not each time


async def cancelled_after(player: Player) -> float:
    """Cancel a task whose model hangs; the seconds until its end was told."""
    task = (await player.act({"type": "say", "text": HANG}))["task_id"]
    await player.follow_until(
        lambda events: (
            [e["type"] for e in events if e["task_id"] == task].count("message_start") == 2
        )
    )
    began = asyncio.get_running_loop().time()
    assert (await player.http.post(f"/v1/tasks/{task}/cancel")).status_code == 202
    await player.until_ended(task)
    assert [event["type"] for event in ended(player.events)[task]] == ["task_cancelled"]
    return asyncio.get_running_loop().time() - began


async def test_an_interrupt_ends_the_running_task_and_goes_first(
    standing: httpx.AsyncClient,
) -> None:
    player = await Player.begin(standing, agent="companion")
    hang = '[[script: {"fault": {"kind": "hang"}}]]'
    running = (await player.act({"type": "say", "text": hang}))["task_id"]
    await player.follow_until(
        lambda events: any(e["type"] == "task_started" and e["task_id"] == running for e in events)
    )
    waiting = (await player.act({"type": "say", "text": "later"}))["task_id"]
    first = (await player.act({"type": "say", "text": "now", "on_busy": "interrupt"}))["task_id"]
    await player.until_ended(running, waiting, first)

    order = [(task, of[0]["type"]) for task, of in ended(player.events).items()]
    assert order == [
        (player.opening, "task_completed"),
        (running, "task_cancelled"),
        (first, "task_completed"),
        (waiting, "task_completed"),
    ]


async def test_a_worker_that_is_told_to_stop_finishes_what_it_runs(
    sure: Fleet, http: httpx.AsyncClient, scripted_model: ScriptedModel
) -> None:
    (worker,) = sure.workers
    player = await Player.begin(http, agent="companion")
    task = (await player.act({"type": "say", "text": HANG}))["task_id"]
    await scripted_model.until(in_flight=1)
    stopping = asyncio.create_task(asyncio.to_thread(worker.stop))
    await until(lambda: any("draining" in line for line in worker.output()))
    scripted_model.release()
    await player.until_ended(task)
    await stopping

    assert worker.returncode == 0
    assert [event["type"] for event in ended(player.events)[task]] == ["task_completed"]
    assert [e["type"] for e in player.events if e["task_id"] == task].count("task_started") == 1


async def test_a_gateway_that_restarts_loses_nothing(fleet: Fleet, http: httpx.AsyncClient) -> None:
    player = await Player.begin(http, agent="companion")
    task = (await player.act({"type": "say", "text": SLOW}))["task_id"]
    async with player.socket() as socket:
        player.take(json.loads(await socket.recv()))
        fleet.gateways[0].kill()
        try:
            while True:
                player.take(json.loads(await socket.recv()))
        except ConnectionClosed:
            pass
    fleet.gateways[0].start()
    await player.until_ended(task)

    assert [event["seq"] for event in player.events] == list(range(1, len(player.events) + 1))
