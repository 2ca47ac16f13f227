"""Runs the page's tests, which are node's, and its scenarios in Debian's or anyone's chromium.

The scenarios run against the stub gateway. `FIRESIDE_PAGE_URL` names a real server to run them
against instead, and `FIRESIDE_PAGE_CONTROL`, where `POST /restart` kills and restarts it: see
reader.mjs.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MODULES = HERE / "node_modules"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
OLDEST_NODE = 20

# A machine that is busy with other things may take this long over a file of scenarios.
SECONDS = 400


@pytest.fixture(scope="module")
def node() -> str:
    """The path of node, or a skip."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("node is not installed, and the page's tests are node's")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    if int(version.stdout.lstrip("v").split(".")[0]) < OLDEST_NODE:
        pytest.skip(f"node is older than {OLDEST_NODE}: {version.stdout.strip()}")
    return found


@pytest.fixture(scope="module")
def chromium() -> str:
    """The path of a chromium, or a skip."""
    named = os.environ.get("FIRESIDE_CHROMIUM")
    found = named or next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no chromium is installed (Debian: apt-get install chromium)")
    return found


@pytest.fixture(scope="module")
def modules(node: str) -> Path:
    """The node modules of the lock file, installed if they are not those."""
    installed = MODULES / ".package-lock.json"
    lock = HERE / "package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        npm = shutil.which("npm", path=f"{Path(node).parent}{os.pathsep}{os.environ['PATH']}")
        if npm is None:
            pytest.skip("npm is not installed, and the scenarios need playwright-core")
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        installed.touch()
    return MODULES


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    """The environment that names the server under test."""
    if url := os.environ.get("FIRESIDE_PAGE_URL"):
        control = os.environ.get("FIRESIDE_PAGE_CONTROL", "")
        yield {"FIRESIDE_PAGE_URL": url.rstrip("/"), "FIRESIDE_PAGE_CONTROL": control}
        return
    command = [sys.executable, "-m", "tests.browser.stub_gateway"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as stub:
        assert stub.stdin is not None
        assert stub.stdout is not None
        urls = json.loads(stub.stdout.readline())
        yield {
            "FIRESIDE_PAGE_URL": urls["page"],
            "FIRESIDE_PAGE_CONTROL": urls["control"],
            "FIRESIDE_PAGE_STUB": "1",
        }
        stub.stdin.close()
        assert stub.wait(timeout=10) == 0


def run(node: str, file: Path, env: dict[str, str]) -> None:
    """Run one file of node's tests; its output is the message if one fails."""
    command = [node, "--test", "--test-reporter=spec", str(file)]
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


@pytest.mark.parametrize("file", ["words", "session", "connection"])
def test_logic(node: str, file: str) -> None:
    run(node, HERE / "logic" / f"{file}.test.mjs", {})


@pytest.mark.parametrize("file", ["reading", "failures", "access"])
def test_scenarios(
    node: str, modules: Path, chromium: str, server: dict[str, str], file: str
) -> None:
    assert (modules / "playwright-core").is_dir()
    run(node, HERE / "scenarios" / f"{file}.test.mjs", {**server, "FIRESIDE_CHROMIUM": chromium})


def test_the_packages_are_pinned_and_come_from_the_public_registry() -> None:
    wanted = json.loads((HERE / "package.json").read_text())["devDependencies"]
    locked = json.loads((HERE / "package-lock.json").read_text())["packages"]

    for name, version in wanted.items():
        package = locked[f"node_modules/{name}"]
        assert package["version"] == version
        assert package["integrity"].startswith("sha512-")
        assert package.get("resolved", "https://registry.npmjs.org/").startswith(
            "https://registry.npmjs.org/"
        )
