"""Players on a server beside whom something else is measured.

`python -m bench.beside URL PLAYERS` says "playing" once each has taken a turn, lets them go on
until its stdin ends, and then tells in one line of JSON how many turns there were.
"""

import argparse
import asyncio
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvloop

from bench.clients import Fireside
from bench.load import Times, connected, opened, take_turn
from bench.programs import no_stories, own_folder
from bench.targets import Running
from bench.workloads import Workload
from deploy.local.fleet import Fleet
from deploy.local.model import ScriptedModelProcess
from deploy.local.server import ROOT
from deploy.local.valkey import EmbeddedValkey
from deploy.models.control import ScriptedModel

LOAD = Workload(1, 1)
TURN_SECONDS = 60.0
"""How long one turn may take."""


class Players:
    """The other process, and what it told when it ended."""

    def __init__(self, url: str, count: int) -> None:
        self.told: dict[str, Any] = {}
        argv = [sys.executable, "-m", "bench.beside", url, str(count)]
        self._process = subprocess.Popen(
            argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def wait_playing(self) -> None:
        """Until all of them play; raises RuntimeError where they can't."""
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "playing\n":
            raise RuntimeError("the players beside it can't play")

    def end(self) -> None:
        """Let them come to their end, and hear what they tell."""
        said, _ = self._process.communicate(timeout=TURN_SECONDS + 30)
        if self._process.returncode == 0:
            self.told = json.loads(said.splitlines()[-1])

    def kill(self) -> None:
        """End them as they are."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def fleet_playing(postgres: str, turns: float) -> Iterator[Players]:
    """A gateway and a worker over this Postgres, with as many players as it takes for so many turns
    a second if nothing is late; `told` is there once the block has ended.

    Raises:
        RuntimeError: no turn works.
    """
    with (
        own_folder() as folder,
        EmbeddedValkey(folder / "valkey") as valkey,
        ScriptedModelProcess(log=folder / "model.log") as model,
        Fleet(
            folder,
            postgres=postgres,
            redis=valkey.url,
            model=model.url,
            model_path="direct",
            story_folders=no_stories(folder),
        ) as fleet,
    ):
        fleet.by_uvicorn = False
        fleet.add_gateway()
        fleet.add_worker()
        ScriptedModel(model.url).profile(
            ttft=LOAD.ttft, chunks=LOAD.chunks, duration=LOAD.duration, tool=False
        )
        players = Players(fleet.url, math.ceil(turns * LOAD.reply_seconds))
        try:
            players.wait_playing()
            yield players
        except BaseException:
            players.kill()
            raise
        players.end()


async def play_until(url: str, count: int, ended: asyncio.Event) -> dict[str, Any]:
    """So many players' turns until then; what came of them once all had begun."""
    times = Times()

    async def turn(client: Any, session: Any, number: int) -> None:
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await take_turn(client, session, f"Question of player {number}.", LOAD, times)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is a figure
            times.errors.append(f"{type(error).__name__}: {error}"[:300])

    async def player(client: Any, session: Any, number: int) -> None:
        await asyncio.sleep(number / count * LOAD.reply_seconds)
        while True:  # once at least, however soon the end is told
            await turn(client, session, number)
            if ended.is_set():
                return

    async with (
        connected(Running(lambda http: Fireside(url, http))) as client,
        opened(client, count) as sessions,
    ):
        numbered = list(enumerate(sessions))
        await asyncio.gather(*(turn(client, one, number) for number, one in numbered))
        if times.errors:
            raise RuntimeError(times.errors[0])
        print("playing", flush=True)
        times, began = Times(), time.monotonic()
        await asyncio.gather(*(player(client, one, number) for number, one in numbered))
        seconds = time.monotonic() - began
    return {
        "players": count,
        "turns": len(times.total),
        "turns_s": round(len(times.total) / seconds, 1),
        "errors": len(times.errors),
    }


async def _run(url: str, count: int) -> dict[str, Any]:
    ended = asyncio.Event()

    async def hear() -> None:
        await asyncio.to_thread(sys.stdin.read)
        ended.set()

    hearing = asyncio.create_task(hear())
    told = await play_until(url, count, ended)
    await hearing
    return told


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.beside", description=__doc__)
    parser.add_argument("url", help="of a gateway without keys")
    parser.add_argument("players", type=int)
    options = parser.parse_args()
    print(json.dumps(uvloop.run(_run(options.url, options.players))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
