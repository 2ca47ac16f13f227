"""Fireside's real processes for benchmarks: servers as `make up` starts them, keys on."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.programs import no_stories
from bench.stalls import Stalls
from deploy.local.fleet import PROGRAMS, Fleet
from deploy.local.model import ScriptedModelProcess
from deploy.local.postgres import EmbeddedPostgres
from deploy.local.process import Child, Command, run
from deploy.local.server import ROOT
from deploy.local.valkey import EmbeddedValkey
from deploy.models.control import ScriptedModel

USER = "bench"
MANY_SOCKETS = {"max_sockets_per_user": "10000"}
"""All players share one key, and so are one user."""


@dataclass(frozen=True)
class Server:
    """The fleet, a key for it, the model, the processes by part, and the servers' URLs."""

    fleet: Fleet
    key: str
    model: ScriptedModel
    parts: dict[str, list[int]]
    postgres_url: str
    redis_url: str
    stalls: Stalls

    @property
    def url(self) -> str:
        """Where the first gateway answers."""
        return self.fleet.url

    @property
    def headers(self) -> dict[str, str]:
        """What each request carries."""
        return {"Authorization": f"Bearer {self.key}"}


class Embedding(Child):
    """The process that makes vectors; ready once it has its model."""

    def __init__(self, env: Mapping[str, str], folder: Path) -> None:
        super().__init__(
            Command(name="embed", argv=PROGRAMS.embed, env=env, cwd=ROOT, log=folder / "embed.log")
        )

    def probe(self) -> bool:
        """Look into its log."""
        return any("making vectors" in line for line in self.output())


@contextmanager
def server(
    folder: Path,
    *,
    workers: int,
    model_path: str,
    gateways: int = 1,
    model: ScriptedModelProcess | None = None,
    postgres_settings: Mapping[str, str] | None = None,
    settings: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
    vectors: bool = False,
) -> Iterator[Server]:
    """Start everything; the key's user is USER.

    Args:
        model: the scripted model to use; None starts one.
        postgres_settings: beside those of `make up`.
        settings: further FIRESIDE_* settings of all processes, in lower case.
        env: what else is in their environment.
        vectors: start the process that makes vectors as well, as `make up` does; it is the part
            `embed`.
    """
    with ExitStack() as stack:
        postgres = stack.enter_context(
            EmbeddedPostgres(folder / "postgres", database="fireside", settings=postgres_settings)
        )
        valkey = stack.enter_context(EmbeddedValkey(folder / "valkey"))
        if model is None:
            model = stack.enter_context(ScriptedModelProcess(log=folder / "model.log"))
        ours = {
            "auth": "required",
            "model_path": model_path,
            "story_folders": no_stories(folder),
            **(settings or {}),
        }
        fleet = stack.enter_context(
            Fleet(folder, postgres=postgres.url, redis=valkey.url, model=model.url, **ours)
        )
        fleet.by_uvicorn = False
        _run(folder, fleet.env, "shared.migrate")
        key = _run(folder, fleet.env, "api.keys", "create", USER)[-1].split()[-1]
        stalls = Stalls(folder / "stalls")
        fleet.env.update({**stalls.env, **(env or {})})
        for _ in range(gateways):
            fleet.add_gateway()
        for _ in range(workers):
            fleet.add_worker()
        embed = [stack.enter_context(Embedding(fleet.env, folder)).pid] if vectors else []
        yield Server(
            fleet,
            key,
            ScriptedModel(model.url),
            {
                "gateway": [gateway.pid for gateway in fleet.gateways],
                "worker": [worker.pid for worker in fleet.workers],
                **({"embed": embed} if vectors else {}),
                "postgres": [postgres.pid],
                "valkey": [valkey.pid],
                "model": [model.pid],
            },
            postgres.url,
            valkey.url,
            stalls,
        )


def _run(folder: Path, env: Mapping[str, str], module: str, *arguments: str) -> list[str]:
    argv = [sys.executable, "-m", module, *arguments]
    log = folder / f"{module}.log"
    code, output = run(Command(name=module, argv=argv, env=env, cwd=ROOT, log=log))
    if code != 0:
        raise RuntimeError("\n".join(output))
    return output
