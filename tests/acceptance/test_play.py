"""Whole plays through the WebSocket: a real story, and a companion that uses a tool."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from deploy.local.fleet import Fleet
from tests.acceptance.player import Frame, Player, ended
from tests.clients import http_client
from tests.ink.test_intercept import PICKS, Seen, by_inkjs
from tests.story.test_endings import ENDINGS, TO_THE_QUAY
from worker.ink.compiler import compile_story


@pytest.fixture
def intercept(shared_data: Path, stories: Path) -> str:
    """The Intercept among the stories; its compiled form."""
    source = (shared_data / "ink" / "TheIntercept.ink").read_text()
    (stories / "the-intercept.ink").write_text(source)
    return compile_story({"story.ink": source}).json


@pytest.fixture
async def browser(intercept: str, fleet: Fleet) -> AsyncIterator[httpx.AsyncClient]:
    fleet.add_gateway()
    fleet.add_worker()
    async with http_client(fleet.url, timeout=60) as client:
        yield client


async def test_the_intercept_reads_as_with_inkjs(
    intercept: str, browser: httpx.AsyncClient
) -> None:
    player = await Player.begin(browser, agent="story", story="the-intercept")
    results = [await player.result(player.opening)]
    for pick in PICKS:
        choices = results[-1]["choices"]
        action = {"type": "choose", "choice_id": choices[pick % len(choices)]["id"]}
        async with player.socket() as socket:
            await socket.send(
                json.dumps({"type": "action", "id": f"{pick}-{len(results)}"} | {"action": action})
            )
            frame: Frame = {}
            while frame.get("type") != "ack":
                frame = json.loads(await socket.recv())
                player.take(frame)
        results.append(await player.result(frame["task_id"]))

    assert [text_and_choices(result) for result in results] == [
        as_a_client_sees(seen) for seen in by_inkjs(intercept, PICKS)
    ]


def text_and_choices(result: dict[str, object]) -> tuple[object, object]:
    choices = result["choices"]
    assert isinstance(choices, list)
    return result["text"], [(choice["text"], choice["tags"]) for choice in choices]


def as_a_client_sees(seen: Seen) -> tuple[str, list[tuple[str, list[str]]]]:
    return "\n".join(text for text, _ in seen.lines), seen.choices


async def test_each_ending_of_our_story_is_reached(standing: httpx.AsyncClient) -> None:
    endings = [await last_text(standing, last) for last in ENDINGS.values()]

    assert len(set(endings)) == len(ENDINGS) == 3


async def last_text(http: httpx.AsyncClient, last: str) -> str:
    """Play The Last Lamp to the end that this choice leads to."""
    player = await Player.begin(http, agent="story", story="last-lamp")
    result = await player.result(player.opening)
    for wanted in (*TO_THE_QUAY, last):
        (choice,) = [choice for choice in result["choices"] if choice["text"] == wanted]
        result = await choose(player, choice["id"])
    while result["choices"]:
        result = await choose(player, result["choices"][0]["id"])
    assert result["state"]["ended"]
    text: str = result["text"]
    return text


async def choose(player: Player, choice_id: str) -> Frame:
    accepted = await player.act({"type": "choose", "choice_id": choice_id})
    return await player.result(accepted["task_id"])


async def test_a_companion_uses_a_tool(standing: httpx.AsyncClient) -> None:
    player = await Player.begin(standing, agent="companion")
    script = json.dumps(
        [
            {"tool_calls": [{"name": "roll_dice", "arguments": {"sides": 20}}]},
            {"chunks": ["You ", "threw ", "it."]},
        ]
    )
    task = (await player.act({"type": "say", "text": f"roll! [[script: {script}]]"}))["task_id"]
    result = await player.result(task)

    assert result["text"] == "You threw it."
    assert [event["type"] for event in player.events if event["task_id"] == task] == [
        "task_queued",
        "task_started",
        "agent_start",
        "turn_start",
        *("message_start", "message_end"),  # the user's
        *("message_start", "message_end"),  # the call
        *("tool_execution_start", "tool_execution_end"),
        *("message_start", "message_end"),  # its result
        "turn_end",
        "turn_start",
        *("message_start", "message_end"),
        "turn_end",
        "agent_end",
        "state_changed",
        "task_completed",
    ]
    assert len(ended(player.events)[task]) == 1
