"""A fleet for each test that asks for one."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from deploy.local.fleet import Fleet
from deploy.local.model import ScriptedModelProcess
from deploy.local.postgres import EmbeddedPostgres
from deploy.local.server import ROOT
from deploy.local.valkey import EmbeddedValkey
from deploy.models.control import ScriptedModel
from shared.settings import Settings
from shared.store.database import Database
from tests.clients import http_client
from tests.nursery import BornFleet
from worker.publish import publish_stories

LONG_LEASE = "30"
"""Seconds that a machine which stands still does not use up: tests that look at single attempts."""


@pytest.fixture(scope="session")
def database_template(
    database_template: str,
    postgres_server: EmbeddedPostgres,
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """The same with the stories of these tests, checked: the first worker on an empty database
    takes seconds of CPU for them."""
    name = f"{database_template}_with_stories"
    url = postgres_server.create_database(name, template=database_template)
    folders = [str(ROOT / "stories"), str(with_gate(tmp_path_factory.mktemp("checked")))]
    asyncio.run(_publish(Settings(DATABASE_URL=url, story_folders=folders)))
    return name


async def _publish(settings: Settings) -> None:
    async with Database.opened(settings) as db:
        await publish_stories(db, settings)


def with_gate(folder: Path) -> Path:
    """A folder of stories in the folder, with GATE."""
    stories = folder / "stories"
    stories.mkdir()
    (stories / "gate.ink").write_text(GATE)
    return stories


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    """The folder of stories that the workers are given; a test may put some into it."""
    return with_gate(tmp_path)


@pytest.fixture
def fleet(
    tmp_path: Path, stories: Path, postgres_url: str, redis_url: str, scripted_model: ScriptedModel
) -> Iterator[Fleet]:
    """No process yet: a test adds the gateways and workers that it wants, and may end them."""
    with BornFleet(
        tmp_path,
        postgres=postgres_url,
        redis=redis_url,
        model=scripted_model.url,
        story_folders=str(stories),
        model_path="direct",
    ) as fleet:
        yield fleet
        end_at_once(fleet)


def end_at_once(fleet: Fleet) -> None:
    """End all processes: an orderly end of a worker takes a second and more."""
    for child in [*fleet.workers, *fleet.gateways]:
        child.kill()


@pytest.fixture(scope="session")
def standing_fleet(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: EmbeddedPostgres,
    database_template: str,
    scripted_model_process: ScriptedModelProcess,
) -> Iterator[Fleet]:
    """One gateway and one worker for all tests that leave them as they are."""
    folder = tmp_path_factory.mktemp("standing")
    url = postgres_server.create_database("standing", template=database_template)
    with _standing(folder, url, scripted_model_process.url) as fleet:
        yield fleet


@pytest.fixture(scope="session")
def standing_direct_fleet(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: EmbeddedPostgres,
    database_template: str,
    scripted_model_process: ScriptedModelProcess,
) -> Iterator[Fleet]:
    """The same, calling its model as most fleets of tests do: without litellm."""
    folder = tmp_path_factory.mktemp("direct")
    url = postgres_server.create_database("direct", template=database_template)
    with _standing(folder, url, scripted_model_process.url, model_path="direct") as fleet:
        yield fleet


@contextmanager
def _standing(folder: Path, postgres: str, model: str, **settings: str) -> Iterator[Fleet]:
    with (
        EmbeddedValkey(folder / "valkey", durable=False) as valkey,
        BornFleet(
            folder,
            postgres=postgres,
            redis=valkey.url,
            model=model,
            story_folders=f"{with_gate(folder)},{ROOT / 'stories'}",
            consolidate_seconds="0",  # no call of a model but those of the test that has it now
            response_cache_seconds="0",  # and none that another test has made
            lease_seconds=LONG_LEASE,  # nor a second attempt
            **settings,
        ) as fleet,
    ):
        fleet.add_gateway()
        fleet.add_worker()
        yield fleet
        end_at_once(fleet)


@pytest.fixture
async def standing(
    standing_fleet: Fleet, scripted_model: ScriptedModel
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the standing fleet, with the model reset."""
    async with http_client(standing_fleet.url, timeout=60) as client:
        yield client


@pytest.fixture
async def standing_direct(
    standing_direct_fleet: Fleet, scripted_model: ScriptedModel
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the standing fleet without litellm, with the model reset."""
    async with http_client(standing_direct_fleet.url, timeout=60) as client:
        yield client


@pytest.fixture
async def http(fleet: Fleet) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the fleet's first gateway, which is started with one worker."""
    fleet.add_gateway()
    fleet.add_worker()
    async with http_client(fleet.url, timeout=60) as client:
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
