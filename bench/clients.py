"""How a player speaks to each server: open a session, take turns in it, close it.

`act` gives None once the server has taken the action, then each piece of text as it comes, and
ends when the server says that the turn is over.
"""

import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp


class TurnFailedError(Exception):
    """The server refused a turn, ended it with an error, or closed the connection."""


class Client(Protocol):
    """One server's protocol; what `open` gives is handed to the other two."""

    async def open(self, number: int) -> Any: ...

    def act(self, session: Any, text: str) -> AsyncIterator[str | None]: ...

    async def close(self, session: Any) -> None: ...


class HttpClient:
    """What all clients share: where the server is, and one pool of connections."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self.url = url
        self.http = http

    async def close(self, session: Any) -> None:
        """Nothing stays open."""

    async def post(self, path: str, body: Any = None) -> Any:
        """The JSON answer; raises TurnFailedError where it is no success."""
        async with self.http.post(f"{self.url}{path}", json=body) as answer:
            await _succeeded(answer)
            return await answer.json()


async def _succeeded(answer: aiohttp.ClientResponse) -> None:
    if answer.status >= 300:
        raise TurnFailedError(f"{answer.status} {(await answer.text())[:200]}")


async def _frames(socket: aiohttp.ClientWebSocketResponse) -> AsyncIterator[Any]:
    async for message in socket:
        if message.type is not aiohttp.WSMsgType.TEXT:
            break
        yield json.loads(message.data)
    raise TurnFailedError(f"the socket closed ({socket.close_code})")


@dataclass
class _Followed:
    """A session and the socket that follows it."""

    id: str
    socket: aiohttp.ClientWebSocketResponse


class Fireside(HttpClient):
    """POST for actions, a WebSocket for what they give; the key goes with each request."""

    agent = "companion"

    async def open(self, number: int) -> _Followed:
        """Make a session with a character of its own, as each player has, and follow it until
        its greeting is over."""
        character = await self.post("/v1/characters", {"agent": self.agent, "name": "Ash"})
        made = await self.post(
            "/v1/sessions", {"agent": self.agent, "character_id": character["id"]}
        )
        followed = await self.follow(made["id"], after=0)
        async for frame in _frames(followed.socket):
            if frame["type"] == "task_completed" and frame["task_id"] == made["task_id"]:
                break
        return followed

    async def follow(self, session_id: str, after: int) -> _Followed:
        """A socket on a session, from the event behind `after` on."""
        ticket = (await self.post("/v1/ws-tickets"))["ticket"]
        socket = await self.http.ws_connect(
            f"{self.url}/ws/sessions/{session_id}?after={after}", max_msg_size=0
        )
        await socket.send_json({"type": "auth", "ticket": ticket})
        return _Followed(session_id, socket)

    async def act(self, session: _Followed, text: str) -> AsyncIterator[str | None]:
        """One turn; the text of a message comes by deltas, and whole at its end."""
        accepted = await self.post(
            f"/v1/sessions/{session.id}/actions", {"type": "say", "text": text}
        )
        yield None
        streamed = ""
        async for frame in _frames(session.socket):
            if frame.get("task_id") != accepted["task_id"]:
                continue
            match frame["type"]:
                case "message_update" if frame["offset"] == len(streamed):
                    streamed += frame["delta"]
                    yield frame["delta"]
                case "message_end" if frame["data"]["message"]["role"] == "assistant":
                    whole = frame["data"]["message"]["content"][0]["text"]
                    if not whole.startswith(streamed):
                        raise TurnFailedError(
                            f"deltas {streamed[-40:]!r} are not of {whole[:40]!r}"
                        )
                    if len(whole) > len(streamed):
                        yield whole[len(streamed) :]
                    streamed = ""
                case "task_completed":
                    return
                case "task_failed" | "task_cancelled" | "task_dead":
                    raise TurnFailedError(json.dumps(frame)[:200])

    async def close(self, session: _Followed) -> None:
        """Close the socket."""
        await session.socket.close()


class Naive(HttpClient):
    """Our textbook server: POST for a message, a WebSocket for the answer's pieces."""

    async def open(self, number: int) -> _Followed:
        """Make a chat and follow it."""
        made = await self.post("/chats")
        socket = await self.http.ws_connect(f"{self.url}/chats/{made['chat']}/stream")
        async for frame in _frames(socket):
            if frame["kind"] == "following":
                break
        return _Followed(made["chat"], socket)

    async def act(self, session: _Followed, text: str) -> AsyncIterator[str | None]:
        """One turn."""
        accepted = await self.post(f"/chats/{session.id}/messages", {"text": text})
        yield None
        async for frame in _frames(session.socket):
            if frame["answer"] != accepted["answer"]:
                continue
            if frame["kind"] == "piece":
                yield frame["text"]
            elif frame["kind"] == "over":
                return
            else:
                raise TurnFailedError(frame["reason"][:200])

    async def close(self, session: _Followed) -> None:
        """Close the socket."""
        await session.socket.close()


