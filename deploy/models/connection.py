"""The scripted model's HTTP: one protocol object for each connection, which plays what the
director chose.

It speaks HTTP itself, over a parser: faults of the connection have to be played too, and load
tests must not have to wait for a framework.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import cast
from urllib.parse import parse_qsl

import httptools
import orjson
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from deploy.models import wire
from deploy.models.batches import BatchDesk, BatchScript
from deploy.models.director import Counts, Director, End
from deploy.models.performance import Performance
from deploy.models.request import BadRequestError, ChatRequest
from deploy.models.script import Profile, Script

LARGEST_BODY = 64 * 1024 * 1024  # bytes
_SLACK = 0.0005  # seconds; frames due this soon leave together


class Awaited(BaseModel):
    """What `GET /_wait` waits for: at least these counts, exactly this many in flight."""

    model_config = ConfigDict(extra="forbid")

    requests: int = 0
    completed: int = 0
    failed: int = 0
    aborted: int = 0
    tokens: int = 0
    in_flight: int | None = None
    timeout: float = 10.0

    def met(self, counts: Counts) -> bool:
        """Tell whether the counts have got there."""
        least = ("requests", "completed", "failed", "aborted", "tokens")
        enough = all(getattr(counts, name) >= getattr(self, name) for name in least)
        return enough and self.in_flight in {None, counts.in_flight}


class Stage:
    """What connections share: the director, the batches, those that hold, those that wait for a
    count.
    """

    def __init__(self) -> None:
        self.director = Director()
        self.batches = BatchDesk()
        self.holding: dict[Connection, None] = {}  # in the order in which they began to hold
        self.number = 0
        self._watchers: list[tuple[Awaited, Callable[[], None]]] = []

    def changed(self) -> None:
        """Tell those whose count has been reached."""
        if self._watchers:
            stats = self.director.stats
            met = [watcher for watcher in self._watchers if watcher[0].met(stats)]
            self._watchers = [watcher for watcher in self._watchers if watcher not in met]
            for _, tell in met:
                tell()

    async def reach(self, awaited: Awaited) -> bool:
        """Wait for counts; False if time runs out."""
        if awaited.met(self.director.stats):
            return True
        reached = asyncio.Event()
        watcher = (awaited, reached.set)
        self._watchers.append(watcher)
        try:
            async with asyncio.timeout(awaited.timeout):
                await reached.wait()
        except TimeoutError:
            return False
        finally:
            if watcher in self._watchers:
                self._watchers.remove(watcher)
        return True

    def release(self) -> int:
        """Let everything that holds go on; returns how many did."""
        held = list(self.holding)
        for connection in held:
            connection.go_on()
        return len(held)


class Connection(asyncio.Protocol):
    """One client connection; answers one request after the other."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[str, str, str, bytes, bool]] = []
        self._begin_message()
        self._play: _Play | None = None
        self._task: asyncio.Task[None] | None = None

    # asyncio's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way out."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it

    def connection_lost(self, exc: Exception | None) -> None:
        """Count an answer that is under way as aborted."""
        self._transport = None
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
        if self._play is not None:
            self._end_play("aborted")

    def data_received(self, data: bytes) -> None:
        """Feed the parser, which calls the methods below."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(400, "no upgrades here")
        except httptools.HttpParserError as error:
            self._refuse(400, f"not HTTP: {error}")

    # httptools' calls

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._begin_message()

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take the key; ask a careful client to go on."""
        lower = name.lower()
        if lower == b"authorization":
            self._key = value.decode("latin-1").removeprefix("Bearer ").strip()
        elif lower == b"expect" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body, as long as it is not too large."""
        self._size += len(body)
        if self._size <= LARGEST_BODY:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """Answer the request, or let it wait for the one before."""
        if self._size > LARGEST_BODY:
            self._refuse(413, "the body is too large")
            return
        method = self._parser.get_method().decode("ascii")
        keep = self._parser.should_keep_alive()
        message = (method, self._url.decode("latin-1"), self._key, b"".join(self._body), keep)
        self._waiting.append(message)
        self._next()

    # requests

    def _begin_message(self) -> None:
        self._url, self._key, self._size = b"", "", 0
        self._body: list[bytes] = []

    def _next(self) -> None:
        """Answer the next request that has come, if the last one is answered."""
        while self._waiting and self._play is None and self._task is None and self._transport:
            method, url, key, body, keep = self._waiting.pop(0)
            self._keep_alive = keep
            path, _, query = url.partition("?")
            if method == "POST" and path.endswith("/chat/completions"):
                self._chat(body, key)
            elif path == "/_wait":
                self._task = self._loop.create_task(self._wait(query))
            elif (answer := self._control(method, path, query, body, key)) is not None:
                self._write(answer)

    def _chat(self, body: bytes, key: str) -> None:
        stage = self._stage
        stage.number += 1
        try:
            request = ChatRequest(body, key=key, number=stage.number)
            performance = stage.director.direct(request)
        except BadRequestError as error:
            fault = wire.error_body(str(error), kind="invalid_request_error", code=None)
            self._write(wire.json_response(fault, status=400))
            return
        stats = stage.director.stats
        counts = [stats, stats.keys.setdefault(key, Counts())]
        for count in counts:
            count.begin()
        self._play = _Play(performance, request.number, counts, self._loop.time())
        stage.changed()
        self._tick()

    def _tick(self) -> None:
        """Send every frame that is due and ask to be called for the next."""
        play, transport = self._play, self._transport
        if play is None or transport is None:
            return
        play.timer = None
        due = play.due(self._loop.time() + _SLACK)
        if due:
            transport.write(due)
            self._stage.changed()
        if play.over:
            self._finish(play)
        elif play.held:
            self._stage.holding[self] = None
        else:
            play.timer = self._loop.call_at(play.next_at, self._tick)

    def go_on(self) -> None:
        """Continue a performance that holds; its later frames keep their distances."""
        self._stage.holding.pop(self, None)
        if self._play is not None:
            self._play.release(self._loop.time())
            self._tick()

    def _finish(self, play: "_Play") -> None:
        self._end_play("completed" if play.performance.good else "failed")
        if self._transport is not None and (play.performance.close or not self._keep_alive):
            self._transport.close()
        elif self._waiting:
            self._loop.call_soon(self._next)

    def _end_play(self, how: End) -> None:
        assert self._play is not None
        said = self._play.performance.usage if how != "aborted" else None
        self._stage.director.ended(self._play.number, how, said)
        if self._play.timer is not None:
            self._play.timer.cancel()
        for count in self._play.counts:
            count.in_flight -= 1
            setattr(count, how, getattr(count, how) + 1)
        self._play = None
        self._stage.holding.pop(self, None)
        self._stage.changed()

    async def _wait(self, query: str) -> None:
        try:
            awaited = Awaited.model_validate(dict(parse_qsl(query)))
        except ValidationError as error:
            answer = _invalid(error)
        else:
            status = 200 if await self._stage.reach(awaited) else 408
            answer = wire.json_response(self._stage.director.stats.model_dump(), status=status)
        self._task = None
        self._write(answer)
        self._next()

    def _control(self, method: str, path: str, query: str, body: bytes, key: str) -> bytes | None:
        director, batches = self._stage.director, self._stage.batches
        try:
            match method, path:
                case "GET", "/v1/models" | "/models":
                    return wire.json_response(_models())
                case "GET", "/_stats":
                    return wire.json_response(director.stats.model_dump())
                case "GET", "/_requests":
                    last = int(dict(parse_qsl(query)).get("last", "0"))
                    found = list(director.seen)[-last:]
                    return wire.json_response([seen.as_json() for seen in found])
                case "GET", "/_calls":
                    calls = director.calls.values()
                    return wire.json_response([call.model_dump() for call in calls])
                case "POST", "/_script":
                    director.follow(Script.model_validate_json(body))
                case "POST", "/_profile":
                    director.load_with(Profile.model_validate_json(body or b"{}"))
                case "POST", "/_release":
                    return wire.json_response({"released": self._stage.release()})
                case "POST", "/_reset":
                    director.reset()
                    batches.reset()
                case "GET", "/_batches":
                    return wire.json_response(batches.standing())
                case "POST", "/_batches":
                    batches.follow(BatchScript.model_validate_json(body))
                case _:
                    with contextlib.suppress(LookupError):
                        return batches.answer(director, method, path, query, body, key)
                    message = f"nothing at {method} {path}"
                    return wire.json_response(
                        wire.error_body(message, kind="invalid_request_error", code=None),
                        status=404,
                    )
        except ValidationError as error:
            return _invalid(error)
        except ValueError as error:
            return wire.json_response({"error": str(error)}, status=422)
        return wire.json_response({"ok": True})

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)
            if not self._keep_alive:
                self._transport.close()

    def _refuse(self, status: int, message: str) -> None:
        self._keep_alive = False
        body = wire.error_body(message, kind="invalid_request_error", code=None)
        self._write(wire.json_response(body, status=status))


class _Play:
    """A performance on its way."""

    def __init__(
        self, performance: Performance, number: int, counts: list[Counts], now: float
    ) -> None:
        self.performance = performance
        self.number = number
        self.counts = counts
        self.timer: asyncio.TimerHandle | None = None
        self._start = now + performance.ttft
        self._sent = 0
        self._opened = False
        self._hold = performance.hold

    @property
    def over(self) -> bool:
        """Whether everything is sent and its time has come."""
        return self._opened and self._sent >= len(self.performance.frames)

    @property
    def held(self) -> bool:
        """Whether the next frame waits to be released."""
        return self._hold == self._sent and (self._opened or self.performance.hold_opening)

    @property
    def next_at(self) -> float:
        """When the next frame is due, on the loop's clock."""
        return self._start + self._sent * self.performance.step

    def due(self, now: float) -> bytes:
        """Take the bytes that are due by now."""
        if now < self.next_at or (self._hold == 0 and self.performance.hold_opening):
            return b""
        parts = [] if self._opened else [self.performance.opening]
        self._opened = True
        frames, first = self.performance.frames, self._sent
        while self._sent < len(frames) and self._sent != self._hold and self.next_at <= now:
            parts.append(frames[self._sent])
            self._sent += 1
        given = min(self._sent, self.performance.tokens) - min(first, self.performance.tokens)
        for count in self.counts:
            count.tokens += given
        return b"".join(parts)

    def release(self, now: float) -> None:
        """Go on from here: the held frame is due now."""
        self._hold = None
        self._start = now - self._sent * self.performance.step


def _models() -> JsonValue:
    entry: JsonValue = {
        "id": "scripted",
        "object": "model",
        "created": wire.CREATED,
        "owned_by": "fireside",
    }
    return {"object": "list", "data": [entry]}


def _invalid(error: ValidationError) -> bytes:
    details = error.errors(include_url=False, include_context=False)
    return wire.response(
        422, orjson.dumps({"error": details}, default=str), content_type="application/json"
    )
