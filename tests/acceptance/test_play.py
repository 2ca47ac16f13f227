"""Whole plays through the WebSocket: a real story, and a companion that uses a tool."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.acceptance.fleet import Fleet
from tests.acceptance.player import Frame, Player, ended
from tests.ink.test_intercept import PICKS, Seen, by_inkjs
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
    async with httpx.AsyncClient(base_url=fleet.url, timeout=60) as client:
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


async def test_a_companion_uses_a_tool(http: httpx.AsyncClient) -> None:
    player = await Player.begin(http, agent="companion")
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
