"""Proxies between one worker process and its Postgres and Redis that strike at a chosen statement.

They read just enough of both protocols to know what passes: which of our named statements, with
which events and steps, and which Redis commands. What they hold back is lost where the worker is
killed, and goes on its way where it was only frozen. Nothing of this is in the product.

Sources: PostgreSQL's "Frontend/Backend Protocol", version 3; the Redis serialization protocol,
whose requests are arrays of bulk strings.
"""

import asyncio
import contextlib
import json
import struct
from asyncio import StreamReader, StreamWriter
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import hiredis

from shared.events import decode_lines
from tests.links import close_ends

SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST = 80877103, 80877104, 80877102
CHUNK = 1 << 16

Moment = Literal["before", "after"]
"""Before the server hears of it, or after it has answered and before the worker hears that."""


@dataclass(frozen=True, slots=True)
class Passing:
    """What passes: a statement by the name in its comment, or a Redis command.

    A commit is called after the transaction's last statement, `commit claim events`; statements
    that are sent together are also carried out together. `events` are
    the types of the events in it, of deltas `message_update`; `steps` say `tool started`.
    """

    name: str
    events: frozenset[str] = frozenset()
    steps: frozenset[str] = frozenset()


Wanted = Callable[[Passing], bool]


class DroppedError(Exception):
    """The connection's worker is dead; what was held back is lost."""


@dataclass(slots=True)
class Trap:
    """Strikes once, at the first thing that is wanted.

    `strike` ends or stops the worker. Where it `freezes`, what was caught goes on after `resume`.
    """

    wanted: Wanted
    moment: Moment
    strike: Callable[[], None]
    freezes: bool = False
    sprung: asyncio.Event = field(default_factory=asyncio.Event)
    resume: asyncio.Event = field(default_factory=asyncio.Event)

    def wants(self, passing: Sequence[Passing], moment: Moment) -> bool:
        """Whether it is among these, which pass together."""
        return (
            moment == self.moment
            and not self.sprung.is_set()
            and any(self.wanted(one) for one in passing)
        )

    async def spring(self) -> None:
        """Strike; returns when the caught thing may go on, raises DroppedError if never."""
        self.sprung.set()
        self.strike()
        if not self.freezes:
            raise DroppedError
        await self.resume.wait()


