"""The models of a real worker: its settings name more than one."""

import httpx
import pytest

from deploy.local.fleet import Fleet
from deploy.models.control import ScriptedModel
from tests.acceptance.player import Player


@pytest.fixture
def fleet(fleet: Fleet) -> Fleet:
    fleet.env["FIRESIDE_MODEL_CHEAP"] = "openai/small"
    return fleet


async def test_what_needs_no_strong_model_is_asked_of_the_cheap_one(
    http: httpx.AsyncClient, scripted_model: ScriptedModel
) -> None:
    player = await Player.begin(http, agent="companion")
    said = await player.act({"type": "say", "text": "Good morning."})
    await player.until_ended(said["task_id"])

    assert [one.body["model"] for one in scripted_model.requests()] == ["small"]
