"""The image: what is in it, how it runs, and that what is copied is enough to run."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

from deploy.local.fleet import Worker
from deploy.local.postgres import EmbeddedPostgres
from deploy.local.process import Command, run
from deploy.local.server import HttpServer
from tests.deploy.container_files import ROOT, instructions


def copied() -> list[str]:
    """What the build takes from the checkout."""
    return [
        source
        for name, arguments in instructions()
        if name == "COPY" and not arguments.startswith("--from")
        for source in arguments.split()[:-1]
    ]


def test_uv_is_the_release_that_the_makefile_takes() -> None:
    pinned = re.findall(r"^UV_VERSION := (\S+)", (ROOT / "Makefile").read_text(), re.MULTILINE)

    assert [f"UV_VERSION={pinned[0]}"] == [
        value for name, value in instructions() if name == "ARG" and value.startswith("UV_")
    ]


def test_the_image_has_what_runs_it_and_nothing_more() -> None:
    (sync,) = [words for name, words in instructions() if "uv sync" in words]
    flags = re.findall(r"--[a-z-]+(?: [a-z]+)?", sync.partition("uv sync")[2])
    export = subprocess.run(
        [
            ROOT / ".uv/bin/uv" if (ROOT / ".uv/bin/uv").exists() else "uv",
            *(
                "export",
                "--quiet",
                "--offline",
                "--no-emit-project",
                "--format",
                "requirements-txt",
            ),
            *("--frozen", "--no-dev", "--extra", "mcp"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    packages = re.findall(r"^([a-z0-9-]+)==.*\\$", export, re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    unwanted = {
        re.split(r"[\[<>=]", one)[0]
        for one in [
            *project["project"]["optional-dependencies"]["local"],
            *project["dependency-groups"]["dev"],
        ]
    } - {"mcp", "openai", "jsonschema", "pyyaml"}  # litellm and mcp bring these

    assert {"--frozen", "--no-dev", "--extra mcp", "--no-build"} <= set(flags)
    assert {"fastapi", "celery", "litellm", "mcp"} <= set(packages)
    assert unwanted & set(packages) == set()
    assert export.count("--hash=sha256:") >= len(packages)


def test_the_image_runs_without_root_and_is_told_to_stop_properly() -> None:
    steps = instructions()
    last = steps[max(i for i, (name, _) in enumerate(steps) if name == "FROM") :]
    found = dict(last)

    assert found["USER"] == "${UID}:${UID}"
    assert ("ARG", "UID=10001") in last
    assert found["STOPSIGNAL"] == "SIGTERM"
    assert found["WORKDIR"] == "/app"
    assert "PYTHONPATH=/app" in found["ENV"]
    assert json.loads(found["CMD"]) == ["python", "-m", "api"]
    assert not [words for name, words in last if name == "RUN" and "install" in words]


def test_the_build_sees_what_it_copies_and_no_secrets() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]

    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == set(copied())
    assert rules[-2:] == ["**/.env", "**/*.env"]


def test_git_never_sees_the_files_with_secrets() -> None:
    ignored = (ROOT / ".gitignore").read_text().splitlines()

    assert {".env", "worker.env", "deploy/kubernetes/secret.yaml"} <= set(ignored)


def test_what_is_copied_is_enough_to_run(
    tmp_path: Path, postgres_server: EmbeddedPostgres, redis_url: str
) -> None:
    app = tmp_path / "app"
    app.mkdir()
    for name in copied():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, app / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, app)
    steps = dict(instructions())
    programs = Path(sys.executable).parent
    command = Command(
        name="gateway",
        argv=json.loads(steps["CMD"]),
        env={
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(app),
            "PYTHONUNBUFFERED": "1",
            "DATABASE_URL": postgres_server.create_database("image"),
            "REDIS_URL": redis_url,
            "FIRESIDE_MODEL_PATH": "direct",
        },
        cwd=app,
        log=tmp_path / "gateway.log",
    )
    assert command.env is not None
    migrate = replace(
        command,
        name="migrate",
        argv=["python", "-m", "shared.migrate"],
        log=tmp_path / "migrate.log",
    )
    assert run(migrate) == (0, [])

    server = CopiedGateway(None, command)
    worker = Worker("worker", command.env, tmp_path)
    worker.command = replace(worker.command, cwd=app)
    with server, worker:
        check = json.loads(steps["HEALTHCHECK"].partition("CMD ")[2])
        healthy = replace(server.command, name="check", argv=check, log=tmp_path / "healthy.log")
        for _ in range(3):  # as often as docker asks
            code, output = run(healthy)
            if code == 0:
                break
        assert code == 0, output
    assert run(healthy)[0] != 0


class CopiedGateway(HttpServer):
    """The image's own command, on a free port."""

    def spawn(self) -> None:
        environment = {**(self.command.env or {}), "PORT": str(self.port)}
        self.command = replace(self.command, env=environment)
        super().spawn()
