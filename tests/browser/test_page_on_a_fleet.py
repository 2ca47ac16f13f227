"""The same scenarios against real processes: a gateway, a worker, and both of them killed."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from deploy.local.fleet import Fleet
from deploy.models.control import ScriptedModel
from tests.browser.node import HERE, SECONDS, run
from tests.nursery import BornFleet

pytestmark = pytest.mark.timeout(SECONDS + 60)

ROOT = HERE.parents[1]
STORIES = ROOT / "stories"

PACE = {"FIRESIDE_PAGE_DICE": "1", "FIRESIDE_PAGE_PATIENCE": "60000"}

ANSWER = (
    "You say it into the fog \N{FOGGY}, and the fog keeps most of it.\n\nWhat is left comes back "
    "from the water as if *somebody else* had said it, and na\u00efvely meant every word. You wait "
    "a while longer, and count the lamps that you can see, and then those that you cannot."
)

DICE = {"name": "roll_dice", "arguments": {"sides": 20}}

# Slow enough that a reader sees it grow.
TELLING = {"text": ANSWER, "delay": 0.04}


def script(model: ScriptedModel, pieces: int | None = None) -> None:
    """Have the model talk at the pace of a model, and throw a die when it is asked to.

    Args:
        pieces: after so many of them an answer waits; None lets all go on.
    """
    telling: dict[str, object] = dict(TELLING)
    if pieces is not None:
        telling["fault"] = {"kind": "hang", "after": pieces}
    model.script(
        {
            "match": {"user": "roll a die", "tools": True},
            "turns": [{"tool_calls": [DICE]}, telling],
        },
        {"match": {"json": False}, "reply": telling},
    )
    if pieces is None:
        model.release()


@contextmanager
def control(fleet: Fleet, model: ScriptedModel) -> Iterator[str]:
    """Where the fleet is killed and started, and its answers are held up: see reader.mjs."""

    def kill() -> None:
        for child in [*fleet.gateways, *fleet.workers]:
            child.kill()

    def start() -> None:
        for child in [*fleet.gateways, *fleet.workers]:
            child.spawn()
        for child in [*fleet.gateways, *fleet.workers]:
            child.wait_ready(60)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            match self.path:
                case "/kill":
                    kill()
                case "/start":
                    start()
                case "/settings":
                    script(model, asked["pieces"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    # One thread for all requests: the processes that it starts end with it, not before.
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        for child in [*fleet.workers, *fleet.gateways]:
            child.stop()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def start(
    tmp_path: Path, postgres_url: str, redis_url: str, scripted_model: ScriptedModel
) -> Callable[..., Fleet]:
    """Makes a fleet of a gateway and a worker, with settings of the test's own."""

    def start(**settings: str) -> Fleet:
        script(scripted_model)
        servers = {"postgres": postgres_url, "redis": redis_url, "model": scripted_model.url}
        ours = {"story_folders": str(STORIES), "model_path": "direct", **settings}
        return BornFleet(tmp_path, **servers, **ours)

    return start


@pytest.mark.long
def test_reading(
    node: str,
    browser: dict[str, str],
    start: Callable[..., Fleet],
    scripted_model: ScriptedModel,
) -> None:
    with start() as fleet:
        fleet.add_gateway()
        fleet.add_worker()
        with control(fleet, scripted_model) as url:
            server = {"FIRESIDE_PAGE_URL": fleet.url, "FIRESIDE_PAGE_CONTROL": url}
            run(node, "scenarios/reading.test.mjs", {**browser, **server, **PACE})


def test_a_key(
    node: str,
    browser: dict[str, str],
    start: Callable[..., Fleet],
    postgres_url: str,
    redis_url: str,
) -> None:
    env = {**os.environ, "DATABASE_URL": postgres_url, "REDIS_URL": redis_url}
    command = [sys.executable, "-m", "api.keys", "create", "reader"]
    made = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    key = made.stdout.split()[-1]

    with start(auth="required") as fleet:
        fleet.add_gateway()
        fleet.add_worker()
        server = {"FIRESIDE_PAGE_URL": fleet.url, "FIRESIDE_PAGE_KEY": key}
        run(node, "scenarios/key.test.mjs", {**browser, **server, **PACE})
