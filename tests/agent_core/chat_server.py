"""A tiny server that speaks OpenAI's chat completions as a stream, by a script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.web import served


class Hang:
    """In a script: nothing more comes until the client goes away or the test releases it."""


class Cut:
    """In a script: the connection breaks off here."""


@dataclass
class Refusal:
    """An HTTP status instead of an answer; `within` its body something may happen."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    text: str = "refused"
    code: str | None = None
    within: Hang | Cut | None = None


Piece = dict[str, Any] | str | Hang | Cut


class ChatServer:
    """Answers each request with the next entry of its script and keeps the requests."""

    def __init__(self, script: Sequence[Sequence[Piece] | Refusal]) -> None:
        self.script = list(script)
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.peers: list[object] = []
        self.arrivals: asyncio.Queue[None] = asyncio.Queue()
        self.gone = asyncio.Event()
        self.release = asyncio.Event()
        self.url = ""
        self.cookie = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        entry = self.script[len(self.requests)]
        self.requests.append(await request.json())
        self.arrivals.put_nowait(None)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.peers.append(request.transport and request.transport.get_extra_info("peername"))
        if isinstance(entry, Refusal):
            return await self._refuse(request, entry)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        if self.cookie:
            response.headers["Set-Cookie"] = self.cookie
        await response.prepare(request)
        try:
            for piece in entry:
                await self._send(request, response, piece)
        except asyncio.CancelledError:
            self.gone.set()
            raise
        return response

    async def _refuse(self, request: web.Request, entry: Refusal) -> web.StreamResponse:
        body = {"error": {"message": entry.text, "type": "test", "code": entry.code}}
        if entry.within is None:
            return web.json_response(body, status=entry.status, headers=entry.headers)
        text = json.dumps(body).encode()
        response = web.StreamResponse(status=entry.status, headers=entry.headers)
        await response.prepare(request)
        await response.write(text[:20])
        if isinstance(entry.within, Hang):
            await self.release.wait()
            await response.write(text[20:])
        elif request.transport is not None:
            request.transport.close()  # sends what was written before
        return response

    async def _send(self, request: web.Request, response: web.StreamResponse, piece: Piece) -> None:
        if isinstance(piece, Hang):
            await self.release.wait()
        elif isinstance(piece, Cut):
            if request.transport is not None:
                request.transport.abort()
        else:
            data = piece if isinstance(piece, str) else f"data: {json.dumps(piece)}\n\n"
            await response.write(data.encode())


@asynccontextmanager
async def serving(
    *script: Sequence[Piece] | Refusal, cookie: str = ""
) -> AsyncIterator[ChatServer]:
    server = ChatServer(script)
    server.cookie = cookie
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.answer)
    async with served(app, handler_cancellation=True) as url:
        server.url = f"{url}/v1"
        try:
            yield server
        finally:
            server.release.set()


DONE = "data: [DONE]\n\n"


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": delta or {}, "finish_reason": finish}],
    }


def usage_chunk(prompt: int, output: int, cached: int = 0) -> dict[str, Any]:
    return chunk() | {
        "choices": [],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
            "prompt_tokens_details": {"cached_tokens": cached},
        },
    }


def said(*words: str) -> list[Piece]:
    """Return a whole answer of some words."""
    return [
        chunk({"role": "assistant", "content": ""}),
        *(chunk({"content": word}) for word in words),
        chunk(finish="stop"),
        usage_chunk(100, 20, 40),
        DONE,
    ]


def call_piece(index: int, call_id: str | None, name: str | None, text: str) -> dict[str, Any]:
    function = {"arguments": text} | ({"name": name} if name else {})
    piece: dict[str, Any] = {"index": index, "function": function}
    if call_id:
        piece |= {"id": call_id, "type": "function"}
    return chunk({"tool_calls": [piece]})
