"""What becomes of an action that comes while another one runs, as a client sees it."""

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from redis.asyncio import Redis

from deploy.local.fleet import Fleet
from deploy.models.control import ScriptedModel
from shared.events import JOIN_CHANNEL
from tests.acceptance.conftest import LONG_LEASE
from tests.acceptance.player import Frame, Player, ended
from tests.clients import http_client
from tests.waiting import PATIENCE, until

HANGS = {"kind": "hang"}
ROLL = {"tool_calls": [{"name": "roll_dice", "arguments": {"sides": 6}}]}


@dataclass(slots=True)
class Stage:
    """A companion that runs a first task, while the model does not answer yet."""

    fleet: Fleet
    model: ScriptedModel
    redis: Redis
    player: Player

    async def say(self, text: str, on_busy: str = "enqueue") -> str:
        """A task's id; one that may join is known to the worker when this returns."""
        async with self.redis.pubsub() as pubsub:
            await pubsub.subscribe(JOIN_CHANNEL)
            await pubsub.get_message(timeout=PATIENCE)
            await until(self._worker_hears)
            answer = await self.player.act({"type": "say", "text": text, "on_busy": on_busy})
            if on_busy in {"steer", "follow_up"}:
                assert await pubsub.get_message(ignore_subscribe_messages=True, timeout=PATIENCE)
        task_id: str = answer["task_id"]
        return task_id

    async def _worker_hears(self) -> bool:
        """Whether it listens as well: it says that it is ready before it does."""
        ((_, listeners),) = await self.redis.pubsub_numsub(JOIN_CHANNEL)
        return int(listeners) > 1

    async def lease_is_over(self) -> None:
        """What comes after half a minute without a heartbeat."""
        url = self.fleet.env["DATABASE_URL"]
        async with await psycopg.AsyncConnection.connect(url) as connection:
            await connection.execute(
                "update sessions set lease_until = clock_timestamp(), hint_at = clock_timestamp()"
                " where lease_until is not null"
            )

    async def begin(self, *replies: Frame) -> str:
        """Say something; the first answer waits, the further ones come when they are asked for."""
        self.model.script(
            {"times": 1, "reply": replies[0] | {"fault": HANGS}},
            *({"times": 1, "reply": reply} for reply in replies[1:]),
        )
        task = await self.say("first")
        await self.model.until(in_flight=1)
        return task

    async def ends(self, *tasks: str) -> list[tuple[str, Any]]:
        """How tasks ended: the event's type, and what they joined."""
        await self.player.until_ended(*tasks)
        found = []
        for task in tasks:
            (event,) = ended(self.player.events)[task]
            data = event["data"]
            found.append((event["type"], data.get("result", data).get("joined")))
        return found

    async def transcript(self) -> list[str]:
        answer = await self.player.http.get(f"/v1/sessions/{self.player.id}/messages")
        return [told(one["message"]) for one in answer.json()["messages"]]

    def asked(self) -> list[list[str]]:
        """What the user had said by each model call."""
        return [
            [str(one["content"]) for one in request.body["messages"] if one["role"] == "user"]  # type: ignore[index,union-attr,call-overload]
            for request in self.model.requests()
        ]


def told(message: Frame) -> str:
    content = message["content"]
    text = content if isinstance(content, str) else "".join(p.get("text", "") for p in content)
    return f"{message['role']}: {text}" if message["role"] != "tool_result" else "tool"


@asynccontextmanager
async def staged(fleet: Fleet, model: ScriptedModel) -> AsyncIterator[Stage]:
    async with (
        http_client(fleet.url, timeout=60) as http,
        Redis.from_url(fleet.env["REDIS_URL"]) as redis,
    ):
        # A character of the test's own, who remembers nothing of other tests.
        made = await http.post("/v1/characters", json={"agent": "companion", "name": "Ember"})
        player = await Player.begin(http, agent="companion", character_id=made.json()["id"])
        await player.result(player.opening)
        yield Stage(fleet, model, redis, player)


@pytest.fixture
async def stage(
    standing_direct_fleet: Fleet, scripted_model: ScriptedModel
) -> AsyncIterator[Stage]:
    async with staged(standing_direct_fleet, scripted_model) as made:
        yield made


@pytest.fixture
async def frail_stage(fleet: Fleet, scripted_model: ScriptedModel) -> AsyncIterator[Stage]:
    """One whose worker may be killed; it loses its lease when the test says so."""
    fleet.env["FIRESIDE_LEASE_SECONDS"] = LONG_LEASE
    fleet.add_gateway()
    fleet.add_worker()
    async with staged(fleet, scripted_model) as made:
        yield made


