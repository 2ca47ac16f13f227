"""The process that runs what is in quarantine: when it begins, when it ends, and what it leaves."""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from deploy.local.fleet import Fleet
from deploy.local.server import ROOT
from shared.records import NewSession
from shared.store import claims, sessions
from shared.store.database import Database
from tests.shared.invariants import broken
from tests.shared.sessions import ME, claimed, finish, say
from tests.waiting import PATIENCE, until, within
from tests.wire import Wire


@pytest.fixture
def times() -> dict[str, str]:
    """Leases that no busy machine makes run out."""
    return {"lease_seconds": "60", "stuck_seconds": "120"}


@pytest.fixture
def hasty(fleet: Fleet) -> Fleet:
    """The fleet, with processes that wait for nothing when they are told to stop."""
    fleet.env |= {"FIRESIDE_DRAIN_SECONDS": "0"}
    return fleet


async def quarantined(db: Database, order: str) -> UUID:
    """A session whose task was lost twice."""
    session, _, _ = await sessions.create(db, ME, NewSession("kitchen"), "Ember")
    await finish(db, await claimed(db, session.id))
    await say(db, session.id, order)
    for _ in range(3):
        await claims.claim(db, session.id, lease_seconds=-1, history=1, quarantine_after=2)
    return session.id


@asynccontextmanager
async def started(fleet: Fleet, **env: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker.quarantine"),
        cwd=ROOT,
        env=fleet.env | env,
        stdin=PIPE,
        stderr=PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def head(db: Database, session: UUID) -> tuple[Any, ...]:
    """Quarantine and lease of a session; status, claims and attempts of its last task."""
    row = await db.row(
        text(
            """
            select s.quarantined, s.lease_token is not null, t.status, t.claims, t.attempts
            from sessions s join tasks t on t.session_id = s.id
            where s.id = :s order by t.seq desc limit 1
            """
        ),
        {"s": session},
    )
    assert row is not None
    return tuple(row)


def orders(fleet: Fleet) -> list[str]:
    return Path(fleet.env["FIRESIDE_NOTES"]).read_text().splitlines()


async def noted(fleet: Fleet, times: int = 1) -> None:
    """Wait until the agent has noted so many orders, in a process that has yet to start."""

    async def there() -> bool:
        return len(orders(fleet)) >= times

    await until(there, 3 * PATIENCE)


async def is_free(db: Database, session: UUID) -> None:
    async def free() -> bool:
        return (await head(db, session))[1] is False

    await until(free)


async def test_it_runs_what_is_there_one_by_one_and_ends(db: Database, fleet: Fleet) -> None:
    waiting = [await quarantined(db, "bread") for _ in range(3)]
    async with started(fleet) as process:
        code = await within(process.wait(), 3 * PATIENCE)

    assert code == 0
    for session in waiting:
        assert await head(db, session) == (False, False, "completed", 3, 3)
    assert await broken(db) == []


async def test_a_claim_without_an_answer_is_asked_for_again(
    db: Database, fleet: Fleet, wire: Wire
) -> None:
    session = await quarantined(db, "bread")
    wire.cut("before", "claim quarantined lease")
    async with started(fleet, DATABASE_URL=wire.url) as process:
        code = await within(process.wait(), 3 * PATIENCE)

    assert code == 0
    assert wire.cuts_made
    assert await head(db, session) == (False, False, "completed", 3, 3)


async def test_it_calls_the_models_that_its_worker_calls(db: Database, fleet: Fleet) -> None:
    session = await quarantined(db, "the cheap one")
    async with started(fleet, FIRESIDE_MODEL_CHEAP="openai/small") as process:
        code = await within(process.wait(), 3 * PATIENCE)

    assert code == 0
    result = await db.row(
        text("select result ->> 'text' from tasks where session_id = :s order by seq desc limit 1"),
        {"s": session},
    )
    assert result == ("openai/small is served",)


def _end_of_input(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.close()


def _sigterm(process: Process) -> None:
    process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize("tell", [_end_of_input, _sigterm])
async def test_it_hands_over_when_it_is_told_to_stop_or_its_worker_is_gone(
    db: Database, hasty: Fleet, tell: Callable[[Process], None]
) -> None:
    session, other = await quarantined(db, "stew"), await quarantined(db, "stew")
    async with started(hasty) as process:
        await noted(hasty)
        assert await head(db, session) == (True, True, "running", 3, 3)
        tell(process)
        code = await within(process.wait(), 3 * PATIENCE)

    assert code == 0
    assert await head(db, session) == (True, False, "running", 3, 2)
    assert await head(db, other) == (True, False, "running", 2, 2)
    assert await broken(db) == []


async def test_one_that_cannot_start_says_why(db: Database, fleet: Fleet) -> None:
    async with started(fleet, FIRESIDE_AGENT_MODULES="no.such.module") as process:
        _, said = await within(process.communicate(), 3 * PATIENCE)

    assert process.returncode == 1
    assert b"fireside: the quarantine can't start: FIRESIDE_AGENT_MODULES" in said


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_worker_that_ends_takes_its_quarantine_with_it(
    db: Database, hasty: Fleet, how: str
) -> None:
    worker = await asyncio.to_thread(hasty.add_worker)
    session = await quarantined(db, "stew")
    await noted(hasty)
    await asyncio.to_thread(getattr(worker, how))
    await is_free(db, session)

    assert await head(db, session) == (True, False, "running", 3, 2)
    assert worker.returncode == (0 if how == "stop" else -signal.SIGKILL)
