"""A line to Postgres that a test may cut at the worst moment, and that counts its round trips."""

import asyncio
import re
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

When = Literal["before", "after"]

_READY = b"Z\x00\x00\x00\x05"
"""How each of Postgres's answers ends, before one byte that tells the transaction's state."""

_NAMED = re.compile(rb"(fireside_\d+)\x00([^\x00]*)")
"""The name of a prepared statement, with its text where it is made and with nothing where it is
used."""


class Wire:
    """Passes a port on to Postgres.

    A statement whose text has `marker` can be lost on its way there (`before`), or be carried out
    and its answer lost (`after`); each time the connection that it came by is gone as well. While
    `down`, no new connection is taken.
    """

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._cuts: list[tuple[When, bytes]] = []
        self._server: asyncio.Server
        self._lines: set[asyncio.Task[None]] = set()
        self._open: set[asyncio.StreamWriter] = set()
        self.down = False
        self.cuts_made: list[tuple[When, str]] = []
        self.round_trips = 0

    async def __aenter__(self) -> "Wire":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut_all()
        await asyncio.gather(*self._lines)

    @property
    def url(self) -> str:
        """The URL of the same database, over this line."""
        port = self._server.sockets[0].getsockname()[1]
        parts = self._parts
        place = f"{parts.username}:{parts.password}@127.0.0.1:{port}"
        return urlunsplit(parts._replace(netloc=place))

    def cut(self, when: When, marker: str, *, times: int = 1) -> None:
        """Cut the line at the next statements with this text in them."""
        self._cuts += [(when, marker.encode())] * times

    def cut_all(self) -> None:
        """Cut all connections now."""
        for writer in self._open:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._lines.add(task)
        task.add_done_callback(self._lines.discard)
        self._open.add(writer)
        try:
            if not self.down:
                await self._carry(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._parts.hostname, self._parts.port
        server_reader, server_writer = await asyncio.open_connection(host, port)
        lost = asyncio.Event()
        ways = [
            asyncio.create_task(self._to_server(reader, server_writer, lost)),
            asyncio.create_task(self._to_client(server_reader, writer, lost)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            server_writer.transport.abort()

    async def _to_server(
        self, reader: asyncio.StreamReader, server: asyncio.StreamWriter, lost: asyncio.Event
    ) -> None:
        prepared: dict[bytes, bytes] = {}
        while data := await reader.read(1 << 20):
            said = _with_prepared(data, prepared)
            cut = next((one for one in self._cuts if one[1] in said), None)
            if cut is not None:
                self._cuts.remove(cut)
                self.cuts_made.append((cut[0], cut[1].decode()))
                if cut[0] == "before":
                    return
                lost.set()
            server.write(data)
            await server.drain()

    async def _to_client(
        self, server: asyncio.StreamReader, writer: asyncio.StreamWriter, lost: asyncio.Event
    ) -> None:
        while data := await server.read(1 << 20):
            self.round_trips += data.count(_READY)
            if not lost.is_set():
                writer.write(data)
                await writer.drain()
            elif data[-6:-1] == _READY:
                return


def _with_prepared(data: bytes, prepared: dict[bytes, bytes]) -> bytes:
    """What a client sends, with the texts of the statements that it names; new ones are noted."""
    named = []
    for name, text in _NAMED.findall(data):
        if text:
            prepared[name] = text
        else:
            named.append(prepared.get(name, b""))
    return b"\n".join([data, *named])
