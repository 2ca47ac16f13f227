"""The keeper of a worker: what becomes of it where no process can be started."""

import asyncio
import sys
from typing import Any

import pytest
from sqlalchemy import text

from shared.ending import end_all
from shared.store import claims
from shared.store.database import Database
from tests.shared.sessions import new_session
from tests.waiting import until
from worker.keeper import START_SECONDS, Keeper


async def test_a_start_that_fails_is_tried_again(
    db: Database, logs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await new_session(db)
    for _ in range(2):
        await claims.claim(db, session, lease_seconds=-1, history=1, quarantine_after=1)
    # As where the container may have no more processes, the program can't be begun.
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    keeping = asyncio.create_task(Keeper(db, every=0.01).keep_for_ever())

    def events() -> list[str]:
        return [one["event"] for one in logs]

    await until(lambda: keeping.done() or "quarantine not begun" in events())
    assert not keeping.done()
    monkeypatch.setattr(sys, "executable", "true")
    time_passes = text("update sessions set hint_at = hint_at - make_interval(secs => :seconds)")
    await db.run(time_passes, {"seconds": START_SECONDS})
    await until(lambda: "quarantine over" in events())
    await end_all([keeping])

    assert events() == ["quarantine not begun", "quarantine begun", "quarantine over"]
    assert (logs[0]["session_id"], logs[0]["log_level"]) == (str(session), "warning")
