"""What a database's clock that was set back leaves behind: times that are too far in its future.

A worker that lives renews its lease by the new time. Of one that is dead, or of a session that
waits, nobody would hear until the clock has caught up.
"""

from sqlalchemy import text

from shared.store.database import Database

# No hint is set further ahead than 30 s, and no lease can be set further than 300 s. Whoever holds
# such a lease keeps it for long enough to renew it.
_MEND = text(
    """/* mend clock */
    update sessions set
        hint_at = least(hint_at, clock_timestamp()),
        lease_until = case when lease_until > clock_timestamp() + interval '330 s'
            then clock_timestamp() + interval '30 s' else lease_until end
    where open_tasks > 0 and (hint_at > clock_timestamp() + interval '60 s'
        or lease_until > clock_timestamp() + interval '330 s')
    """
)


async def mend(db: Database) -> int:
    """Bring times that can't be back to now, leases to a short one; how many sessions had such."""
    return await db.run(_MEND)
