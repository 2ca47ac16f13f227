"""What a database's clock that was set back leaves behind: times that are too far in its future.

A worker that lives renews its lease by the new time. Of one that is dead, or of a session that
waits, nobody would hear until the clock has caught up.
"""

from sqlalchemy import text

from shared.store.database import Database

# No hint is set further ahead than 30 s, no lease can be set further than 300 s, and no back-off
# than 30 s behind its lease's end. Whoever holds such a lease keeps it for long enough to renew it.
_MEND = text(
    """/* mend clock */
    update sessions set
        hint_at = least(hint_at, clock_timestamp()),
        lease_until = case when lease_until > clock_timestamp() + interval '330 s'
            then clock_timestamp() + interval '30 s' else lease_until end,
        ready_at = case when ready_at > clock_timestamp() + interval '360 s'
            then clock_timestamp() + interval '30 s' else ready_at end
    where open_tasks > 0 and (hint_at > clock_timestamp() + interval '60 s'
        or lease_until > clock_timestamp() + interval '330 s'
        or ready_at > clock_timestamp() + interval '360 s')
    """
)


async def mend(db: Database) -> int:
    """Bring times that can't be back to now, leases and back-offs to short ones; how many sessions
    had such."""
    return await db.run(_MEND)
