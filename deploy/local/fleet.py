"""Several gateways and workers of this machine over servers that run: for tests and benchmarks."""

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

from deploy.local.launcher import Programs, says_ready
from deploy.local.process import Child, Command
from deploy.local.server import HOST, ROOT, HttpServer

PROGRAMS = Programs()
START_SECONDS = 180.0
"""How long a process may take until it serves: many may be starting on one busy machine."""


class Gateway(HttpServer):
    """One gateway process; its port stays the same when it is started again.

    Args:
        by_uvicorn: start it by uvicorn's own command instead of ours.
    """

    path = "/readyz"

    def __init__(
        self, name: str, env: Mapping[str, str], folder: Path, *, by_uvicorn: bool = True
    ) -> None:
        command = Command(
            name=name,
            argv=[],
            env=env,
            cwd=ROOT,
            log=folder / f"{name}.log",
            start_timeout=START_SECONDS,
        )
        super().__init__(None, command)
        self._env = env
        self._by_uvicorn = by_uvicorn

    def spawn(self) -> None:
        """Start the process on its port."""
        argv = PROGRAMS.gateway
        if self._by_uvicorn:
            uvicorn = (sys.executable, "-m", "uvicorn", "api.app:app", "--host", HOST)
            kept = ("--timeout-keep-alive", "75")  # as `python -m api`
            argv = (*uvicorn, *kept, "--port", str(self.port), "--ws", "websockets-sansio")
        self.command = replace(self.command, argv=argv, env={**self._env, "PORT": str(self.port)})
        super().spawn()

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{HOST}:{self.port}"


class Worker(Child):
    """One worker process; ready once its Celery says so."""

    def __init__(self, name: str, env: Mapping[str, str], folder: Path) -> None:
        super().__init__(
            Command(
                name=name,
                argv=(*PROGRAMS.worker, "-n", f"{name}@%h"),
                env=env,
                cwd=ROOT,
                log=folder / f"{name}.log",
                stop_timeout=40,
                start_timeout=START_SECONDS,
            )
        )

    def probe(self) -> bool:
        """Look into its log."""
        return says_ready(self.output())


class Fleet:
    """Gateways and workers over one Postgres, one Redis and one model; all end with its block.

    `by_uvicorn`: whether gateways are started by uvicorn's own command instead of ours;
    `gateway_type` and `worker_type`: what its processes are.

    Args:
        settings: further FIRESIDE_* settings of all processes, in lower case.
    """

    by_uvicorn = True
    gateway_type = Gateway
    worker_type = Worker

    def __init__(
        self, folder: Path, *, postgres: str, redis: str, model: str, **settings: str
    ) -> None:
        self._folder = folder
        self.env = {
            **{name: value for name, value in os.environ.items() if name in {"PATH", "HOME"}},
            "DATABASE_URL": postgres,
            "REDIS_URL": redis,
            "FIRESIDE_AUTH": "none",
            "FIRESIDE_MODEL": "openai/scripted",
            "FIRESIDE_MODEL_URL": model,
            "FIRESIDE_MODEL_API_KEY": "test",
            "FIRESIDE_LOG_FORMAT": "text",
            "PYTHONUNBUFFERED": "1",
            **{f"FIRESIDE_{name.upper()}": value for name, value in settings.items()},
        }
        self.gateways: list[Gateway] = []
        self.workers: list[Worker] = []

    def add_gateway(self) -> Gateway:
        """Start one more gateway."""
        name = f"gateway-{len(self.gateways)}"
        gateway = self.gateway_type(name, self.env, self._folder, by_uvicorn=self.by_uvicorn)
        self.gateways.append(gateway)
        gateway.start()
        return gateway

    def add_worker(self) -> Worker:
        """Start one more worker."""
        worker = self.worker_type(f"worker-{len(self.workers)}", self.env, self._folder)
        self.workers.append(worker)
        worker.start()
        return worker

    @property
    def url(self) -> str:
        """Where the first gateway answers."""
        return self.gateways[0].url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in [*self.workers, *self.gateways]:
            child.stop()
