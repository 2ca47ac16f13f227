"""Workers with different agents over one queue, as a rolling upgrade has them."""

import asyncio
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from agent_core import Model
from shared.records import CatalogEntry, NewSession, Task
from shared.store import actions, cancels, catalog, leases, sessions
from shared.store.database import Database
from tests.shared.invariants import broken
from tests.shared.sessions import ME, claimed, new_session
from tests.waiting import until, within
from tests.wire import Wire
from tests.worker.hosts import Hosts, echo
from worker.host import Host

pytestmark = pytest.mark.usefixtures("logs")

COMPANION = CatalogEntry("agent", "companion", "Companion")
NO_AGENT = {
    "code": "agent_unknown",
    "message": "no worker has the agent 'companion'",
}


async def row_of(db: Database, session: UUID) -> Any:
    """The opening task beside its session's lease; `due` is when it may be claimed again."""
    return await db.row(
        text(
            "select t.id, t.status, t.claims, t.attempts, t.started_at, s.epoch, s.lease_token,"
            " extract(epoch from s.ready_at - clock_timestamp())::float as due,"
            " s.ready_at = s.hint_at as together"
            " from sessions s join tasks t on t.session_id = s.id and t.seq = 1 where s.id = :s"
        ),
        {"s": session},
    )


async def task_of(db: Database, session: UUID) -> Task:
    return await actions.get_task(db, ME, (await row_of(db, session)).id)


async def kinds_of(db: Database, session: UUID) -> list[str]:
    events = await sessions.events_after(db, ME, session, after=0, limit=1000)
    return [event.type for event in events]


async def left_alone(db: Database, session: UUID, epoch: int = 1) -> None:
    """Wait until a session was claimed so many times and nobody has it."""

    async def is_left() -> bool:
        row = await row_of(db, session)
        return row.epoch >= epoch and row.lease_token is None

    await until(is_left)


async def ended(db: Database, session: UUID, *hosts: Host) -> Task:
    """The opening task once it has ended; until then these are hinted at it again and again."""

    async def has_ended() -> bool:
        for host in hosts:
            host.submit(session)
        return (await task_of(db, session)).status not in {"queued", "running"}

    await until(has_ended)
    return await task_of(db, session)


def without_it(hosts: Hosts, agent_seconds: float = 120.0) -> Host:
    """A worker that has another agent than the one of the sessions."""
    return hosts.start(echo, agent="parrot", agent_seconds=agent_seconds)


async def test_a_worker_without_the_agent_leaves_the_task_as_it_was(
    hosts: Hosts, db: Database
) -> None:
    session = await new_session(db)
    without_it(hosts).submit(session)
    await left_alone(db, session)

    row = await row_of(db, session)
    assert (row.status, row.claims, row.attempts, row.started_at) == ("queued", 0, 0, None)
    assert await kinds_of(db, session) == ["task_queued"]
    assert 0 < row.due <= 1
    assert row.together
    assert await broken(db) == []


async def test_a_worker_with_the_agent_takes_it(hosts: Hosts, db: Database) -> None:
    session = await new_session(db)
    other = without_it(hosts)
    other.submit(session)
    await left_alone(db, session)

    assert (await ended(db, session, other, hosts.start(echo))).status == "completed"
    kinds = await kinds_of(db, session)
    assert kinds[:2] == ["task_queued", "task_started"]
    assert kinds[-1] == "task_completed"
    assert await broken(db) == []


async def test_hints_do_not_have_it_claimed_again_at_once(hosts: Hosts, db: Database) -> None:
    session = await new_session(db)
    # Older tasks are left for longer: a slow machine must not see the end of the pause.
    await db.run(text("update tasks set created_at = created_at - interval '100 s'"))
    host = without_it(hosts)
    host.submit(session)
    await left_alone(db, session)
    for _ in range(5):
        await within(asyncio.to_thread(host.submit, session))
    other = await new_session(db)
    await within(asyncio.to_thread(host.submit, other))
    await left_alone(db, other)

    row = await row_of(db, session)
    assert row.epoch == 1
    assert 15 < row.due <= 26


async def test_what_another_attempt_has_begun_goes_on_elsewhere(hosts: Hosts, db: Database) -> None:
    session = await new_session(db)
    await claimed(db, session)
    await db.run(text("update sessions set lease_until = clock_timestamp() - interval '1 s'"))
    without_it(hosts).submit(session)
    await left_alone(db, session, epoch=2)

    row = await row_of(db, session)
    assert (row.status, row.claims, row.attempts) == ("running", 1, 1)
    assert row.started_at is not None
    assert (await ended(db, session, hosts.start(echo))).status == "completed"
    assert await broken(db) == []


