"""Calls that come too late for their attempt are entered as soon as Postgres takes them."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from shared.ending import end_all
from shared.records import LedgerEntry
from shared.settings import load_settings
from shared.store import claims
from shared.store.database import Database
from tests.shared.sessions import new_session
from tests.shared.tables import dump
from tests.waiting import PATIENCE, until
from worker.late_usage import LateUsage

ENTRY = LedgerEntry(0, "m/m", "reply", "done", reported=True, input=7)


@pytest.fixture
async def db(postgres_url: str) -> AsyncIterator[Database]:
    changed = {"database_url": SecretStr(postgres_url), "database_pool": 2}
    found = Database.from_settings(load_settings().model_copy(update=changed))
    yield found
    await found.close()


async def test_they_wait_for_a_postgres_that_is_away(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.trouble.SAY_SECONDS", 0.0)
    claim = await claims.claim(db, await new_session(db), lease_seconds=30, history=1)
    assert claim is not None
    late = LateUsage(db, pause=0.01)
    entering = asyncio.create_task(late.enter_for_ever())
    db.gate.closed = "away"
    with capture_logs() as logs:
        late.add(claim, [ENTRY])
        late.add(claim, [ENTRY])  # the same once more

        async def tried() -> bool:
            return len(logs) > 1

        await until(tried)
    db.gate.closed = None

    async def entered() -> bool:
        return len((await dump(db))["usage"]) == 1

    await until(entered)
    await end_all([entering])
    await late.enter_the_rest(PATIENCE)
    (row,) = (await dump(db))["usage"]
    assert (row["input"], row["user_id"]) == (7, "me")


async def test_what_cannot_be_entered_before_the_end_is_told(db: Database) -> None:
    claim = await claims.claim(db, await new_session(db), lease_seconds=30, history=1)
    assert claim is not None
    late = LateUsage(db, pause=0.01)
    late.add(claim, [ENTRY])
    db.gate.closed = "away"

    with capture_logs() as logs:
        await late.enter_the_rest(1)

    (error,) = [one for one in logs if one["log_level"] == "error"]
    assert (error["calls"], error["tokens"], error["task_id"]) == (1, 7, str(claim.task_id))
