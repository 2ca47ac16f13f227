"""Which database this is: its lineage, and lifting it above a future that was lost with a restore.

A database that comes back from a backup, or a replica that was promoted without the last
transactions, would give out epochs and numbers again that workers and clients have seen.
"""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
from sqlalchemy import text

from shared.errors import StoreUnavailable
from shared.store.database import Database, RawConnection

SEQ_MARGIN = 1_000_000
CLAIMS_MARGIN = 1_000
"""What numbers are raised by at the least, should the server's clock stand wrong."""

# Execute rights for all: PUBLIC from Postgres 14 to 18. Hosts of their own kind may refuse some.
_SYSTEM = "select system_identifier::text from pg_control_system()"

# pg_control_checkpoint() would still tell the old timeline right after a promotion.
_TIMELINE = """
    select case when pg_is_in_recovery() then (select timeline_id from pg_control_checkpoint())
        else ('x' || left(pg_walfile_name(pg_current_wal_flush_lsn()), 8))::bit(32)::integer end
"""

# Flushed: what was only written may be gone after a crash that loses no committed transaction.
_POSITION = """
    select case when not pg_is_in_recovery()
        then (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint end
"""

_ROW = """
    select id, generation, beat, system_identifier, timeline, lifting, pg_is_in_recovery()
    from lineage
"""

_ALL = f"""/* lineage */
    select l.*, ({_SYSTEM}), ({_TIMELINE}), ({_POSITION}) from ({_ROW}) l
"""

_FIRST = text(
    """/* lineage first */
    insert into lineage (system_identifier, timeline) values (:system, :timeline)
    on conflict do nothing
    """
)

_BEAT = text(
    """/* lineage beat */
    update lineage set beat = beat + 1, noted_at = clock_timestamp(),
        system_identifier = case when :system = 'unknown' then system_identifier else :system end,
        timeline = case when :timeline = 0 then timeline else :timeline end
    where id = :id and generation = :generation and beat = :beat and not lifting
        and noted_at < clock_timestamp() - make_interval(secs => :every)
    returning beat
    """
)

_BEGIN_LIFT = text(
    """/* lineage begin lift */
    update lineage set
        generation = greatest(generation, :known) + 1,
        beat = greatest(beat, :known_beat) + 1,
        lifting = true,
        lifted_to = null,
        noted_at = clock_timestamp(),
        system_identifier = case when :system = 'unknown' then system_identifier else :system end,
        timeline = case when :timeline = 0 then timeline else :timeline end
    where id = :id and generation = :generation and not lifting
    returning generation
    """
)

# Numbers go to what the clock says, in microseconds: no session has written more than one event
# for each since the clock said less, so that a backup which is restored a second time, after
# others have worked on what the first time gave, is lifted above that as well. The attempts of
# open tasks, which name texts in Redis, go by the seconds since 2026, for they are integers.
# Messages and tasks keep their numbers: a client has a message's number only together with the
# message, and none has a task's.
_LIFT = text(
    """/* lift */
    with turn as materialized (
        select generation, lifted_to from lineage where lifting for update skip locked
    ), now as materialized (
        select (extract(epoch from clock_timestamp()) * 1000000)::bigint as micros,
            extract(epoch from clock_timestamp() - timestamptz '2026-01-01 00:00Z')::integer as secs
    ), due as materialized (
        select s.id from sessions s, turn
        where s.generation < turn.generation
            and (turn.lifted_to is null or s.id > turn.lifted_to)
        order by s.id limit :limit
        for no key update of s
    ), lifted as (
        update sessions s set
            generation = turn.generation,
            epoch = greatest(s.epoch + :seq_margin, now.micros),
            next_event = greatest(s.next_event + :seq_margin, now.micros),
            lease_token = null,
            lease_until = null,
            hints = case when s.open_tasks > 0 then 0 else s.hints end,
            hint_at = case when s.open_tasks > 0 then clock_timestamp() else s.hint_at end
        from due, turn, now where s.id = due.id
        returning s.id, s.open_tasks
    ), open as (
        update tasks t set
            claims = greatest(t.claims + :claims_margin, now.secs),
            attempts = case when t.status = 'running' then greatest(t.attempts - 1, 0)
                            else t.attempts end
        from lifted, now
        where t.session_id = lifted.id and lifted.open_tasks > 0
            and t.status in ('queued', 'running')
    )
    select (select count(*) from turn) as turns, array(select id from lifted order by id) as ids
    """
)

_NOTE_LIFTED = text("/* lift note */ update lineage set lifted_to = :last where lifting")

_END_LIFT = text(
    """/* lift end */
    update lineage l set lifting = exists (
            select from sessions s where s.generation < l.generation),
        lifted_to = null
    where lifting
    """
)


