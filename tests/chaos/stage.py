"""The fleet of one run, with servers of its own that may be struck."""

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from deploy.local.fleet import Fleet, Gateway, Worker
from deploy.local.model import ScriptedModelProcess
from deploy.local.postgres import EmbeddedPostgres
from deploy.local.process import Child
from deploy.local.valkey import EmbeddedValkey
from deploy.models.control import ScriptedModel
from shared.migrate import migrate
from tests.chaos.plan import GATEWAYS, WORKERS

Front: TypeAlias = Callable[[EmbeddedPostgres, Path], AbstractContextManager[str]]
"""Stands between the fleet and Postgres, as a pooler does: gives the URL that the fleet uses."""

Settings: TypeAlias = Mapping[str, str]
"""Settings of the fleet as `Fleet` takes them."""

UNCHANGED: Settings = MappingProxyType({})

SETTINGS = {"fsync": "off"}
"""An immediate stop ends processes, not the machine: what Postgres has written, the kernel keeps.
Without this a stop takes as long as the disk that others use, up to eight seconds."""

STORY = """\
# title: The Well
# public: depth
VAR depth = 0
-> well
=== well ===
A well, and a bucket on a rope.
+ [Let the bucket down.]
    ~ depth = depth + 1
    The rope runs out further. -> well
* [Go home.]
    You go home. -> END
"""


@dataclass(frozen=True, slots=True)
class Stage:
    """What runs: all of it is children of this process, by name."""

    postgres: EmbeddedPostgres
    redis: EmbeddedValkey
    model: ScriptedModel
    fleet: Fleet

    @property
    def processes(self) -> dict[str, Child]:
        """The gateways and workers by name."""
        return {child.name: child for child in [*self.fleet.workers, *self.fleet.gateways]}

    @property
    def workers(self) -> list[str]:
        """The names of the workers, which are also their keys to the model."""
        return [worker.name for worker in self.fleet.workers]


@contextmanager
def built(
    folder: Path, *, recorder: str, front: Front | None = None, settings: Settings = UNCHANGED
) -> Iterator[Stage]:
    """Start everything; the gateways and workers may not be ready yet.

    Call it from the main thread, so that no child outlives a driver that is killed.

    Args:
        recorder: the address that letters are posted to.
        settings: what is to be set otherwise than here.
    """
    stories = folder / "stories"
    stories.mkdir(parents=True)
    (stories / "well.ink").write_text(STORY)
    with ExitStack() as stack:
        postgres = stack.enter_context(EmbeddedPostgres(folder / "postgres", settings=SETTINGS))
        redis = stack.enter_context(EmbeddedValkey(folder / "valkey", durable=False))
        model = stack.enter_context(ScriptedModelProcess(log=folder / "model.log"))
        migrate(postgres.url)
        url = postgres.url if front is None else stack.enter_context(front(postgres, folder))
        fleet = Fleet(
            folder,
            postgres=url,
            redis=redis.url,
            model=model.url,
            database_pooler="none" if front is None else "transaction",
            **{
                "model_path": "direct",
                "model_first_token_seconds": "2.5",
                "model_stall_seconds": "2.5",
                "task_seconds": "60",
                "drain_seconds": "2",
                "consolidate_seconds": "0",  # the checker knows all tasks by who sent them
                "story_folders": str(stories),
                "agent_modules": "worker.story,worker.companion,tests.chaos.agents",
                "chaos_recorder": recorder,
                **settings,
            },
        )
        stage = Stage(postgres, redis, ScriptedModel(model.url), fleet)
        stack.callback(_kill_all, stage)
        for number in range(GATEWAYS):
            fleet.gateways.append(Gateway(f"gateway-{number}", fleet.env, folder))
        for number in range(WORKERS):
            name = f"worker-{number}"
            key = {"FIRESIDE_MODEL_API_KEY": name}  # by which the model's log tells them apart
            fleet.workers.append(Worker(name, fleet.env | key, folder))
        for child in stage.processes.values():
            child.spawn()
        yield stage


def _kill_all(stage: Stage) -> None:
    """End the fleet at once: it may be frozen, and nothing of it is needed any more."""
    for child in stage.processes.values():
        with contextlib.suppress(ProcessLookupError):
            child.signal(signal.SIGCONT)
            child.kill()
