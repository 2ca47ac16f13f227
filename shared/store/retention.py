"""What is no longer kept: old events of ended tasks, their journal, cancels that nothing followed.

The sessions are gone through by their ids, a few at a time and over all processes together, so
that no index over the whole log is needed; what is deleted at once is little.
"""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import text

from shared.store.database import Database

ROWS_AT_ONCE = 500
CANCEL_AGE = timedelta(days=1)

_FIRST_TURN = text(
    "/* retention first */ insert into retention (one) values (true) on conflict do nothing"
)

# Where the last turn ended stands in a row: who locks it goes on from there, also when whoever
# had the turn before died with it. What such a turn left undone, the next round finds.
_TURN = text(
    """/* retention turn */
    with turn as materialized (
        select pruned_to from retention where next_at <= clock_timestamp()
        for update skip locked
    ), batch as materialized (
        select s.id from sessions s, turn
        where turn.pruned_to is null or s.id > turn.pruned_to
        order by s.id limit :sessions
    ), ids as (
        select array(select id from batch order by id) as found
    )
    update retention set
        pruned_to = case when cardinality(ids.found) = :sessions then ids.found[:sessions] end,
        next_at = clock_timestamp() + make_interval(
            secs => case when cardinality(ids.found) = :sessions then :pause else :rest end)
    from turn, ids
    returning ids.found
    """
)

_OLD = text(
    """/* retention old */
    select s.id from sessions s
    where s.id = any(cast(:ids as uuid[])) and s.first_event < s.next_event
        and (select e.at from events e
             where e.session_id = s.id and e.seq >= s.first_event order by e.seq limit 1)
            < clock_timestamp() - cast(:age as interval)
    """
)

# A session that somebody is writing to is left for the next round. Numbers of an open task, and
# of those behind it, stay; so does the number that the next event gets.
_EVENTS = text(
    """/* retention events */
    with session as materialized (
        select id, first_event from sessions where id = :session
        for no key update skip locked
    ), oldest as materialized (
        select e.seq, e.at from events e, session
        where e.session_id = session.id and e.seq >= session.first_event
        order by e.seq limit :rows
    ), kept as (
        select least(
            (select min(seq) from oldest where at >= clock_timestamp() - cast(:age as interval)),
            (select min(queued_seq) from tasks
             where session_id = :session and status in ('queued', 'running'))) as first
    ), gone as (
        delete from events using kept
        where session_id = :session and seq in (select seq from oldest)
            and (kept.first is null or seq < kept.first)
        returning seq
    ), moved as (
        update sessions set first_event = (select max(seq) + 1 from gone)
        where id = :session and exists (select from gone)
    )
    select count(*) from gone
    """
)

_STEPS = text(
    """/* retention steps */
    delete from steps where (session_id, task_seq, no) in (
        select s.session_id, s.task_seq, s.no from steps s
        join tasks t on t.session_id = s.session_id and t.seq = s.task_seq
        where s.session_id = any(cast(:ids as uuid[]))
            and t.status not in ('queued', 'running')
            and t.finished_at < clock_timestamp() - cast(:age as interval)
        limit :rows)
    """
)

# The session first, as those do who ask for such a cancel or take it.
_CANCELS = text(
    """/* retention cancels */
    with waiting as materialized (
        select id from sessions where id = any(cast(:ids as uuid[])) and early_cancels > 0
        order by id for no key update skip locked
    ), gone as (
        delete from early_cancels c using waiting
        where c.session_id = waiting.id
            and c.created_at < clock_timestamp() - cast(:age as interval)
        returning c.session_id
    ), counted as (
        select session_id, count(*)::integer as cancels from gone group by session_id
    )
    update sessions s set early_cancels = s.early_cancels - counted.cancels
    from counted where s.id = counted.session_id
    """
)


async def turn(
    db: Database, *, sessions: int = 200, pause: float = 0.2, rest: float = 600
) -> list[UUID] | None:
    """The next sessions of the round, to be pruned by the caller; None while it is no time.

    Args:
        pause: seconds until somebody gets the next ones.
        rest: seconds from the end of a round to the beginning of the next.
    """
    parameters = {"sessions": sessions, "pause": pause, "rest": rest}
    row = await db.row(_TURN, parameters)
    if row is not None:
        return list(row.found)
    await db.run(_FIRST_TURN)
    return None


async def with_old_events(db: Database, ids: Sequence[UUID], age: timedelta) -> list[UUID]:
    """Those of the sessions whose oldest kept event is older than `age`."""
    rows = await db.rows(_OLD, {"ids": list(ids), "age": age})
    return [row.id for row in rows]


async def prune_events(
    db: Database, session_id: UUID, age: timedelta, *, rows: int = ROWS_AT_ONCE
) -> int:
    """Delete a session's oldest events as far as they are older than `age` and of ended tasks.

    One transaction, `rows` at the most; how many there were.
    """
    row = await db.row(_EVENTS, {"session": session_id, "age": age, "rows": rows})
    return 0 if row is None else int(row[0])


async def prune_steps(
    db: Database, ids: Sequence[UUID], age: timedelta, *, rows: int = ROWS_AT_ONCE
) -> int:
    """Delete the journal of tasks that ended longer ago than `age`; as `prune_events`."""
    return await db.run(_STEPS, {"ids": list(ids), "age": age, "rows": rows})


async def prune_cancels(db: Database, ids: Sequence[UUID], age: timedelta = CANCEL_AGE) -> int:
    """Forget cancels whose action never came; how many sessions had some."""
    return await db.run(_CANCELS, {"ids": list(ids), "age": age})
