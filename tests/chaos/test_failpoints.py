"""A worker is killed or frozen at every step of its way, and nobody can tell from the outcome."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from pydantic import SecretStr

from deploy.local.model import ScriptedModelProcess
from deploy.local.postgres import EmbeddedPostgres
from deploy.local.valkey import EmbeddedValkey
from deploy.models.control import ScriptedModel
from shared.redis_pool import connect_redis
from shared.settings import load_settings
from shared.store.database import Database
from tests.acceptance.fleet import Fleet
from tests.chaos.failpoints import CASES, SETTINGS, Case, Played, Stage
from tests.chaos.nursery import Nursery
from tests.chaos.recorder import Recorder

AT_ONCE = 8
"""Cases on their way at once: most of their time is waiting for leases to run out."""


@pytest.fixture(scope="module")
def fleet(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: EmbeddedPostgres,
    database_template: str,
    scripted_model_process: ScriptedModelProcess,
) -> Iterator[Fleet]:
    """One gateway, and the worker that takes over."""
    folder = tmp_path_factory.mktemp("failpoints")
    url = postgres_server.create_database("failpoints", template=database_template)
    (folder / "stories").mkdir()
    with (
        EmbeddedValkey(folder / "valkey", durable=False) as valkey,
        Fleet(
            folder,
            postgres=url,
            redis=valkey.url,
            model=scripted_model_process.url,
            story_folders=str(folder / "stories"),
            **SETTINGS,
        ) as fleet,
    ):
        fleet.add_gateway()
        fleet.add_worker()
        yield fleet


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(
    fleet: Fleet, scripted_model_process: ScriptedModelProcess, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stage]:
    """All that the cases share."""
    model = ScriptedModel(scripted_model_process.url)
    model.reset()
    env = fleet.env
    urls = {
        "database_url": SecretStr(env["DATABASE_URL"]),
        "redis_url": SecretStr(env["REDIS_URL"]),
    }
    settings = load_settings().model_copy(update=urls)
    db, redis = Database.from_settings(settings), connect_redis(settings)
    async with (
        httpx.AsyncClient(base_url=fleet.url, timeout=60) as http,
        Nursery.open() as nursery,
        Recorder.open() as recorder,
    ):
        yield Stage(
            postgres=env["DATABASE_URL"],
            redis_url=env["REDIS_URL"],
            env=env,
            folder=tmp_path_factory.mktemp("cases"),
            db=db,
            redis=redis,
            settings=settings,
            http=http,
            model=model,
            nursery=nursery,
            recorder=recorder,
        )
    await redis.aclose()
    await db.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ahead(
    request: pytest.FixtureRequest, stage: Stage
) -> AsyncIterator[Mapping[Case, asyncio.Task[None]]]:
    """The cases that will be asked for, some of them under way before it is their turn."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def play(number: int, case: Case) -> None:
        async with slots:
            await Played(stage, case, number).play()

    chosen = [
        item.callspec.params["case"]
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.originalname == test_what_a_worker_leaves_behind.__name__
    ]
    tasks = {
        case: asyncio.ensure_future(play(number, case)) for number, case in enumerate(chosen)
    }
    yield tasks
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
async def test_what_a_worker_leaves_behind(
    case: Case, ahead: Mapping[Case, asyncio.Task[None]]
) -> None:
    await ahead[case]