async def server_sent(answer: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, str]]:
    """The event's name and data of each server-sent event of an answer."""
    name, data, rest = "", [], b""
    async for received in answer.content.iter_any():
        *lines, rest = (rest + received).split(b"\n")
        for raw in lines:
            line = raw.rstrip(b"\r").decode()
            field, _, value = line.partition(":")
            if field == "data":
                data.append(value.removeprefix(" "))
            elif field == "event":
                name = value.strip()
            elif not line:
                if data:
                    yield name, "\n".join(data)
                name, data = "", []


class Direct(HttpClient):
    """The model itself; what no server can be better than."""

    async def open(self, number: int) -> list[dict[str, str]]:
        """An empty history."""
        return []

    async def act(self, session: list[dict[str, str]], text: str) -> AsyncIterator[str | None]:
        """One model call with the whole history."""
        session.append({"role": "user", "content": text})
        body = {"model": "scripted", "stream": True, "messages": session}
        said = []
        async with self.http.post(f"{self.url}/chat/completions", json=body) as answer:
            await _succeeded(answer)
            yield None
            async for _, data in server_sent(answer):
                choices = json.loads(data)["choices"] if data.startswith("{") else []
                piece = choices[0]["delta"].get("content") if choices else None
                if piece:
                    said.append(piece)
                    yield piece
        session.append({"role": "assistant", "content": "".join(said)})


class LangGraph(HttpClient):
    """The protocol of the LangGraph server, which Aegra speaks as well."""

    async def open(self, number: int) -> str:
        """Make a thread."""
        return str((await self.post("/threads", {}))["thread_id"])

    async def act(self, session: str, text: str) -> AsyncIterator[str | None]:
        """One run, streamed."""
        body = {
            "assistant_id": "chat",
            "stream_mode": ["messages-tuple"],
            "input": {"messages": [{"role": "user", "content": text}]},
        }
        async with self.http.post(f"{self.url}/threads/{session}/runs/stream", json=body) as answer:
            await _succeeded(answer)
            yield None
            async for name, data in server_sent(answer):
                if name == "messages":
                    message = json.loads(data)[0]
                    if message["type"] == "AIMessageChunk" and message["content"]:
                        yield message["content"]
                elif name == "error":
                    raise TurnFailedError(data[:200])


class Agno(HttpClient):
    """AgentOS; `background` asks for its durable queue."""

    background = False

    async def open(self, number: int) -> str:
        """Sessions begin with their first run."""
        return uuid.uuid4().hex

    async def act(self, session: str, text: str) -> AsyncIterator[str | None]:
        """One run, streamed."""
        form = {"message": text, "stream": "true", "session_id": session, "user_id": session}
        if self.background:
            form["background"] = "true"
        async with self.http.post(f"{self.url}/agents/chat/runs", data=form) as answer:
            await _succeeded(answer)
            yield None
            async for name, data in server_sent(answer):
                if name == "RunContent":
                    if piece := json.loads(data).get("content"):
                        yield piece
                elif name == "RunError":
                    raise TurnFailedError(data[:200])


class AgnoQueue(Agno):
    """The same through the queue."""

    background = True


class Adk(HttpClient):
    """Google's api_server; a session is a user's."""

    async def open(self, number: int) -> dict[str, str]:
        """Make a session of a user of its own."""
        user = f"player{number}"
        made = await self.post(f"/apps/chat/users/{user}/sessions", {})
        return {"app_name": "chat", "user_id": user, "session_id": made["id"]}

    async def act(self, session: dict[str, str], text: str) -> AsyncIterator[str | None]:
        """One run, streamed."""
        said = {"role": "user", "parts": [{"text": text}]}
        body = {**session, "streaming": True, "new_message": said}
        async with self.http.post(f"{self.url}/run_sse", json=body) as answer:
            await _succeeded(answer)
            yield None
            async for _, data in server_sent(answer):
                event = json.loads(data)
                if "error" in event or event.get("errorCode"):
                    raise TurnFailedError(data[:200])
                if event.get("partial"):
                    for part in event.get("content", {}).get("parts", []):
                        if part.get("text"):
                            yield part["text"]