@dataclass(frozen=True, slots=True)
class Mark:
    """A state of the database that was seen, kept outside of it.

    `position` counts the bytes of WAL up to what was flushed; None where that can't be known.
    """

    id: UUID
    generation: int
    beat: int
    system: str
    timeline: int
    position: int | None


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the database stands: what its row says, and what the server says itself.

    A `system` of "unknown" or a `timeline` of 0 is one that the server did not tell.
    """

    id: UUID
    generation: int
    beat: int
    system_noted: str
    timeline_noted: int
    lifting: bool
    system: str
    timeline: int
    position: int | None

    @property
    def mark(self) -> Mark:
        """What to remember of it."""
        return Mark(self.id, self.generation, self.beat, self.system, self.timeline, self.position)


def why_changed(now: Standing, *seen: Mark | None) -> str | None:
    """Why numbers of this database may have been given out before; None where they have not.

    Args:
        seen: what was true at some time before `now` was looked at.
    """
    if "unknown" not in {now.system, now.system_noted} and now.system != now.system_noted:
        return f"the system identifier is {now.system}, it was {now.system_noted}"
    if 0 not in {now.timeline, now.timeline_noted} and now.timeline != now.timeline_noted:
        return f"the timeline is {now.timeline}, it was {now.timeline_noted}"
    for mark in seen:
        if mark is None or mark.id != now.id:
            continue
        if (mark.generation, mark.beat) > (now.generation, now.beat):
            return "it stood later before: an older copy of it was put back"
        same = (mark.generation, mark.system, mark.timeline) == (
            now.generation,
            now.system,
            now.timeline,
        )
        if same and mark.position and now.position and mark.position > now.position:
            return "its log was longer before: an older copy of it was put back"
    return None


async def look_at(connection: RawConnection) -> Standing | None:
    """Where the database of this connection stands; None where nobody has noted it yet.

    Raises:
        psycopg.Error: the connection is lost.
        StoreUnavailable: the server is a standby, or has an older schema.
    """
    try:
        row = await (await connection.execute(_ALL)).fetchone()
    except (psycopg.ProgrammingError, psycopg.NotSupportedError):
        row = await _row_and_what_is_told(connection)
    if row is None:
        return None
    (lineage_id, generation, beat, system_noted, timeline_noted, lifting, standby) = row[:7]
    system, timeline, position = row[7:]
    if standby:
        raise StoreUnavailable("Postgres is a standby: it takes no writes")
    return Standing(
        id=lineage_id,
        generation=generation,
        beat=beat,
        system_noted=system_noted,
        timeline_noted=timeline_noted,
        lifting=lifting,
        system=system,
        timeline=timeline,
        position=position,
    )


async def _row_and_what_is_told(connection: RawConnection) -> tuple[Any, ...] | None:
    """As `_ALL`, where the server refuses something to this user."""
    try:
        row = await (await connection.execute(_ROW)).fetchone()
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
        raise StoreUnavailable("the schema is too old: run python -m shared.migrate") from error
    if row is None:
        return None
    return (*row, *await _identity_of(connection), await _told(connection, _POSITION))


async def _identity_of(connection: RawConnection) -> tuple[str, int]:
    system = await _told(connection, _SYSTEM)
    timeline = await _told(connection, _TIMELINE)
    return system or "unknown", timeline or 0


async def _told(connection: RawConnection, query: str) -> Any:
    """What a function of the server says; None where it is refused or unknown there."""
    try:
        row = await (await connection.execute(query)).fetchone()
    except (psycopg.ProgrammingError, psycopg.NotSupportedError):
        return None
    return None if row is None else row[0]


async def look(db: Database) -> Standing:
    """Where the database stands; the first who looks notes what the server says.

    Raises:
        StoreUnavailable: Postgres is away, a standby, or has an older schema.
    """
    async with db.raw() as connection:
        standing = await look_at(connection)
        if standing is not None:
            return standing
        system, timeline = await _identity_of(connection)
    await db.run(_FIRST, {"system": system, "timeline": timeline})
    async with db.raw() as connection:
        standing = await look_at(connection)
    if standing is None:
        raise StoreUnavailable("the database's lineage can't be noted")
    return standing


async def beat(db: Database, standing: Standing, *, every: float) -> bool:
    """Count on where the last count is older than `every` seconds; whether this process did.

    Nothing is counted where the database is no longer the one that was looked at.
    """
    parameters = _identity(standing) | {"beat": standing.beat, "every": every}
    return await db.row(_BEAT, parameters) is not None


async def begin_lift(db: Database, standing: Standing, *seen: Mark | None) -> int | None:
    """Give the database a new generation and have it lifted; None where another process did.

    Args:
        seen: marks of the same lineage; the generation becomes higher than theirs.
    """
    marks = [mark for mark in seen if mark is not None and mark.id == standing.id]
    parameters = _identity(standing) | {
        "known": max((mark.generation for mark in marks), default=0),
        "known_beat": max((mark.beat for mark in marks), default=0),
    }
    row = await db.row(_BEGIN_LIFT, parameters)
    return None if row is None else int(row.generation)


def _identity(standing: Standing) -> dict[str, Any]:
    return {
        "id": standing.id,
        "generation": standing.generation,
        "system": standing.system,
        "timeline": standing.timeline,
    }


async def lift(db: Database, *, limit: int = 500) -> int | None:
    """Lift the next `limit` sessions; how many that were, None where another process is at it.

    Each call is a transaction. After the last session the database is in line, unless older
    sessions came meanwhile, which begins the round anew.
    """
    async with db.transaction() as connection:
        parameters = {
            "limit": limit,
            "seq_margin": SEQ_MARGIN,
            "claims_margin": CLAIMS_MARGIN,
        }
        turns, ids = (await connection.execute(_LIFT, parameters)).one()
        if not turns:
            return None
        if ids:
            await connection.execute(_NOTE_LIFTED, {"last": ids[-1]})
        else:
            await connection.execute(_END_LIFT)
        return len(ids)
