"""A small gateway that speaks the contract with scripted answers, and fails when it is told to.

`python -m tests.browser.stub_gateway` prints one line of JSON with the URLs of the page and of the
control, and runs until its standard input ends.
"""

import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeAlias, cast

from aiohttp import WSCloseCode, WSMsgType, web

from tests.browser.stub_sessions import AGENTS, Json, Session, Settings

PAGE = Path(__file__).parents[2] / "api" / "page"

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Stub:
    """The gateway that can be killed, and what outlives it."""

    def __init__(self) -> None:
        self.settings = Settings()
        self.sessions: dict[str, Session] = {}
        self.sockets: set[web.WebSocketResponse] = set()
        self.tickets: set[str] = set()
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self) -> None:
        """Serve, on the same port each time."""
        self._runner = web.AppRunner(self._app(), shutdown_timeout=0.1)
        await self._runner.setup()
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        await web.SockSite(self._runner, listener).start()

    async def kill(self) -> None:
        """End as a killed process does: sockets break without a word."""
        assert self._runner is not None
        for one in list(self.sockets):
            transport = one.get_extra_info("socket")
            if transport is not None:
                with contextlib.suppress(OSError):
                    transport.shutdown(socket.SHUT_RDWR)
        await self._runner.cleanup()
        self._runner = None

    # -- the contract's routes ------------------------------------------------------------------

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[self._authorize])
        app.add_routes(
            [
                web.get("/", self._index),
                web.get("/v1/agents", self._agents),
                web.get("/v1/sessions", self._list),
                web.post("/v1/sessions", self._create),
                web.get("/v1/sessions/{id}", self._session),
                web.get("/v1/sessions/{id}/messages", self._messages),
                web.get("/v1/sessions/{id}/events", self._events),
                web.post("/v1/sessions/{id}/cancel", self._cancel_action),
                web.post("/v1/tasks/{id}/cancel", self._cancel_task),
                web.post("/v1/ws-tickets", self._ticket),
                web.get("/v1/usage", self._usage),
                web.get("/ws/sessions/{id}", self._socket),
                web.static("/static", PAGE / "static"),
            ]
        )
        return app

    @web.middleware
    async def _authorize(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        key = self.settings.key
        given = request.headers.get("Authorization")
        if request.path.startswith("/v1/") and key is not None and given != f"Bearer {key}":
            return problem(401, "unauthorized", "Give an API key.")
        return await handler(request)

    async def _index(self, _: web.Request) -> web.StreamResponse:
        headers = {"Content-Security-Policy": CSP, "Cache-Control": "no-cache"}
        return web.FileResponse(PAGE / "index.html", headers=headers)

    async def _agents(self, _: web.Request) -> web.Response:
        return web.json_response({"agents": AGENTS})

    async def _list(self, request: web.Request) -> web.Response:
        newest = list(reversed(self.sessions.values()))
        ids = [one.id for one in newest]
        first = ids.index(request.query["before"]) + 1 if "before" in request.query else 0
        page = newest[first : first + int(request.query["limit"])]
        following = page[-1].id if len(page) == int(request.query["limit"]) else None
        return web.json_response({"sessions": [one.body() for one in page], "next": following})

    async def _create(self, request: web.Request) -> web.Response:
        wanted = cast("Json", await request.json())
        for known in self.sessions.values():
            if known.key == wanted["key"]:
                return web.json_response(known.body())
        session = Session(wanted, self.settings)
        self.sessions[session.id] = session
        task = session.accept({"type": "start"})
        return web.json_response({**session.body(), "task_id": task.id}, status=201)

    def _find(self, request: web.Request) -> Session:
        session = self.sessions.get(request.match_info["id"])
        if session is None:
            content = problem_body(404, "not_found", "no such session")
            raise web.HTTPNotFound(text=content, content_type="application/problem+json")
        return session

    async def _session(self, request: web.Request) -> web.Response:
        return web.json_response(self._find(request).body())

    async def _messages(self, request: web.Request) -> web.Response:
        return web.json_response({"messages": self._find(request).messages})

    async def _events(self, request: web.Request) -> web.Response:
        session = self._find(request)
        after, limit = int(request.query["after"]), int(request.query["limit"])
        events = [event for event in session.events if event["seq"] > after][:limit]
        head = {"head_seq": session.head_seq, "first_seq": session.first_seq}
        return web.json_response({"events": events, **head})

    async def _cancel_task(self, request: web.Request) -> web.Response:
        for session in self.sessions.values():
            if task := session.tasks.get(request.match_info["id"]):
                task.cancelled.set()
        return web.json_response({}, status=202)

    async def _cancel_action(self, request: web.Request) -> web.Response:
        self._find(request)
        return web.json_response({}, status=202)

    async def _ticket(self, _: web.Request) -> web.Response:
        ticket = f"ticket-{len(self.tickets)}"
        self.tickets.add(ticket)
        return web.json_response({"ticket": ticket, "expires_in": 30})

    async def _usage(self, request: web.Request) -> web.Response:
        """Each task that was answered has made one call."""
        wanted = request.query.get("session_id")
        tasks = [
            task
            for session in self.sessions.values()
            for task in session.tasks.values()
            if task.action["type"] == "say"
            and (session.id == wanted or task.id == request.query.get("task_id"))
        ]
        calls = len(tasks)
        total = {"calls": calls, "unpriced_calls": 0, "billed_usd": 0.0012 * calls}
        total |= {"input": 400 * calls, "cache_read": 1000 * calls, "cache_write": 0}
        return web.json_response({"total": total | {"output": 50 * calls}, "rows": []})

    # -- the socket -----------------------------------------------------------------------------

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        session = self.sessions.get(request.match_info["id"])
        if session is None:
            await ws.close(code=4404)
            return ws
        if self.settings.key is not None and not await self._has_ticket(ws):
            await ws.close(code=4401)
            return ws
        self.sockets.add(ws)
        frames: asyncio.Queue[Json] = asyncio.Queue()
        session.listeners.add(frames)
        for frame in replay(session, int(request.query.get("after", session.head_seq))):
            frames.put_nowait(frame)
        writer = asyncio.create_task(write(ws, frames))
        try:
            async for message in ws:
                if message.type is WSMsgType.TEXT and not await self._take(
                    ws, session, json.loads(message.data)
                ):
                    break
        finally:
            session.listeners.discard(frames)
            self.sockets.discard(ws)
            writer.cancel()
        return ws

    async def _has_ticket(self, ws: web.WebSocketResponse) -> bool:
        frame = await ws.receive_json()
        known = frame.get("type") == "auth" and frame.get("ticket") in self.tickets
        if known:
            self.tickets.remove(frame["ticket"])
        return known

    async def _take(self, ws: web.WebSocketResponse, session: Session, frame: Json) -> bool:
        """Do what a frame asks; False where the connection is lost before the ack."""
        if frame["type"] != "action":
            return True
        if self.settings.refusal is not None:
            error, self.settings.refusal = self.settings.refusal, None
            await ws.send_json({"type": "error", "id": frame["id"], "error": error})
            return True
        task = session.accept(frame["action"], frame["id"])
        if self.settings.lost_acks > 0:
            self.settings.lost_acks -= 1
            await ws.close(code=WSCloseCode.SERVICE_RESTART)
            return False
        ack = {"type": "ack", "id": frame["id"], "task_id": task.id, "status": task.status}
        await ws.send_json(ack)
        return True


def replay(session: Session, after: int) -> list[Json]:
    """What a client that has everything up to `after` gets first."""
    frames: list[Json] = []
    if session.first_seq > after + 1:
        frames.append({"type": "gap", "from": after + 1, "to": session.first_seq - 1})
    frames += [event for event in session.events if event["seq"] > after]
    text = session.text_so_far()
    return [*frames, text] if text else frames


async def write(ws: web.WebSocketResponse, frames: "asyncio.Queue[Json]") -> None:
    with contextlib.suppress(ConnectionError):
        while True:
            await ws.send_json(await frames.get())


def problem_body(status: int, code: str, detail: str) -> str:
    return json.dumps({"type": "about:blank", "status": status, "code": code, "detail": detail})


def problem(status: int, code: str, detail: str) -> web.Response:
    content = problem_body(status, code, detail)
    return web.Response(text=content, status=status, content_type="application/problem+json")


class Control:
    """What the tests may do to the stub, over HTTP on a port of its own."""

    def __init__(self, stub: Stub) -> None:
        self._stub = stub

    def app(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.post("/kill", self._kill),
                web.post("/start", self._start),
                web.post("/drop", self._drop),
                web.post("/kill-worker", self._kill_worker),
                web.post("/forget", self._forget),
                web.post("/settings", self._settings),
                web.get("/accepted", self._accepted),
            ]
        )
        return app

    async def _kill(self, _: web.Request) -> web.Response:
        await self._stub.kill()
        return web.json_response({})

    async def _start(self, _: web.Request) -> web.Response:
        await self._stub.start()
        return web.json_response({})

    async def _drop(self, request: web.Request) -> web.Response:
        code = (await body(request)).get("code", 1012)
        for ws in list(self._stub.sockets):
            await ws.close(code=code)
        return web.json_response({})

    async def _kill_worker(self, _: web.Request) -> web.Response:
        for session in self._stub.sessions.values():
            if session.running is not None:
                session.running.killed.set()
        return web.json_response({})

    async def _forget(self, _: web.Request) -> web.Response:
        for session in self._stub.sessions.values():
            session.forget()
        return web.json_response({})

    async def _settings(self, request: web.Request) -> web.Response:
        self._stub.settings.__dict__.update(await body(request))
        return web.json_response({})

    async def _accepted(self, _: web.Request) -> web.Response:
        counted = {one.id: one.accepted for one in self._stub.sessions.values()}
        return web.json_response(counted)


async def body(request: web.Request) -> Json:
    return cast("Json", await request.json()) if request.can_read_body else {}


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[tuple[str, str]]:
    """The stub, with the URLs of its page and its control."""
    stub = Stub()
    await stub.start()
    control = web.AppRunner(Control(stub).app())
    await control.setup()
    site = web.TCPSite(control, "127.0.0.1", 0)
    await site.start()
    host, port = control.addresses[0][:2]
    try:
        yield f"http://127.0.0.1:{stub.port}", f"http://{host}:{port}"
    finally:
        await stub.kill()
        await control.cleanup()


async def main() -> None:
    async with running() as (page, control):
        print(json.dumps({"page": page, "control": control}), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
