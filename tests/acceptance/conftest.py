"""A fleet for each test that asks for one."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from deploy.models.control import ScriptedModel
from tests.acceptance.fleet import Fleet


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    """The folder of stories that the workers are given; a test may put some into it."""
    folder = tmp_path / "stories"
    folder.mkdir()
    (folder / "gate.ink").write_text(GATE)
    return folder


@pytest.fixture
def fleet(
    tmp_path: Path, stories: Path, postgres_url: str, redis_url: str, scripted_model: ScriptedModel
) -> Iterator[Fleet]:
    """No process yet: a test adds the gateways and workers that it wants."""
    with Fleet(
        tmp_path,
        postgres=postgres_url,
        redis=redis_url,
        model=scripted_model.url,
        story_folders=str(stories),
    ) as fleet:
        yield fleet


@pytest.fixture
async def http(fleet: Fleet) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the fleet's first gateway, which is started with one worker."""
    fleet.add_gateway()
    fleet.add_worker()
    async with httpx.AsyncClient(base_url=fleet.url, timeout=60) as client:
        yield client


GATE = """\
# title: The Gate
# public: courage
EXTERNAL roll(sides)
VAR courage = 1
-> gate
=== gate ===
A gate, and a guard who has not seen you.
+ [Wait and watch.]
    ~ courage = courage + 1
    He yawns. -> gate
* [Walk through.]
    { roll(6) + courage > 4: Nobody stops you. | A hand falls on your shoulder. }
    -> END
=== function roll(sides) ===
~ return RANDOM(1, sides)
"""
