"""What the tools of the failpoints' agent change in the world, and the gate before its answers."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from tests.web import served

PAUSE = 0.04
"""Seconds that everything takes: longer than the 20 ms in which writes are grouped."""


async def _nothing() -> None:
    """What is done at a tool's run, where no failpoint is."""


@dataclass
class Record:
    """One case's: how often its tool ran, and who waits at its gate.

    `at_run` is called when the tool has run and does not know it yet.
    """

    ran: Counter[str] = field(default_factory=Counter)
    arrived: set[int] = field(default_factory=set)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    at_run: Callable[[], Awaitable[None]] = _nothing
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def arrival(self, known: frozenset[int] = frozenset()) -> None:
        """Wait until a worker other than the known processes stands at the gate."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.arrived - known)

    async def run(self, tool: str) -> None:
        """Count a run of the tool."""
        self.ran[tool] += 1
        await self.at_run()
        await asyncio.sleep(PAUSE)

    async def pass_gate(self, process: int) -> None:
        """Wait until the gate is open."""
        self.arrived.add(process)
        async with self._changed:
            self._changed.notify_all()
        await self.gate.wait()
        await asyncio.sleep(PAUSE)


class Recorder:
    """An HTTP server that keeps a record for each case."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self._url = ""

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator["Recorder"]:
        """Serve until the end of the block."""
        recorder = cls()
        app = web.Application()
        app.router.add_post("/{case}/ran/{tool}", recorder._ran)
        app.router.add_post("/{case}/gate/{process}", recorder._gate)
        async with served(app) as url:
            recorder._url = url
            yield recorder

    def record(self, case: str) -> tuple[str, Record]:
        """A new record and its URL; the gate is open."""
        record = self.records[case] = Record()
        record.gate.set()
        return f"{self._url}/{case}", record

    async def _ran(self, request: web.Request) -> web.Response:
        tool = request.match_info["tool"]
        await self.records[request.match_info["case"]].run(tool)
        return web.Response(text=f"{tool} done")

    async def _gate(self, request: web.Request) -> web.Response:
        record = self.records[request.match_info["case"]]
        await record.pass_gate(int(request.match_info["process"]))
        return web.Response(text="pass")
