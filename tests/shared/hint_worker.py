"""A stock Celery app with the hint's task: what it was called with goes onto a Redis list."""

import os

from celery import Task
from redis import Redis

from shared.queue import ADVANCE, make_celery
from shared.settings import load_settings

settings = load_settings()
app = make_celery(settings)


@app.task(name=ADVANCE, bind=True)  # type: ignore[untyped-decorator]  # Celery has no types
def advance(_task: Task, session_id: str) -> None:
    with Redis.from_url(settings.redis_url.get_secret_value()) as redis:
        redis.lpush(os.environ["RAN_LIST"], session_id)