async def test_the_task_fails_once_nobody_has_had_the_agent_for_long(
    hosts: Hosts, db: Database
) -> None:
    session = await new_session(db)

    task = await ended(db, session, without_it(hosts, agent_seconds=2.5))
    assert (task.status, task.error) == ("failed", NO_AGENT)
    assert await kinds_of(db, session) == ["task_queued", "task_started", "task_failed"]
    waited = (task.finished_at - task.created_at).total_seconds() if task.finished_at else 0
    assert waited >= 2.5
    assert (await row_of(db, session)).epoch <= 1 + waited
    assert await broken(db) == []


async def test_a_worker_that_has_just_started_does_not_judge(hosts: Hosts, db: Database) -> None:
    """The workers that have the agent may be starting beside it."""
    session = await new_session(db)
    await db.run(text("update tasks set created_at = created_at - interval '1 h'"))
    without_it(hosts).submit(session)
    await left_alone(db, session)

    assert (await row_of(db, session)).status == "queued"


async def test_a_worker_does_not_judge_after_an_outage_in_which_nobody_could_announce(
    hosts: Hosts, db: Database, wire: Wire, logs: list[Any]
) -> None:
    class Judging(Host):
        _judges_after = 0.0

    session = await new_session(db)
    await db.run(text("update tasks set created_at = created_at - interval '1 h'"))
    settings = hosts.settings.model_copy(
        update={"agent_seconds": 15.0, "database_url": SecretStr(wire.url)}
    )
    host = Judging(settings, {}, Model("m", "openai"), None)
    wire.cut("before", "/* catalog announce again */")
    await asyncio.to_thread(host.start)
    await until(lambda: any(entry["event"] == "not announced again" for entry in logs))
    host.submit(session)
    await left_alone(db, session)
    await within(asyncio.to_thread(host.drain))

    assert (await row_of(db, session)).status == "queued"


async def test_the_task_waits_as_long_as_somebody_announces_the_agent(
    hosts: Hosts, db: Database
) -> None:
    session = await new_session(db)
    await catalog.announce(db, [COMPANION])
    await db.run(text("update catalog set announced_at = clock_timestamp() + interval '1 h'"))
    await db.run(text("update tasks set created_at = created_at - interval '1 h'"))
    without_it(hosts, agent_seconds=0.01).submit(session)
    await left_alone(db, session)

    assert (await row_of(db, session)).status == "queued"


async def test_who_lost_the_lease_leaves_nothing(db: Database) -> None:
    session = await new_session(db)
    first = await claimed(db, session)
    await db.run(text("update sessions set lease_until = clock_timestamp() - interval '1 s'"))
    await claimed(db, session)
    before = await row_of(db, session)

    assert not await leases.leave(db, first, seconds=120.0, judges=False)
    assert await row_of(db, session) == before


async def test_any_worker_ends_what_was_cancelled(hosts: Hosts, db: Database) -> None:
    session = await new_session(db)
    await claimed(db, session)
    await cancels.cancel_task(db, ME, (await row_of(db, session)).id)
    await db.run(text("update sessions set lease_until = clock_timestamp() - interval '1 s'"))
    without_it(hosts).submit(session)

    assert (await ended(db, session)).status == "cancelled"


async def test_a_worker_announces_again_what_it_has(hosts: Hosts, db: Database) -> None:
    await catalog.announce(db, [COMPANION, CatalogEntry("agent", "gone", "Gone")])
    await db.run(text("update catalog set announced_at = clock_timestamp() - interval '1 h'"))
    hosts.start(echo, announced=[COMPANION], agent_seconds=1.0)

    async def has_aged_out() -> bool:
        return await catalog.entries(db, offered=1.0) == [COMPANION]

    await until(has_aged_out)


async def test_sessions_of_both_agents_with_a_worker_for_each(hosts: Hosts, db: Database) -> None:
    made = [
        (await sessions.create(db, ME, NewSession(agent), "Ember"))[0].id
        for agent in ("companion", "parrot") * 4
    ]
    both = hosts.start(echo), without_it(hosts)

    tasks = await asyncio.gather(*(ended(db, session, *both) for session in made))
    assert [task.status for task in tasks] == ["completed"] * 8
    assert await broken(db) == []
