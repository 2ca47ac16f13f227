"""The database's clock jumps: what it said before is then in its future, or long ago."""

import asyncio
from uuid import UUID

import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from shared.ending import end_all
from shared.errors import LeaseLost
from shared.queue import Hints
from shared.settings import Settings
from shared.store import claims, clock, leases, sweeps
from shared.store.database import Database
from shared.sweep import sweep_for_ever
from tests.shared.sessions import LEASE, claimed, completed, new_session
from tests.waiting import until

AN_HOUR = 3600.0

SET_BACK = text(
    """
    update sessions set hint_at = hint_at + make_interval(secs => :seconds),
        lease_until = lease_until + make_interval(secs => :seconds),
        ready_at = ready_at + make_interval(secs => :seconds)
    """
)
"""What a clock that is set back by so many seconds looks like to the rows, and forth by less than
none."""


async def backing_off(db: Database, lease: float) -> UUID:
    """A session whose third attempt runs; once that is lost, it waits for as long as any does."""
    session = await new_session(db)
    for seconds in (-1.0, -1.0, lease):
        claim = await claims.claim(
            db, session, lease_seconds=seconds, history=1, back_off=claims.LONGEST_BACK_OFF
        )
        assert claim is not None
    return session


async def test_a_session_of_a_dead_worker_is_not_kept_waiting_for_the_clock(db: Database) -> None:
    session = await new_session(db)
    await claimed(db, session)
    await db.run(SET_BACK, {"seconds": AN_HOUR})
    assert await sweeps.sweep(db) == []

    assert await clock.mend(db) == 1
    assert await clock.mend(db) == 0

    await db.run(SET_BACK, {"seconds": -LEASE - 1})  # the time of a short lease passes
    assert await sweeps.sweep(db) == [session]
    await claimed(db, session)


@pytest.mark.parametrize("lease", [LEASE, -1.0])
async def test_a_session_in_back_off_is_not_kept_waiting_either(db: Database, lease: float) -> None:
    """Whether its lease is over or not."""
    session = await backing_off(db, lease)
    await db.run(SET_BACK, {"seconds": AN_HOUR})

    assert await clock.mend(db) == 1
    assert await clock.mend(db) == 0

    assert await sweeps.sweep(db) == []
    await db.run(SET_BACK, {"seconds": -claims.LONGEST_BACK_OFF - 1})
    assert await sweeps.sweep(db) == [session]
    await claimed(db, session)


async def test_a_back_off_alone_is_looked_at(db: Database) -> None:
    """A session that another sweep has hinted, and whose lease was given back."""
    session = await backing_off(db, LEASE)
    await db.run(text("update sessions set lease_token = null, lease_until = null, hints = 5"))
    await db.run(SET_BACK, {"seconds": AN_HOUR})
    await db.run(text("update sessions set hint_at = clock_timestamp()"))

    assert await clock.mend(db) == 1

    await db.run(SET_BACK, {"seconds": -claims.LONGEST_BACK_OFF - 1})
    assert await sweeps.sweep(db) == [session]


async def test_a_session_that_waits_is_hinted_at_once(
    db: Database, redis: Redis, settings: Settings
) -> None:
    await new_session(db)
    await db.run(SET_BACK, {"seconds": AN_HOUR})
    sweeping = asyncio.create_task(sweep_for_ever(db, Hints(settings, redis), every=0.01))

    async def is_hinted() -> bool:
        return await redis.llen(settings.queue) > 0

    try:
        await until(is_hinted)
    finally:
        await end_all([sweeping])


async def test_a_worker_that_lives_keeps_its_session(db: Database) -> None:
    session = await new_session(db)
    claim = await claimed(db, session)
    await db.run(SET_BACK, {"seconds": AN_HOUR})
    await clock.mend(db)

    assert await claims.claim(db, session, lease_seconds=LEASE, history=1) is None
    assert (await leases.heartbeat(db, [claim.fence], lease_seconds=LEASE)).held == {session}
    assert await clock.mend(db) == 0
    await leases.end(db, claim, completed())


@pytest.mark.parametrize("seconds", [-AN_HOUR, 25.0])
async def test_times_that_can_be_are_left_alone(db: Database, seconds: float) -> None:
    session = await new_session(db)
    await claimed(db, session, lease=300.0)
    await new_session(db)
    await backing_off(db, 300.0)
    await db.run(SET_BACK, {"seconds": seconds})

    assert await clock.mend(db) == 0


async def test_a_clock_that_is_set_forth_costs_a_lease_and_nothing_more(db: Database) -> None:
    session = await new_session(db)
    claim = await claimed(db, session)
    await db.run(SET_BACK, {"seconds": -AN_HOUR})
    other = await claimed(db, session)

    assert (await leases.heartbeat(db, [claim.fence], lease_seconds=LEASE)).held == frozenset()
    with pytest.raises(LeaseLost):
        await leases.end(db, claim, completed())
    await leases.end(db, other, completed())
