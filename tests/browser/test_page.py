"""The page's logic under node, and its scenarios in a browser against the stub gateway.

`FIRESIDE_PAGE_URL` names another server to run the scenarios against, and `FIRESIDE_PAGE_CONTROL`
where `POST /kill` kills it and `POST /start` starts it again: see reader.mjs.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.browser.node import HERE, SECONDS, run

PUBLIC = "https://registry.npmjs.org/"


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    """The environment that names the server under test."""
    if url := os.environ.get("FIRESIDE_PAGE_URL"):
        control = os.environ.get("FIRESIDE_PAGE_CONTROL", "")
        yield {"FIRESIDE_PAGE_URL": url.rstrip("/"), "FIRESIDE_PAGE_CONTROL": control}
        return
    command = [sys.executable, "-m", "tests.browser.stub_gateway"]
    with subprocess.Popen(
        command, cwd=HERE.parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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
        assert stub.wait(timeout=60) == 0


@pytest.mark.parametrize("file", ["words", "session", "connection"])
def test_logic(node: str, file: str) -> None:
    run(node, f"logic/{file}.test.mjs", {})


@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("file", ["reading", "failures", "access", "key"])
def test_scenarios(node: str, browser: dict[str, str], server: dict[str, str], file: str) -> None:
    run(node, f"scenarios/{file}.test.mjs", {**browser, **server})


def test_the_packages_are_pinned_and_come_from_the_public_registry() -> None:
    wanted = json.loads((HERE / "package.json").read_text())["devDependencies"]
    locked = json.loads((HERE / "package-lock.json").read_text())["packages"]

    for name, version in wanted.items():
        package = locked[f"node_modules/{name}"]
        assert package["version"] == version
        assert package["integrity"].startswith("sha512-")
        assert package.get("resolved", PUBLIC).startswith(PUBLIC)
