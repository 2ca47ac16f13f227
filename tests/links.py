"""A link to a server over TCP that can be slow, fall silent, be cut or be reset."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit


class SlowLink:
    """A proxy on loopback. `delay` is how many seconds each answer of the server is held back;
    while `silent` is set no answer comes at all. While `refuses` is set each connection is reset as
    soon as it is made, and counted in `refused`: a server that was killed does so to those that it
    had not taken yet.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 0
        self._far_url = url
        self._accepting: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._ends: list[asyncio.StreamWriter] = []
        self._speaking = asyncio.Event()
        self._speaking.set()
        self.delay = 0.0
        self.refuses = False
        self.refused = 0
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator["SlowLink"]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        self.url = self._far_url.replace(f":{self._port}", f":{port}")
        try:
            yield self
        finally:
            server.close()
            await asyncio.gather(*self._accepting)  # else their connections come after the end
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await close_ends(self._ends)

    def fall_silent(self) -> None:
        """Hold back every answer until it is told to speak again."""
        self._speaking.clear()

    def speak(self) -> None:
        """Go on."""
        self._speaking.set()

    def reset(self) -> None:
        """End every connection as a server does that was killed with something unread: no end of
        the stream, but a reset."""
        for writer in self._writers:
            _reset(writer)
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._accepting.add(task)
        task.add_done_callback(self._accepting.discard)
        self._ends.append(writer)
        if self.refuses:
            self.refused += 1
            _reset(writer)
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.close()
            return
        self._ends.append(far_writer)
        self._writers.add(writer)
        self._begin(self._ask(reader, far_writer))
        self._begin(self._answer(far_reader, writer))

    def _begin(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError):
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass answers on, each so long after it came; those on their way do not wait in line."""
        loop = asyncio.get_running_loop()
        try:
            with suppress(OSError):
                while data := await reader.read(65536):
                    due = loop.time() + self.delay
                    await self._speaking.wait()
                    await asyncio.sleep(due - loop.time())
                    writer.write(data)
                    await writer.drain()
        finally:
            writer.close()


async def close_ends(ends: Sequence[asyncio.StreamWriter]) -> None:
    """Close the ends of a proxy's connections, and wait for it: those as well whose task was
    cancelled before it began, and has closed nothing."""
    for end in ends:
        end.close()
    await asyncio.gather(*(end.wait_closed() for end in ends), return_exceptions=True)


def _reset(writer: asyncio.StreamWriter) -> None:
    if not writer.is_closing():
        line = writer.get_extra_info("socket")
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
