"""A line to Postgres that counts what programs ask of it."""

import asyncio
from collections import Counter
from collections.abc import Callable
from urllib.parse import urlsplit


class CountingLine:
    """Passes a port on to Postgres; `seen` counts `statements` and `round_trips` that go by."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self.seen: Counter[str] = Counter()
        self._server: asyncio.Server

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        account = self._parts.netloc.rpartition("@")[0]
        place = self._parts._replace(netloc=f"{account}@127.0.0.1:{port}").geturl()
        return f"{place}?sslmode=disable&gssencmode=disable"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_there = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        size = int.from_bytes(head := await reader.readexactly(4), "big")
        to_there.write(head + await reader.readexactly(size - 4))
        ways = [self._pass(reader, to_there, self._asked), self._pass(there, writer, self._told)]
        await asyncio.gather(*ways, return_exceptions=True)

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        note: Callable[[bytes, bytes], None],
    ) -> None:
        try:
            while True:
                head = await reader.readexactly(5)
                body = await reader.readexactly(int.from_bytes(head[1:], "big") - 4)
                note(head[:1], body)
                writer.write(head + body)
        finally:
            writer.close()

    def _asked(self, kind: bytes, body: bytes) -> None:
        """Execute and Query messages; the latter may hold several statements."""
        if kind == b"E":
            self.seen["statements"] += 1
        elif kind == b"Q":
            self.seen["statements"] += body.count(b";") + 1

    def _told(self, kind: bytes, _: bytes) -> None:
        """Each round trip ends with ReadyForQuery."""
        if kind == b"Z":
            self.seen["round_trips"] += 1
