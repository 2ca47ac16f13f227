"""A whole fleet, stopped, put back to an older copy of its database, and started again."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.postgres import NOT_DURABLE, EmbeddedPostgres
from deploy.local.process import Child
from deploy.models.control import ScriptedModel
from shared.migrate import migrate
from tests.acceptance.player import Player, ended
from tests.clients import http_client
from tests.nursery import BornFleet


@pytest.fixture
def own_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A migrated Postgres that a test may stop and put back."""
    folder = tmp_path_factory.mktemp("own") / "postgres"
    with EmbeddedPostgres(folder, settings=NOT_DURABLE) as server:
        migrate(server.url)
        yield server


async def test_players_go_on_after_a_restore(
    tmp_path: Path,
    own_postgres: EmbeddedPostgres,
    redis_url: str,
    scripted_model: ScriptedModel,
) -> None:
    (tmp_path / "stories").mkdir()
    with BornFleet(
        tmp_path,
        postgres=own_postgres.url,
        redis=redis_url,
        model=scripted_model.url,
        model_path="direct",
        story_folders=str(tmp_path / "stories"),
    ) as fleet:
        gateway, worker = fleet.add_gateway(), fleet.add_worker()
        async with http_client(fleet.url, timeout=60) as http:
            player = await Player.begin(http, agent="companion")
            await player.result(player.opening)
            copy = _copied(own_postgres, gateway, worker)
            before = player.after
            lost = await player.act({"type": "say", "text": "This will be lost."}, "lost")
            await player.result(lost["task_id"])
            known = player.after
            assert known > before
            _put_back(own_postgres, copy, gateway, worker)

            # The client sends again what has no answer any more, and goes on from what it knows.
            again = await player.act({"type": "say", "text": "This will be lost."}, "lost")
            assert again["task_id"] != lost["task_id"]
            await player.result(again["task_id"])
            page = (await http.get(f"/v1/sessions/{player.id}/events?after={known}")).json()

    jump = page["gaps"][0]
    assert jump["from"] == known + 1
    new = [event["seq"] for event in player.events if event["seq"] > known]
    assert new == list(range(jump["to"] + 1, jump["to"] + 1 + len(new)))
    assert [event["seq"] for event in page["events"]] == new
    assert list(ended(player.events)) == [player.opening, lost["task_id"], again["task_id"]]
    assert any(
        "the database changed" in line for child in (gateway, worker) for line in child.output()
    )


def _copied(server: EmbeddedPostgres, *children: Child) -> Path:
    for child in children:
        child.stop()
    server.stop()
    copy = server.folder.parent / "backup"
    subprocess.run(["cp", "-a", server.data, copy], check=True)
    server.start()
    for child in children:
        child.start()
    return copy


def _put_back(server: EmbeddedPostgres, copy: Path, *children: Child) -> None:
    for child in children:
        child.stop()
    server.stop()
    shutil.rmtree(server.data)
    subprocess.run(["cp", "-a", copy, server.data], check=True)
    server.start()
    for child in children:
        child.start()
