"""What the page's tests need of the machine: node, its modules, a chromium."""

import fcntl
import os
import shutil
import subprocess

import pytest

from tests.browser.node import HERE

CHROMIUM = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
OLDEST_NODE = 20


@pytest.fixture(scope="session")
def node() -> str:
    """The path of node, or a skip."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("node is not installed, and the page's tests are node's")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    if int(version.stdout.lstrip("v").split(".")[0]) < OLDEST_NODE:
        pytest.skip(f"node is older than {OLDEST_NODE}: {version.stdout.strip()}")
    return found


@pytest.fixture(scope="session")
def browser(node: str) -> dict[str, str]:
    """The environment that names a chromium, its driver installed; or a skip."""
    named = os.environ.get("FIRESIDE_CHROMIUM")
    found = named or next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no chromium is installed (Debian: apt-get install chromium)")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip(f"npm is not installed beside {node}; it brings the driver of the browser")
    _install(npm)
    return {"FIRESIDE_CHROMIUM": found}


def _install(npm: str) -> None:
    """Install the modules of the lock file, if they are not there already."""
    # Of several test processes one installs, and the others wait for it.
    with (HERE / "package.json").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _install_once(npm)


def _install_once(npm: str) -> None:
    installed = HERE / "node_modules" / ".package-lock.json"
    if (
        installed.exists()
        and installed.stat().st_mtime >= (HERE / "package-lock.json").stat().st_mtime
    ):
        return
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    installed.touch()
