"""Running node's tests from pytest."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent

# A machine that is busy with other things may take this long over a file of scenarios; a test that
# runs one has a mark with more, for pytest would end it after five minutes.
SECONDS = 900


def run(node: str, file: str, env: Mapping[str, str]) -> None:
    """Run one file of node's tests, named from this folder; its output tells which one fails."""
    command = [node, "--test", "--test-reporter=spec", file]
    done = subprocess.run(
        command,
        cwd=HERE,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
