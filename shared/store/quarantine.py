"""Sessions in quarantine: whether one should be taken out now, and which there are."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text

from shared.store.database import Database
from shared.store.locks import QUARANTINE_LOCK
from shared.store.sweeps import FREE

# Whoever is given one starts a process for it, which takes seconds: until then `hint_at` keeps
# others from doing the same. What this lock lets through all the same starts one for nothing.
_RESERVE = text(
    f"""/* quarantine reserve */
    update sessions s set hint_at = clock_timestamp() + make_interval(secs => :seconds)
    where s.id = (
        select id from sessions
        where (select pg_try_advisory_xact_lock(:lock))
            and quarantined and hint_at < clock_timestamp() and {FREE}
            and not exists (
                select from sessions where quarantined and open_tasks > 0
                and (lease_until >= clock_timestamp() or hint_at >= clock_timestamp()))
        order by hint_at
        limit 1
        for no key update skip locked)
    returning s.id
    """
)

_PAGE = text(
    """/* quarantine page */
    select s.id, s.user_id, s.agent, t.id, t.attempts,
        coalesce(s.lease_until > clock_timestamp(), false), s.ready_at
    from sessions s left join tasks t on t.session_id = s.id and t.status = 'running'
    where s.quarantined and s.open_tasks > 0
    order by s.hint_at
    """
)

_COUNT = text(
    "/* quarantine count */ select count(*) from sessions where quarantined and open_tasks > 0"
)


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A session in quarantine; `attempts` is how many its task has lost or runs now."""

    session_id: UUID
    user_id: str
    agent: str
    task_id: UUID | None
    attempts: int | None
    runs: bool
    ready_at: datetime | None


async def reserve(db: Database, *, seconds: float) -> UUID | None:
    """A session that should be taken out of the quarantine now, or None; nobody else is given one
    for so many seconds."""
    row = await db.row(_RESERVE, {"lock": QUARANTINE_LOCK, "seconds": seconds})
    return None if row is None else UUID(str(row.id))


async def page(db: Database) -> list[Quarantined]:
    """All sessions in quarantine, the longest-waiting first."""
    return [Quarantined(*row) for row in await db.rows(_PAGE)]


async def count(db: Database) -> int:
    """How many sessions are in quarantine."""
    row = await db.row(_COUNT)
    return 0 if row is None else int(row[0])
