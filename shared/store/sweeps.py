"""Sessions that wait without a worker: which they are, and when they are hinted again."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import text

from shared.store.database import Database
from shared.store.locks import SWEEP_LOCK

# What a worker may take: something is open, nobody has the lease, and no back-off lasts.
FREE = """open_tasks > 0
        and (lease_until is null or lease_until < clock_timestamp())
        and (ready_at is null or ready_at < clock_timestamp())"""

# Materialized, or else the planner may lock more rows than the limit says. By an array, and not by
# a join: where a table has grown faster than its statistics, a join may go through all of it for
# each row, and a backlog of 10,000 sessions would take a minute to be hinted.
_SWEEP = text(
    f"""/* sweep */
    with due as materialized (
        select id, hint_at from sessions
        where (select pg_try_advisory_xact_lock(:lock))
            and not quarantined and hint_at < clock_timestamp() and {FREE}
            and (lease_until is null
                or pg_postmaster_start_time() + make_interval(secs => :grace) < clock_timestamp())
        order by hint_at
        limit :limit
        for no key update skip locked
    ), hinted as (
        update sessions s set
            hints = least(hints + 1, 5),
            hint_at = clock_timestamp() + make_interval(secs => least(power(2, hints), 30))
        where s.id = any(array(select id from due))
        returning s.id
    )
    select id from hinted join due using (id) order by due.hint_at
    """
)

# Of a hint that was sent a while ago nothing is left in an empty queue: either a worker has just
# taken it, and then another one is harmless, or it is lost. When it was sent follows from when
# the next one is due. It takes no sweep's lock: refused half-way it would leave the rest waiting,
# for the queue is then no longer empty.
_DOUBT_HINTS = text(
    f"""/* sweep lost hints */
    with lost as materialized (
        select id from sessions
        where not quarantined and {FREE} and hints > 0 and hint_at > clock_timestamp()
            and hint_at - make_interval(
                    secs => case when hints < 5 then power(2, hints - 1) else 30 end)
                < clock_timestamp() - make_interval(secs => :age)
        limit :limit
        for no key update skip locked
    )
    update sessions set hints = 0, hint_at = clock_timestamp()
    where id = any(array(select id from lost))
    """
)

# Whoever accepted an action has hinted it within this second: it is not due before the second is
# over, for mostly a worker has it by then.
_DOUBT_LATEST = text(
    f"""/* sweep latest hints */
    with latest as materialized (
        select id from sessions
        where not quarantined and {FREE} and hints = 0 and hint_at > clock_timestamp()
        limit :limit
        for no key update skip locked
    )
    update sessions set hint_at = clock_timestamp() where id = any(array(select id from latest))
    """
)

_DUE_AGAIN = text(
    """/* sweep unsent */
    update sessions set hints = greatest(hints - 1, 0), hint_at = clock_timestamp()
    where id = any(cast(:ids as uuid[])) and open_tasks > 0
        and (lease_until is null or lease_until < clock_timestamp())
    """
)


async def sweep(db: Database, *, limit: int = 200, grace: float = 0.0) -> list[UUID]:
    """Sessions that wait without a worker and are due for another hint, the longest-waiting first.

    Any number of processes may call it at once: one sweeps, the others get nothing. A session
    that stays queued is hinted after 1, 2, 4, ... 30 s, or else a backlog would flood the queue.

    Args:
        grace: for so many seconds after its own start Postgres names no session that had a lease:
            the worker that held it could not renew it meanwhile.
    """
    rows = await db.rows(_SWEEP, {"lock": SWEEP_LOCK, "limit": limit, "grace": grace})
    return [row.id for row in rows]


async def doubt_hints(db: Database, *, age: float, limit: int = 1000) -> None:
    """Make the sessions due whose last hint is older than `age` seconds, since the queue is empty.

    They wait without a worker, and their next hint may be as far off as half a minute.
    """
    while await db.run(_DOUBT_HINTS, {"age": age, "limit": limit}) == limit:
        pass


async def doubt_latest(db: Database, *, limit: int = 1000) -> None:
    """Make the sessions due that wait for a worker and were hinted once, a moment ago."""
    await db.run(_DOUBT_LATEST, {"limit": limit})


async def due_again(db: Database, session_ids: Sequence[UUID]) -> None:
    """Take a sweep of these sessions back: their hints could not be sent."""
    await db.run(_DUE_AGAIN, {"ids": list(session_ids)})
