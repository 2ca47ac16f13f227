"""`celery -A bench.naive.worker worker`: each task calls the model and publishes its pieces."""

import json
import os
from functools import cache
from typing import Any

import litellm
import redis
from celery import Celery
from sqlalchemy import Engine

from bench.naive import history
from bench.naive.names import ANSWER, channel

SYSTEM = {"role": "system", "content": "You are a helpful assistant."}

app = Celery("naive", broker=os.environ["REDIS_URL"])
app.conf.update(task_acks_late=True, task_ignore_result=True, worker_prefetch_multiplier=1)


@cache
def _engine() -> Engine:
    return history.connect()


@cache
def _redis() -> redis.Redis:
    return redis.Redis.from_url(os.environ["REDIS_URL"])


def answer(chat: str, answer_id: str, text: str) -> None:
    """Answer a message."""

    def tell(kind: str, **more: str) -> None:
        frame = {"kind": kind, "answer": answer_id, **more}
        _redis().publish(channel(chat), json.dumps(frame))

    try:
        said = _stream(chat, text, tell)
        history.add(_engine(), chat, text, said)
    except Exception as error:
        tell("failed", reason=repr(error))
        raise
    tell("over")


def _stream(chat: str, text: str, tell: Any) -> str:
    asked = [SYSTEM, *history.messages(_engine(), chat), {"role": "user", "content": text}]
    pieces: Any = litellm.completion(
        model="openai/scripted",
        api_base=os.environ["MODEL_URL"],
        api_key="none",
        messages=asked,
        stream=True,
    )
    said = []
    for one in pieces:
        if piece := one.choices[0].delta.content:
            said.append(piece)
            tell("piece", text=piece)
    return "".join(said)


answer_task = app.task(name=ANSWER)(answer)
