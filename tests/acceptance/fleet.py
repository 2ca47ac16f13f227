"""Real gateways and workers, as an operator starts them, on the test session's servers."""

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

from deploy.local.process import Child, Command
from deploy.local.server import HOST, ROOT, HttpServer


class Gateway(HttpServer):
    """One gateway process; its port stays the same when it is started again."""

    path = "/readyz"

    def __init__(self, name: str, env: Mapping[str, str], folder: Path) -> None:
        command = Command(
            name=name,
            argv=[],
            env=env,
            cwd=ROOT,
            log=folder / f"{name}.log",
        )
        super().__init__(None, command)

    def spawn(self) -> None:
        argv = ["-m", "uvicorn", "api.app:app", "--host", HOST, "--port", str(self.port)]
        self.command = replace(
            self.command, argv=[sys.executable, *argv, "--ws", "websockets-sansio"]
        )
        super().spawn()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"


class Worker(Child):
    """One worker process; ready once its Celery says so."""

    def __init__(self, name: str, env: Mapping[str, str], folder: Path) -> None:
        super().__init__(
            Command(
                name=name,
                argv=[
                    *(sys.executable, "-m", "celery", "-A", "worker.app", "worker"),
                    *("--without-mingle", "--without-gossip", "--without-heartbeat"),
                ],
                env=env,
                cwd=ROOT,
                log=folder / f"{name}.log",
                stop_timeout=40,
            )
        )

    def probe(self) -> bool:
        return any("ready." in line for line in self.output())


class Fleet:
    """Gateways and workers over one Postgres, one Redis and one model."""

    def __init__(
        self, folder: Path, *, postgres: str, redis: str, model: str, **settings: str
    ) -> None:
        self._folder = folder
        self._env = {
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

    def add_gateway(self, *, wait: bool = True) -> Gateway:
        gateway = Gateway(f"gateway-{len(self.gateways)}", self._env, self._folder)
        self.gateways.append(gateway)
        _begin(gateway, wait=wait)
        return gateway

    def add_worker(self, *, wait: bool = True, **settings: str) -> Worker:
        env = {f"FIRESIDE_{name.upper()}": value for name, value in settings.items()}
        worker = Worker(f"worker-{len(self.workers)}", self._env | env, self._folder)
        self.workers.append(worker)
        _begin(worker, wait=wait)
        return worker

    @property
    def url(self) -> str:
        return self.gateways[0].url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in [*self.workers, *self.gateways]:
            child.stop()


def _begin(child: Child, *, wait: bool) -> None:
    """Start a process; without `wait` it is for the caller to see when it is ready."""
    if wait:
        child.start()
    else:
        child.spawn()
