"""The worker as Celery starts it."""

import asyncio
import json
import os
import sys

import httpx
import pytest
from sqlalchemy import text

from shared.store.database import Database
from tests.ports import promised_port
from tests.waiting import PATIENCE, until, within


async def test_a_worker_whose_agents_are_broken_does_not_start_and_logs_no_secrets() -> None:
    database = "postgresql://u:hunter2@127.0.0.1:1/none"
    away = {"DATABASE_URL": database, "REDIS_URL": "redis://127.0.0.1:1/0"}
    agents = {"FIRESIDE_AGENT_MODULES": "tests.worker.broken_agents"}
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "celery", "-A", "worker.app", "worker"),
        env={**os.environ, **away, **agents},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, logged = await within(worker.communicate(), 4 * PATIENCE)  # it imports all that there is

    assert worker.returncode == 1, logged.decode()
    assert b"hunter2" not in said + logged
    line = json.loads(logged.splitlines()[-1])
    assert line["event"] == "the worker can't start"
    assert "these agents are broken" in line["exception"]


async def test_a_wrong_setting_is_told_in_a_line() -> None:
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "celery", "-A", "worker.app", "worker"),
        env={**os.environ, "FIRESIDE_LEASE_SECONDS": "0"},
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await within(worker.communicate(), 4 * PATIENCE)

    why = "FIRESIDE_LEASE_SECONDS: Input should be greater than or equal to 0.5"
    assert (worker.returncode, said.decode()) == (1, f"fireside: {why}\n")


@pytest.mark.parametrize("revision", ["0000", None])
async def test_a_worker_answers_a_probe_once_it_serves_and_not_before(
    db: Database, postgres_url: str, redis_url: str, revision: str | None
) -> None:
    if revision is not None:
        await db.run(text("update alembic_version set version_num = :to"), {"to": revision})
    where = f"127.0.0.1:{promised_port()}"
    settings = {"DATABASE_URL": postgres_url, "REDIS_URL": redis_url, "FIRESIDE_LOG_FORMAT": "text"}
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "celery", "-A", "worker.app", "worker"),
        env={**os.environ, **settings, "FIRESIDE_WORKER_METRICS": where},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    answers = []

    async def is_decided() -> bool:
        try:
            async with httpx.AsyncClient() as http:
                answers.append((await http.get(f"http://{where}/metrics")).status_code)
        except httpx.ConnectError:
            return worker.returncode is not None
        return True

    try:
        await until(is_decided, 4 * PATIENCE)
    finally:
        if worker.returncode is None:
            worker.terminate()
        await within(worker.wait(), 4 * PATIENCE)

    if revision is None:
        assert answers == [200]
    else:
        assert (answers, worker.returncode) == ([], 1)
