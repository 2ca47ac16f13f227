"""A fleet that serves the agent of these tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.fleet import Fleet
from deploy.models.control import ScriptedModel
from tests.nursery import BornFleet


@pytest.fixture
def times() -> dict[str, str]:
    """So long that a machine which stood still costs nobody a lease or a process."""
    return {"lease_seconds": "6", "stuck_seconds": "30"}


@pytest.fixture
def fleet(
    tmp_path: Path,
    postgres_url: str,
    redis_url: str,
    scripted_model: ScriptedModel,
    times: dict[str, str],
) -> Iterator[Fleet]:
    (tmp_path / "stories").mkdir()
    (tmp_path / "notes").touch()
    with BornFleet(
        tmp_path,
        postgres=postgres_url,
        redis=redis_url,
        model=scripted_model.url,
        model_path="direct",
        story_folders=str(tmp_path / "stories"),
        agent_modules="tests.poison.agents",
        notes=str(tmp_path / "notes"),
        heartbeat_seconds="0.5",
        sweep_seconds="0.25",
        **times,
    ) as fleet:
        yield fleet
        # An orderly end of a worker takes a second and more.
        for child in [*fleet.workers, *fleet.gateways]:
            child.kill()
