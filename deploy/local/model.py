"""The model servers that can run here, each in a process of its own."""

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from deploy.local.process import Command
from deploy.local.server import HOST, ROOT, HttpServer


class ModelProcess(HttpServer):
    """An OpenAI-compatible server of `deploy.models`; `model` is what requests call it."""

    path = "/v1/models"
    module: str
    model: str

    def __init__(
        self,
        *,
        log: Path,
        port: int | None = None,
        arguments: tuple[str, ...] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._arguments = arguments
        command = Command(
            name="model",
            argv=(),
            log=log.absolute(),
            env={**os.environ, **(env or {})},
            cwd=ROOT,
            stop_timeout=5.0,
        )
        super().__init__(port, command)

    @property
    def url(self) -> str:
        """The base URL for an OpenAI client."""
        return f"http://{HOST}:{self.port}/v1"

    def prepare(self) -> None:
        """Put the port of this start into the command line."""
        argv = [sys.executable, "-m", self.module, "--port", str(self.port), *self._arguments]
        self.command = replace(self.command, argv=argv)


class ScriptedModelProcess(ModelProcess):
    """The scripted model: deterministic answers and faults, set at run time."""

    module = "deploy.models.scripted"
    model = "scripted"


class LocalModelProcess(ModelProcess):
    """A small real language model on one thread of this machine's processor."""

    module = "deploy.models.local"
    model = "smollm2"
