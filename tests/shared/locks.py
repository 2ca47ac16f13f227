"""Waiting until others wait: what makes a race come out the same each time."""

from typing import Any

import psycopg

from tests.waiting import until


async def lock_waiters(watcher: psycopg.AsyncConnection[Any], count: int = 1) -> None:
    """Return once so many connections wait for a lock."""

    async def wait_there() -> bool:
        # Not pg_stat_activity: within a transaction that is a snapshot.
        cursor = await watcher.execute("select count(distinct pid) from pg_locks where not granted")
        return await cursor.fetchone() == (count,)

    await until(wait_there)
