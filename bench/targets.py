"""The servers that are compared, and how each is started.

A target's processes are ours to start and to charge for: `parts` says which belong to the
application, to Postgres and to Redis. Peers run in environments of their own, below one folder.
"""

import os
import shutil
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp

from bench import clients
from bench.clients import Client
from bench.servers import MANY_SOCKETS, server
from bench.servers import Server as FiresideServer
from bench.stalls import Stalls
from bench.workloads import UnknownNameError
from deploy.local.model import ScriptedModelProcess
from deploy.local.postgres import EmbeddedPostgres
from deploy.local.process import Child, Command
from deploy.local.server import HOST, ROOT, Server
from deploy.local.valkey import EmbeddedValkey

PEERS = Path(__file__).parent / "peers"
# What peers' pools are sized for: no target is to fail for want of a connection.
ROOMY = {"max_connections": "400", "shared_buffers": "128MB"}


@dataclass(frozen=True)
class Running:
    """A target that has been started; `client` speaks its protocol over a pool of connections."""

    client: Callable[[aiohttp.ClientSession], Client]
    app: Mapping[str, list[int]] = field(default_factory=dict)
    postgres: list[int] = field(default_factory=list)
    redis: list[int] = field(default_factory=list)
    postgres_url: str | None = None
    redis_url: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    stalls: Stalls | None = None
    makes_vectors: bool = False

    @property
    def app_pids(self) -> list[int]:
        """Gateways and workers, or whatever else the application runs."""
        return [pid for pids in self.app.values() for pid in pids]


@dataclass(frozen=True)
class Ground:
    """What a target finds: a folder of its own, the model, and the environments of peers."""

    folder: Path
    stack: ExitStack
    model: ScriptedModelProcess
    workers: int = 1
    peers: Path | None = None

    def program(self, environment: str, name: str) -> str:
        """A program of a peer's environment."""
        assert self.peers is not None
        return str((self.peers / environment / "bin" / name).absolute())

    def stores(self) -> tuple[EmbeddedPostgres, EmbeddedValkey]:
        """A durable Postgres and Valkey for this target alone."""
        postgres = EmbeddedPostgres(self.folder / "postgres", settings=ROOMY)
        valkey = EmbeddedValkey(self.folder / "valkey")
        return self.stack.enter_context(postgres), self.stack.enter_context(valkey)

    def env(self, **more: str) -> dict[str, str]:
        """The environment of a target's process."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return {**kept, "MODEL_URL": self.model.url, "OPENAI_API_KEY": "none", **more}

    def copied(self, peer: str) -> Path:
        """The peer's files, where it may write beside them."""
        return shutil.copytree(PEERS / peer, self.folder / "files", dirs_exist_ok=True)


@dataclass(frozen=True)
class Target:
    """A way to start a server; `environment` is what has to be installed for it, if anything."""

    name: str
    start: Callable[[Ground], Running]
    note: str = ""
    environment: str | None = None


class Program(Server):
    """A server of which only the command line is known; ready when its port takes connections."""

    def __init__(self, argv: Callable[[int], Sequence[str]], command: Command) -> None:
        super().__init__(None, command)
        self._argv = argv

    def prepare(self) -> None:
        """Put this start's port into the command line."""
        self.command = replace(self.command, argv=self._argv(self.port))

    def probe(self) -> bool:
        """Connect once."""
        try:
            socket.create_connection((HOST, self.port), timeout=1).close()
        except OSError:
            return False
        return True


class CeleryWorker(Child):
    """Celery's own command; ready when it says so."""

    def probe(self) -> bool:
        """Look into its log."""
        return any("ready." in line for line in self.output())


def _program(
    ground: Ground, argv: Callable[[int], Sequence[str]], env: Mapping[str, str], cwd: Path
) -> tuple[str, Program]:
    command = Command(
        name="app", argv=(), env=env, cwd=cwd, log=ground.folder / "app.log", start_timeout=90.0
    )
    started = ground.stack.enter_context(Program(argv, command))
    return f"http://{HOST}:{started.port}", started


