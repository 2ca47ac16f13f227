"""Models and players that say too much at once: all of it arrives, and nobody else waits for it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from websockets.asyncio.client import connect

from bench.seeding import seed
from deploy.local.fleet import Fleet
from deploy.models.control import ScriptedModel
from tests.acceptance.player import Frame, Player, ended
from tests.waiting import PATIENCE

QUICK = '[[script: {"chunks": ["one ", "two"], "duration": 0.1}]]'
QUICK_SECONDS = 20.0
"""How long an innocent's turn may take on a machine that stands still in between; 0.2 s of it is
the model's."""

FLOODS = 3
"""Times that a model says too much while the innocents play, at least."""

TURNS = 3
"""Turns that the innocents take meanwhile, at least."""

TOO_MUCH = {
    "ten thousand chunks of a character": {
        "text": "0123456789" * 1000,
        "split": "chars",
        "duration": 2.0,
    },
    "the same at once": {"text": "0123456789" * 1000, "split": "chars"},
    "one chunk of a megabyte": {"text": "0123456789" * 100_000, "split": "whole"},
}


@asynccontextmanager
async def innocents(http: httpx.AsyncClient) -> AsyncIterator[list[float]]:
    """Three players who go on as ever, to the end of the turn that each is in when the block ends;
    yields the seconds that their turns took.
    """
    players = await asyncio.gather(*(Player.begin(http, agent="companion") for _ in range(3)))
    await asyncio.gather(*(player.until_ended(player.opening) for player in players))
    took: list[float] = []
    over = asyncio.Event()

    async def go_on(player: Player) -> None:
        while not over.is_set():
            began = time.monotonic()
            accepted = await player.act({"type": "say", "text": QUICK})
            await player.until_ended(accepted["task_id"])
            took.append(time.monotonic() - began)

    async with asyncio.TaskGroup() as playing:
        for player in players:
            playing.create_task(go_on(player))
        try:
            yield took
        finally:
            over.set()


async def told(player: Player, action: Frame, seconds: float) -> list[Frame]:
    """All frames from an action to its end; the client takes frames of any size."""
    base = str(player.http.base_url).replace("http", "ws", 1).rstrip("/")
    frames = []
    async with (
        asyncio.timeout(seconds),
        connect(f"{base}/ws/sessions/{player.id}?after={player.after}", max_size=None) as socket,
    ):
        task = (await player.act(action))["task_id"]
        while True:
            frame = json.loads(await socket.recv())
            player.take(frame)
            frames.append(frame)
            if task in ended(player.events):
                return frames


def text_of(frames: list[Frame]) -> str:
    """The assistant's whole message."""
    (message,) = [
        frame["data"]["message"]
        for frame in frames
        if frame["type"] == "message_end" and frame["data"]["message"]["role"] == "assistant"
    ]
    return str(message["content"][0]["text"])


@pytest.mark.parametrize("reply", TOO_MUCH.values(), ids=TOO_MUCH)
async def test_a_model_that_says_too_much(
    standing_direct: httpx.AsyncClient, scripted_model: ScriptedModel, reply: dict[str, object]
) -> None:
    http = standing_direct
    scripted_model.script({"match": {"user": "Tell me everything."}, "reply": reply})
    teller = await Player.begin(http, agent="companion")
    await teller.until_ended(teller.opening)

    async with innocents(http) as took:
        floods = 0
        while floods < FLOODS or len(took) < TURNS:
            frames = await told(teller, {"type": "say", "text": "Tell me everything."}, PATIENCE)
            floods += 1
            assert floods < 10 * FLOODS  # nobody waits for the whole of it

    assert text_of(frames) == reply["text"]
    streamed = [frame for frame in frames if frame["type"] == "message_update"]
    assert "".join(frame["delta"] for frame in streamed) in str(reply["text"])
    assert len(streamed) <= 500  # about one for 40 tokens or 0.1 s, never one for each chunk
    assert max(took) < QUICK_SECONDS
    assert len(scripted_model.calls()) == floods + len(took)


async def test_a_session_of_ten_thousand_messages(
    standing_direct: httpx.AsyncClient, standing_direct_fleet: Fleet
) -> None:
    database = standing_direct_fleet.env["DATABASE_URL"]
    seeded = seed(database, "local", sessions=1, history=10_000)
    old = Player(standing_direct, {"id": seeded.ids[0], "task_id": ""})
    old.after = seeded.head

    async with innocents(standing_direct) as took:
        turns = 0
        while turns < 3 or len(took) < TURNS:  # they take theirs beside the long ones
            frames = await told(old, {"type": "say", "text": QUICK}, PATIENCE)
            assert text_of(frames) == "one two"
            turns += 1
            assert turns < 30

    assert max(took) < QUICK_SECONDS


async def test_a_message_of_sixty_kilobytes(
    standing_direct: httpx.AsyncClient, scripted_model: ScriptedModel
) -> None:
    http = standing_direct
    said = "\N{FIRE}" * 15_000  # four bytes each
    player = await Player.begin(http, agent="companion")
    await player.until_ended(player.opening)

    frames = await told(player, {"type": "say", "text": said}, PATIENCE)
    too_long = await http.post(
        f"/v1/sessions/{player.id}/actions", json={"type": "say", "text": "x" * 60_000}
    )

    assert frames[-1]["type"] == "task_completed"
    (seen,) = scripted_model.requests(last=1)
    assert said in json.dumps(seen.body, ensure_ascii=False)
    assert too_long.status_code == 413
    assert "x" * 100 not in too_long.text
