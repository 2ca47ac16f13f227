"""The worker as Celery starts it."""

import asyncio
import os
import sys

from tests.waiting import PATIENCE, within


async def test_a_worker_whose_agents_are_broken_does_not_start() -> None:
    away = {"DATABASE_URL": "postgresql://127.0.0.1:1/none", "REDIS_URL": "redis://127.0.0.1:1/0"}
    agents = {"FIRESIDE_AGENT_MODULES": "tests.worker.broken_agents"}
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "celery", "-A", "worker.app", "worker"),
        env={**os.environ, **away, **agents},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await within(worker.communicate(), 4 * PATIENCE)  # it imports all that there is

    assert worker.returncode == 1, said.decode()
    assert b"these agents are broken" in said