def _fireside(model_path: str, *, vectors: bool = False) -> Callable[[Ground], Running]:
    def start(ground: Ground) -> Running:
        running = ground.stack.enter_context(
            server(
                ground.folder,
                workers=ground.workers,
                model_path=model_path,
                model=ground.model,
                settings=MANY_SOCKETS | ({"embeddings": "minilm"} if vectors else {}),
                vectors=vectors,
            )
        )
        return as_running(running, lambda http: clients.Fireside(running.url, http))

    return start


def as_running(
    fireside: FiresideServer, client: Callable[[aiohttp.ClientSession], Client]
) -> Running:
    """Our server as a target."""
    return Running(
        client=client,
        app={
            part: fireside.parts[part]
            for part in ("gateway", "worker", "embed")
            if part in fireside.parts
        },
        postgres=fireside.parts["postgres"],
        redis=fireside.parts["valkey"],
        postgres_url=fireside.postgres_url,
        redis_url=fireside.redis_url,
        headers=fireside.headers,
        stalls=fireside.stalls,
        makes_vectors="embed" in fireside.parts,
    )


def _naive(concurrency: int) -> Callable[[Ground], Running]:
    def start(ground: Ground) -> Running:
        postgres, valkey = ground.stores()
        env = ground.env(
            DATABASE_URL=postgres.url,
            REDIS_URL=valkey.url,
            LITELLM_LOCAL_MODEL_COST_MAP="True",
        )
        uvicorn = (sys.executable, "-m", "uvicorn", "bench.naive.gateway:app", "--host", HOST)
        url, gateway = _program(
            ground,
            lambda port: (*uvicorn, "--port", str(port), "--log-level", "warning"),
            env,
            ROOT,
        )
        celery = (sys.executable, "-m", "celery", "-A", "bench.naive.worker", "worker")
        worker = CeleryWorker(
            Command(
                name="worker",
                argv=(*celery, "--concurrency", str(concurrency), "--loglevel", "INFO"),
                env=env,
                cwd=ROOT,
                log=ground.folder / "worker.log",
                start_timeout=90.0,
            )
        )
        ground.stack.enter_context(worker)
        return Running(
            client=lambda http: clients.Naive(url, http),
            app={"gateway": [gateway.pid], "worker": [worker.pid]},
            postgres=[postgres.pid],
            redis=[valkey.pid],
            postgres_url=postgres.url,
            redis_url=valkey.url,
        )

    return start


def _direct(ground: Ground) -> Running:
    return Running(client=lambda http: clients.Direct(ground.model.url, http))


def _langgraph(ground: Ground) -> Running:
    program = ground.program("v_lg", "langgraph")
    env = ground.env(LOG_LEVEL="WARNING", LANGSMITH_TRACING="false", LANGGRAPH_CLI_NO_ANALYTICS="1")
    env["PATH"] = f"{Path(program).parent}:{env['PATH']}"
    options = ("--no-browser", "--no-reload", "--n-jobs-per-worker", "250")
    url, app = _program(
        ground,
        lambda port: (program, "dev", *options, "--host", HOST, "--port", str(port)),
        env,
        ground.copied("langgraph"),
    )
    return Running(client=lambda http: clients.LangGraph(url, http), app={"server": [app.pid]})


def _aegra(ground: Ground) -> Running:
    postgres, valkey = ground.stores()
    program = ground.program("v_aegra", "aegra")
    env = ground.env(
        DATABASE_URL=postgres.url,
        REDIS_URL=valkey.url,
        REDIS_BROKER_ENABLED="true",
        REDIS_MAX_CONNECTIONS="2000",
        WORKER_COUNT="1",
        N_JOBS_PER_WORKER="250",
        SQLALCHEMY_POOL_SIZE="60",
        LANGGRAPH_MAX_POOL_SIZE="60",
        ENV_MODE="PRODUCTION",
        LOG_LEVEL="WARNING",
        OTEL_SDK_DISABLED="true",
        CRON_ENABLED="false",
    )
    env["PATH"] = f"{Path(program).parent}:{env['PATH']}"
    url, app = _program(
        ground,
        lambda port: (program, "serve", "--host", HOST, "--port", str(port), "-c", "aegra.json"),
        env,
        ground.copied("langgraph"),
    )
    return _with_stores(app, postgres, valkey, lambda http: clients.LangGraph(url, http))


