"""Whose turn it is: the level at which a waiting session is to be hinted."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import text

from shared.levels import CHORE, COUNTED, level_of
from shared.store.database import Database

LIFTED = 5
"""How often a background session is hinted before it counts as one that somebody waits for."""

_ROWS, _FEWEST, _MOST = 2560, 32, 256
"""How many open tasks are looked at: in all, in equal parts of each user, but so many at least and
so many at the most. A session beyond them stands in the crowd."""

# A user's sessions in the order in which they are to run, the longest-waiting first. What runs
# stands before all of them: who has nothing running goes first.
_PLACES = text(
    f"""/* turns */
    with users as materialized (
        select distinct user_id from sessions where id = any(cast(:ids as uuid[]))
    ), open as materialized (
        select distinct t.session_id
        from users u cross join lateral (
            select session_id from tasks
            where user_id = u.user_id and status in ('queued', 'running') and priority < {CHORE}
            limit (select least(:most, greatest(:fewest, :rows / count(*))) from users)) t
    ), known as (
        select s.id, s.user_id, s.updated_at,
            coalesce(s.lease_until > clock_timestamp(), false) as leased,
            s.quarantined or coalesce(s.ready_at > clock_timestamp(), false) as held_back,
            case when s.hints >= :lifted then 0 else s.priority end as priority
        from open join sessions s on s.id = open.session_id
    ), counted as (
        select *, count(*) filter (where leased) over (partition by user_id) as running
        from known
    ), placed as (
        select id, priority, running,
            row_number() over (partition by user_id order by priority, updated_at, id) as place
        from counted where not leased and not held_back
    )
    select s.id, case when s.hints >= :lifted then 0 else s.priority end as priority,
        coalesce(placed.running + placed.place - 1, :unseen) as before
    from sessions s left join placed on placed.id = s.id
    where s.id = any(cast(:ids as uuid[])) and s.open_tasks > 0
        and (s.lease_until is null or s.lease_until < clock_timestamp())
    union all
    select id, priority, running from placed
    where :first and place = 1 and id <> all(cast(:ids as uuid[]))
    """
)

_OPEN_IN_ALL = text(
    f"""/* open in all */
    select coalesce(sum(open_tasks), 0)::int as open from sessions
    where open_tasks > 0 and priority < {CHORE}
    """
)

_WAITING_IN_ALL = text(
    f"""/* waiting in all */
    select count(*)::int as waiting,
        coalesce(extract(epoch from clock_timestamp() - min(created_at)), 0)::float8 as oldest
    from tasks where status = 'queued' and priority < {CHORE}
    """
)


async def levels(
    db: Database, session_ids: Sequence[UUID], *, and_first: bool = False
) -> dict[UUID, int]:
    """The levels of those of these sessions that wait now; one without a level needs no hint.

    Args:
        and_first: give the session, too, that is the next one of each of their users.
    """
    if not session_ids:
        return {}
    parameters = {
        "ids": list(session_ids),
        "first": and_first,
        "rows": _ROWS,
        "fewest": _FEWEST,
        "most": _MOST,
        "unseen": COUNTED,
        "lifted": LIFTED,
    }
    rows = await db.rows(_PLACES, parameters)
    return {row.id: level_of(row.before, row.priority) for row in rows}


async def open_in_all(db: Database) -> int:
    """How many tasks are open, of all users."""
    row = await db.row(_OPEN_IN_ALL)
    return 0 if row is None else int(row.open)


async def waiting_in_all(db: Database) -> tuple[int, float]:
    """How many tasks of users wait to begin, and for how many seconds the oldest has."""
    row = await db.row(_WAITING_IN_ALL)
    return (0, 0.0) if row is None else (int(row.waiting), float(row.oldest))
