"""`make up` as a user has it: our own processes on the embedded servers."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import JsonValue

from deploy.local.server import ROOT
from tests.ports import promised_port


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("up") / "home"


@pytest.fixture(scope="module")
def address(home: Path) -> Iterator[str]:
    """The URL that a launcher with the scripted model prints when it is ready."""
    environment = {
        **os.environ,
        "PORT": str(promised_port()),
        "FIRESIDE_HOME": str(home),
        "FIRESIDE_LLM": "scripted",
        "FIRESIDE_EMBEDDINGS": "hashing",
        # As on a machine whose way out is a proxy: it can't lead back to the model here.
        **dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY"), "http://127.0.0.1:1"),
        "NO_PROXY": "intranet.example",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "deploy.local"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as launcher:
        assert launcher.stdout is not None
        line = next(line for line in launcher.stdout if "ready after" in line)
        yield line.split()[-1]
        launcher.send_signal(signal.SIGINT)
        output, _ = launcher.communicate(timeout=60)

    assert launcher.returncode == 0
    assert output.endswith("fireside: stopped\n")


def call(method: str, url: str, body: JsonValue = None) -> dict[str, JsonValue]:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, JsonValue] = json.load(response)
        return answer


def result_of(address: str, task_id: JsonValue) -> dict[str, JsonValue]:
    """What a task has given when it is done."""
    task: dict[str, JsonValue] = {"finished_at": None}
    while task["finished_at"] is None:
        task = call("GET", f"{address}v1/tasks/{task_id}?wait=25")
    assert task["status"] == "completed", task["error"]
    assert isinstance(task["result"], dict)
    return task["result"]


def test_a_story_begins(address: str) -> None:
    session = call("POST", f"{address}v1/sessions", {"agent": "story"})

    result = result_of(address, session["task_id"])

    assert result["text"]
    assert result["choices"]


def test_the_model_answers(address: str) -> None:
    session = call("POST", f"{address}v1/sessions", {"agent": "companion"})
    said: dict[str, JsonValue] = {"type": "say", "text": "Hello."}
    task = call("POST", f"{address}v1/sessions/{session['id']}/actions", said)

    assert result_of(address, task["task_id"])["text"]


@pytest.mark.usefixtures("address")
def test_vectors_are_made(home: Path) -> None:
    deadline = time.monotonic() + 60
    log = home / "logs" / "embed.log"
    while "making vectors" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)

    assert "hashing-384" in log.read_text()