def _agno(jobs: int | None) -> Callable[[Ground], Running]:
    def start(ground: Ground) -> Running:
        postgres, valkey = ground.stores()
        env = ground.env(
            DATABASE_URL=postgres.url,
            REDIS_URL=f"{valkey.url}?max_connections=2000",
            AGNO_TELEMETRY="false",
            **({"JOBS": str(jobs)} if jobs else {}),
        )
        uvicorn = ground.program("v_agno", "uvicorn")
        options = ("--host", HOST, "--log-level", "warning")
        url, app = _program(
            ground,
            lambda port: (uvicorn, "served:app", *options, "--port", str(port)),
            env,
            ground.copied("agno"),
        )
        client = clients.AgnoQueue if jobs else clients.Agno
        return _with_stores(app, postgres, valkey, lambda http: client(url, http))

    return start


def _adk(ground: Ground) -> Running:
    postgres, valkey = ground.stores()
    program = ground.program("v_adk", "adk")
    env = ground.env(LITELLM_LOCAL_MODEL_COST_MAP="True", OTEL_SDK_DISABLED="true")
    database = postgres.url.replace("://", "+asyncpg://", 1)
    files = ground.copied("adk")
    options = ("--log_level", "error", "--session_service_uri", database)
    url, app = _program(
        ground,
        lambda port: (program, "api_server", "--port", str(port), *options, str(files)),
        env,
        files,
    )
    return _with_stores(app, postgres, valkey, lambda http: clients.Adk(url, http))


def _with_stores(
    app: Program,
    postgres: EmbeddedPostgres,
    valkey: EmbeddedValkey,
    client: Callable[[aiohttp.ClientSession], Client],
) -> Running:
    return Running(
        client=client,
        app={"server": [app.pid]},
        postgres=[postgres.pid],
        redis=[valkey.pid],
        postgres_url=postgres.url,
        redis_url=valkey.url,
    )


TARGETS = {
    target.name: target
    for target in (
        Target("direct", _direct, "the model alone: what no server can be better than"),
        Target("fireside", _fireside("direct"), "durable, keys on, the direct way to the model"),
        Target(
            "fireside-vectors",
            _fireside("direct", vectors=True),
            "the same with the process that makes vectors (MiniLM), as `make up` runs it",
        ),
        Target("fireside-litellm", _fireside("litellm"), "as fireside, by way of litellm"),
        Target("naive", _naive(4), "FastAPI, Celery prefork x4, litellm, Redis pub/sub"),
        Target("naive32", _naive(32), "the same, prefork x32"),
        Target("langgraph", _langgraph, "langgraph dev, in memory, 250 jobs", "v_lg"),
        Target("aegra", _aegra, "aegra serve, Postgres and Redis, 250 jobs", "v_aegra"),
        Target("agno", _agno(None), "AgentOS, Postgres, no queue", "v_agno"),
        Target("agno-queue", _agno(250), "AgentOS, its durable queue, 250 jobs", "v_agno"),
        Target("adk", _adk, "adk api_server, Postgres", "v_adk"),
    )
}


def chosen(names: str) -> list[Target]:
    """The targets of a list with commas; raises UnknownNameError."""
    found = list(dict.fromkeys(name for name in names.replace(",", " ").split() if name))
    unknown = [name for name in found if name not in TARGETS]
    if unknown or not found:
        raise UnknownNameError(
            f"no target {', '.join(unknown) or names!r}; there are {', '.join(TARGETS)}"
        )
    return [TARGETS[name] for name in found]


def missing(target: Target, peers: Path | None) -> str | None:
    """Why a target can't be started here, or None if it can."""
    if target.environment is None:
        return None
    if peers is None:
        return f"{target.name} needs PEERS=DIR, the folder of the environment {target.environment}"
    if not (peers / target.environment / "bin").is_dir():
        return f"{target.name} needs the environment {target.environment}, not in {peers}"
    return None
