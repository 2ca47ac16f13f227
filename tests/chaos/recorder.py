"""The world outside: keeps each letter that a worker's tool posts to it."""

import asyncio
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from tests.chaos.history import Letter
from tests.web import served

SLOWEST = 0.4
"""Seconds until a letter's answer at the most: time for its worker to be struck in between."""


class Recorder:
    """An HTTP server on loopback; `letters` are what it got, in order."""

    def __init__(self) -> None:
        self.letters: list[Letter] = []
        self.url = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve on any free port while the block runs."""
        app = web.Application()
        app.router.add_post("/letters", self._take)
        async with served(app) as url:
            self.url = f"{url}/letters"
            yield

    async def _take(self, request: web.Request) -> web.Response:
        letter = await request.json()
        self.letters.append(Letter(letter["mark"], letter["key"]))
        await asyncio.sleep(SLOWEST * (zlib.crc32(letter["mark"].encode()) % 100) / 100)
        return web.json_response({"ok": True})
