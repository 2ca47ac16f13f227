"""`uvicorn bench.naive.gateway:app`: takes messages and relays what a worker publishes."""

import asyncio
import json
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import redis.asyncio
from celery import Celery
from fastapi import FastAPI, HTTPException, WebSocket, WebSocketDisconnect
from pydantic import BaseModel

from bench.naive import history
from bench.naive.names import ANSWER, channel

engine = history.connect()
queue = Celery("naive", broker=os.environ["REDIS_URL"])


class Said(BaseModel):
    """A message."""

    text: str


@asynccontextmanager
async def _prepared(_: FastAPI) -> AsyncIterator[None]:
    await asyncio.to_thread(history.make_tables, engine)
    yield


app = FastAPI(lifespan=_prepared)


@app.post("/chats", status_code=201)
def begin() -> dict[str, str]:
    """Make a chat."""
    return {"chat": history.begin(engine)}


@app.post("/chats/{chat}/messages", status_code=202)
def say(chat: str, said: Said) -> dict[str, str]:
    """Put a message into the queue."""
    if not history.exists(engine, chat):
        raise HTTPException(404)
    answer = uuid.uuid4().hex
    queue.send_task(ANSWER, [chat, answer, said.text], ignore_result=True)
    return {"answer": answer}


@app.websocket("/chats/{chat}/stream")
async def stream(socket: WebSocket, chat: str) -> None:
    """Relay the chat's channel, each socket over a subscription of its own."""
    await socket.accept()
    client: Any = redis.asyncio.Redis.from_url(os.environ["REDIS_URL"])
    async with aclosing(client), client.pubsub() as pubsub:
        await pubsub.subscribe(channel(chat))
        await socket.send_text(json.dumps({"kind": "following"}))
        relaying = asyncio.create_task(_relay(pubsub, socket))
        try:
            while True:
                await socket.receive_text()
        except WebSocketDisconnect:
            relaying.cancel()


async def _relay(pubsub: Any, socket: WebSocket) -> None:
    async for message in pubsub.listen():
        if message["type"] == "message":
            await socket.send_text(message["data"].decode())
