"""Consolidation by batches in real processes; one is killed while a batch is on its way."""

import json
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import TextClause, text

from deploy.local.fleet import Fleet
from deploy.models.control import ScriptedModel
from shared.settings import load_settings
from shared.store.database import Database
from tests.acceptance.player import Player
from tests.waiting import until

SAID = "I have moved to Graz."
FOUND = {
    "findings": [
        {
            "kind": "fact",
            "text": "The user lives in Graz.",
            "sources": [2],
            "quote": "moved to Graz",
        }
    ]
}
USAGE = {"prompt_tokens": 1000, "completion_tokens": 100}
PRICES = {
    "version": "test",
    "unit": "US dollars for a million tokens",
    "models": {"openai/scripted": [{"valid_from": "2020-01-01", "input": 2, "output": 8}]},
}
QUIET = text(
    """
    update sessions set consolidate_at = clock_timestamp(), updated_at = now() - interval '1 hour'
    where consolidate_at is not null
    """
)
"""What comes after ten minutes; with less of them the greeting might be read alone."""

LEASE_OVER = text("update consolidation_batches set next_at = clock_timestamp()")
"""What comes after five minutes."""

HALF = (1000 * 2 + 100 * 8) / Decimal(1_000_000) / 2


@pytest.fixture
async def batched(fleet: Fleet, tmp_path: Path) -> Fleet:
    prices = tmp_path / "prices.json"
    prices.write_text(json.dumps(PRICES))
    fleet.env |= {
        "FIRESIDE_CONSOLIDATE_BATCH": "openai",
        "FIRESIDE_SWEEP_SECONDS": "0.05",
        "FIRESIDE_PRICES": str(prices),
    }
    return fleet


@pytest.mark.parametrize("begun", [False, True])
async def test_a_quiet_session_is_read_by_a_batch_though_a_worker_is_killed(
    batched: Fleet, http: httpx.AsyncClient, scripted_model: ScriptedModel, begun: bool
) -> None:
    reading = {"system": "long-term memory"}
    scripted_model.script(
        {"match": reading, "reply": {"text": json.dumps(FOUND), "usage": USAGE}},
        {"reply": {"text": "Good."}},
    )
    # The provider never says whether it has begun; it has, or it has not.
    scripted_model.batches(silent=["create"], after=begun)
    player = await Player.begin(http, agent="companion")
    said = await player.act({"type": "say", "text": SAID})
    await player.result(said["task_id"])
    await run(batched, QUIET)
    await until(lambda: "create" in scripted_model.batches_standing()["asked"])
    batched.workers[0].kill()

    scripted_model.batches(polls=1)
    await run(batched, LEASE_OVER)
    batched.add_worker()

    async def knows() -> list[str]:
        found = await http.get("/v1/memories", params={"kind": "fact"})
        return [one["text"] for one in found.json()["memories"]]

    async def has_learned() -> bool:
        return bool(await knows())

    await until(has_learned, 60)
    assert await knows() == ["The user lives in Graz."]
    usage = (await http.get("/v1/usage", params={"by": "purpose"})).json()
    (paid,) = [row for row in usage["rows"] if row["purpose"] == "consolidation"]
    assert (paid["calls"], paid["input"], paid["output"]) == (1, 1000, 100)
    assert Decimal(str(paid["cost_usd"])) == HALF
    standing = scripted_model.batches_standing()
    assert (len(standing["batches"]), standing["asked"]["upload"]) == (1, 1)
    asked = [one for one in scripted_model.requests() if "long-term" in str(one.body)]
    assert len(asked) == 1


async def run(fleet: Fleet, statement: TextClause) -> None:
    url = {"database_url": SecretStr(fleet.env["DATABASE_URL"])}
    db = Database.from_settings(load_settings().model_copy(update=url))
    await db.run(statement)
    await db.close()