class Proxy:
    """Listens for the worker's connections and passes them on; `url` is the server's by this way.

    `passed` has an event for each name, set when the first of that name is passed on.
    """

    def __init__(self, url: str, trap: Trap) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._server = (parts.hostname, parts.port)
        self._parts = parts
        self.trap = trap
        self.passed: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.url = ""
        self.pairs: set[asyncio.Task[None]] = set()
        self._writers: list[StreamWriter] = []

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Proxy"]:
        """Take connections until the end of the block; those left are cut then."""
        server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        account, at, _ = self._parts.netloc.rpartition("@")
        self.url = self._parts._replace(netloc=f"{account}{at}127.0.0.1:{port}").geturl()
        try:
            yield self
        finally:
            server.close()
            for pair in self.pairs:
                pair.cancel()
            await asyncio.gather(*self.pairs, return_exceptions=True)
            await close_ends(self._writers)

    def _take(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._writers.append(writer)
        pair = asyncio.ensure_future(self._connect(reader, writer))
        self.pairs.add(pair)
        pair.add_done_callback(self.pairs.discard)

    async def _connect(self, reader: StreamReader, writer: StreamWriter) -> None:
        with contextlib.suppress(OSError):
            there, to_there = await asyncio.open_connection(*self._server)
            self._writers.append(to_there)
            pumps = [
                asyncio.ensure_future(_until_cut(pump))
                for pump in self._pumps(reader, to_there, there, writer)
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                writer.close()
                to_there.close()
                await asyncio.gather(*pumps, return_exceptions=True)

    def _pumps(
        self, worker: StreamReader, to_server: StreamWriter, server: StreamReader, to: StreamWriter
    ) -> Sequence[Coroutine[Any, Any, None]]:
        raise NotImplementedError

    async def _catch(self, passing: Sequence[Passing], moment: Moment) -> None:
        if moment == "before":
            for one in passing:
                self.passed[one.name].set()
        if self.trap.wants(passing, moment):
            await self.trap.spring()


async def _until_cut(pump: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(DroppedError, OSError, asyncio.IncompleteReadError):
        await pump


class PostgresProxy(Proxy):
    """Between a worker and Postgres, without TLS."""

    def _pumps(
        self, worker: StreamReader, to_server: StreamWriter, server: StreamReader, to: StreamWriter
    ) -> Sequence[Coroutine[Any, Any, None]]:
        talk = _PostgresTalk(self._catch, self.trap)
        return [talk.requests(worker, to, to_server), talk.answers(server, to)]


Catch = Callable[[Sequence[Passing], Moment], Coroutine[Any, Any, None]]


class _PostgresTalk:
    """One connection: its prepared statements, and the requests that are not answered yet."""

    def __init__(self, catch: Catch, trap: Trap) -> None:
        self._catch = catch
        self._trap = trap
        self._texts: dict[bytes, bytes] = {}
        self._unanswered: deque[Sequence[Passing]] = deque()
        self._last = ""

    async def requests(self, worker: StreamReader, to: StreamWriter, server: StreamWriter) -> None:
        """Pass on whole requests, each up to the message that asks for an answer."""
        await self._log_in(worker, to, server)
        held: bytes = b""
        passing: list[Passing] = []
        while True:
            kind, body, raw = await _message(worker)
            held += raw
            if kind == b"P":
                name, text, _ = body.split(b"\0", 2)
                self._texts[name] = text
            elif kind == b"B":
                _, statement, rest = body.split(b"\0", 2)
                passing.append(self._named(self._texts.get(statement, b""), _parameters(rest)))
            elif kind == b"Q":
                passing.append(self._named(body[:-1], []))
            if kind in {b"Q", b"S"}:
                await self._catch(passing, "before")
                self._unanswered.append(passing)
            if kind in {b"Q", b"S", b"p", b"X", b"H"}:
                server.write(held)
                await server.drain()
                held, passing = b"", []

    async def _log_in(self, worker: StreamReader, to: StreamWriter, server: StreamWriter) -> None:
        while True:
            head = await worker.readexactly(8)
            length, code = struct.unpack("!ii", head)
            body = await worker.readexactly(length - 8)
            if code not in {SSL_REQUEST, GSS_REQUEST}:
                break
            to.write(b"N")
        server.write(head + body)
        if code != CANCEL_REQUEST:
            self._unanswered.append(())

    async def answers(self, server: StreamReader, to: StreamWriter) -> None:
        """Pass on answers; one that the trap wants is held until it is whole."""
        held = b""
        while True:
            kind, _, raw = await _message(server)
            held += raw
            first = self._unanswered[0] if self._unanswered else ()
            if kind == b"Z":
                await self._catch(first, "after")
                self._unanswered.popleft()
            elif self._trap.wants(first, "after"):
                continue
            to.write(held)
            held = b""

    def _named(self, text: bytes, parameters: Sequence[bytes]) -> Passing:
        words = text.decode(errors="replace").strip()
        if words.startswith("/*"):
            name = words[2 : words.index("*/")].strip()
        else:
            name = " ".join(words.split()[:1]).lower()
        if name == "commit":
            name = f"commit {self._last}"
        self._last = name
        return Passing(name, *_written(parameters))


async def _message(reader: StreamReader) -> tuple[bytes, bytes, bytes]:
    """The next message: its kind, its body, and all of its bytes."""
    head = await reader.readexactly(5)
    body = await reader.readexactly(int.from_bytes(head[1:], "big") - 4)
    return head[:1], body, head + body


def _parameters(rest: bytes) -> list[bytes]:
    """The values in what follows the names in a Bind message; NULLs are left out."""
    (formats,) = struct.unpack_from("!h", rest)
    place = 2 + 2 * formats
    (count,) = struct.unpack_from("!h", rest, place)
    place += 2
    values = []
    for _ in range(count):
        (length,) = struct.unpack_from("!i", rest, place)
        place += 4
        if length >= 0:
            values.append(rest[place : place + length])
            place += length
    return values


def _written(parameters: Sequence[bytes]) -> tuple[frozenset[str], frozenset[str]]:
    """The types of the events and the steps that a fenced write carries."""
    events: set[str] = set()
    steps: set[str] = set()
    for value in parameters:
        if not value.startswith(b'[{"'):
            continue
        for row in json.loads(value):
            if "data" in row:
                events.add(row["type"])
            elif "status" in row:
                steps.add(f"{row['kind']} {row['status']}")
    return frozenset(events), frozenset(steps)


class RedisProxy(Proxy):
    """Between a worker and Redis. What is held is a whole chunk: all of a pipeline."""

    def _pumps(
        self, worker: StreamReader, to_server: StreamWriter, server: StreamReader, to: StreamWriter
    ) -> Sequence[Coroutine[Any, Any, None]]:
        unanswered: deque[Passing] = deque()
        return [
            self._requests(worker, to_server, unanswered),
            self._answers(server, to, unanswered),
        ]

    async def _requests(
        self, worker: StreamReader, to_server: StreamWriter, unanswered: deque[Passing]
    ) -> None:
        commands = hiredis.Reader()
        while chunk := await worker.read(CHUNK):
            commands.feed(chunk)
            while (command := commands.gets()) is not False:
                passing = _command(command)
                await self._catch([passing], "before")
                if self.trap.wants([passing], "after"):
                    unanswered.append(passing)
            to_server.write(chunk)
            await to_server.drain()

    async def _answers(
        self, server: StreamReader, to: StreamWriter, unanswered: deque[Passing]
    ) -> None:
        while chunk := await server.read(CHUNK):
            while unanswered:
                await self._catch([unanswered.popleft()], "after")
            to.write(chunk)
            await to.drain()


def _command(words: list[bytes]) -> Passing:
    name = words[0].decode().upper()
    if name != "PUBLISH":
        return Passing(name)
    frames = (json.loads(line.frame) for line in decode_lines(words[2]))
    return Passing(name, frozenset(frame["type"] for frame in frames))
