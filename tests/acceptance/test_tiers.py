"""The models that a worker's settings name are those that it calls."""

import httpx
import pytest

from deploy.local.fleet import Fleet
from deploy.models.control import ScriptedModel
from tests.acceptance.conftest import LONG_LEASE
from tests.acceptance.player import Player


@pytest.fixture
async def tiered(fleet: Fleet) -> Fleet:
    fleet.env |= {
        "FIRESIDE_MODEL": "openai/large",
        "FIRESIDE_MODEL_CHEAP": "openai/small",
        "FIRESIDE_MODEL_RETRIES": "0",
        "FIRESIDE_LEASE_SECONDS": LONG_LEASE,  # a second attempt would ask the models again
    }
    return fleet


async def test_small_talk_goes_to_the_cheap_model_and_what_is_deep_to_the_strong_one(
    tiered: Fleet, http: httpx.AsyncClient, scripted_model: ScriptedModel
) -> None:
    player = await Player.begin(http, agent="companion")
    small = await player.act({"type": "say", "text": "Hello there."})
    deep = await player.act({"type": "say", "text": "What is time?", "deep": True})
    for accepted in (small, deep):
        await player.result(accepted["task_id"])

    assert [one.body["model"] for one in scripted_model.requests()] == ["small", "large"]
    unpriced = [line for line in tiered.workers[0].output() if "has no price" in line]
    assert len(unpriced) == 2, "each model that may be called is named at the start"