async def test_a_steer_is_heard_at_the_next_turn(stage: Stage) -> None:
    first = await stage.begin(ROLL, {"text": "answer to both"})
    steer = await stage.say("on second thoughts", "steer")
    stage.model.release()

    assert await stage.ends(first, steer) == [
        ("task_completed", None),
        ("task_completed", first),
    ]
    assert stage.asked() == [["first"], ["first", "on second thoughts"]]
    assert (await stage.transcript())[1:] == [
        "user: first",
        "assistant: ",
        "tool",
        "user: on second thoughts",
        "assistant: answer to both",
    ]
    answer = await stage.player.http.get(f"/v1/tasks/{steer}")
    assert answer.json()["result"]["text"] == "answer to both"
    assert (await stage.player.http.get(f"/v1/sessions/{stage.player.id}")).json()["status"] == (
        "idle"
    )


async def test_a_follow_up_is_heard_where_the_run_would_end(stage: Stage) -> None:
    first = await stage.begin(ROLL, {"text": "one"}, {"text": "two"})
    follow_up = await stage.say("and then?", "follow_up")
    stage.model.release()

    assert await stage.ends(first, follow_up) == [
        ("task_completed", None),
        ("task_completed", first),
    ]
    assert stage.asked() == [["first"], ["first"], ["first", "and then?"]]
    assert (await stage.transcript())[-2:] == ["user: and then?", "assistant: two"]


async def test_what_finds_nobody_running_runs_by_itself(stage: Stage) -> None:
    stage.model.script({"reply": {"text": "heard"}})
    for mode in ("steer", "follow_up", "collect", "interrupt", "reject"):
        answer = await stage.player.act({"type": "say", "text": mode, "on_busy": mode})
        assert await stage.ends(answer["task_id"]) == [("task_completed", None)]


async def test_waiting_says_are_collected_into_one_task(stage: Stage) -> None:
    first = await stage.begin({"text": "one"}, {"text": "all"}, {"text": "last"})
    waiting = [await stage.say(text, "collect") for text in ("a", "b", "c")]
    other = await stage.say("d")
    stage.model.release()

    assert await stage.ends(first, *waiting, other) == [
        ("task_completed", None),
        ("task_completed", None),
        ("task_completed", waiting[0]),
        ("task_completed", waiting[0]),
        ("task_completed", None),
    ]
    assert stage.asked()[1][-1] == "a\n\nb\n\nc"
    assert (await stage.transcript())[-2:] == ["user: d", "assistant: last"]


async def test_a_takeover_hears_the_steer_at_the_same_place(frail_stage: Stage) -> None:
    stage = frail_stage
    first = await stage.begin(ROLL, {"text": "lost", "fault": HANGS}, {"text": "both"})
    steer = await stage.say("wait", "steer")
    stage.model.release()
    await stage.model.until(requests=2, in_flight=1)
    stage.fleet.add_worker()
    stage.fleet.workers[0].kill()
    await stage.lease_is_over()

    assert await stage.ends(first, steer) == [
        ("task_completed", None),
        ("task_completed", first),
    ]
    assert stage.asked() == [["first"], ["first", "wait"], ["first", "wait"]]
    assert (await stage.transcript())[-2:] == ["user: wait", "assistant: both"]


async def test_a_cancelled_run_gives_the_steer_back(stage: Stage) -> None:
    first = await stage.begin(ROLL, {"text": "lost", "fault": HANGS}, {"text": "answered"})
    steer = await stage.say("wait", "steer")
    stage.model.release()
    await stage.model.until(requests=2, in_flight=1)
    assert (await stage.player.http.post(f"/v1/tasks/{first}/cancel")).status_code == 202

    assert await stage.ends(first, steer) == [("task_cancelled", None), ("task_completed", None)]
    said = [line for line in await stage.transcript() if line == "user: wait"]
    assert len(said) == 1
    assert (await stage.transcript())[-1] == "assistant: answered"


async def test_a_steer_that_was_taken_in_is_not_cancelled_alone(stage: Stage) -> None:
    first = await stage.begin(ROLL, {"text": "both", "fault": HANGS})
    steer = await stage.say("wait", "steer")
    stage.model.release()
    await stage.model.until(requests=2, in_flight=1)
    assert (await stage.player.http.post(f"/v1/tasks/{steer}/cancel")).status_code == 202
    stage.model.release()

    assert await stage.ends(first, steer) == [
        ("task_completed", None),
        ("task_completed", first),
    ]


async def test_a_waiting_steer_can_be_cancelled(stage: Stage) -> None:
    first = await stage.begin({"text": "alone"})
    steer = await stage.say("wait", "follow_up")
    assert (await stage.player.http.post(f"/v1/tasks/{steer}/cancel")).status_code == 202
    stage.model.release()

    assert await stage.ends(first, steer) == [("task_completed", None), ("task_cancelled", None)]
    assert stage.asked() == [["first"]]


async def test_a_story_takes_nothing_in(stage: Stage) -> None:
    story = await Player.begin(stage.player.http, agent="story", story="gate")
    await story.result(story.opening)
    for mode in ("steer", "follow_up", "collect"):
        answer = await story.act({"type": "continue", "on_busy": mode})
        result: Awaitable[Frame] = story.result(answer["task_id"])
        assert "joined" not in await result
