"""`make up` as a user has it: our own processes on the embedded servers."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest
from pydantic import JsonValue

from deploy.local.ports import free_port
from deploy.local.server import ROOT


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL that a launcher with the scripted model prints when it is ready."""
    environment = {
        **os.environ,
        "PORT": str(free_port()),
        "FIRESIDE_HOME": str(tmp_path_factory.mktemp("up") / "home"),
        "FIRESIDE_LLM": "scripted",
        "FIRESIDE_EMBEDDINGS": "hashing",
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
    with urllib.request.urlopen(request, timeout=40) as response:
        answer: dict[str, JsonValue] = json.load(response)
        return answer


def test_a_story_begins(address: str) -> None:
    session = call("POST", f"{address}v1/sessions", {"agent": "story"})
    task = call("GET", f"{address}v1/tasks/{session['task_id']}?wait=25")

    assert task["status"] == "completed", task["error"]
    assert isinstance(task["result"], dict)
    assert task["result"]["text"]
    assert task["result"]["choices"]
