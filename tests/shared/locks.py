"""Waiting until others wait: what makes a race come out the same each time."""

import asyncio
from typing import Any

import psycopg


async def lock_waiters(watcher: psycopg.AsyncConnection[Any], count: int = 1) -> None:
    """Return once so many connections wait for a lock."""
    for _ in range(500):
        # Not pg_stat_activity: within a transaction that is a snapshot.
        cursor = await watcher.execute("select count(distinct pid) from pg_locks where not granted")
        if await cursor.fetchone() == (count,):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"there are no {count} that wait for a lock")
