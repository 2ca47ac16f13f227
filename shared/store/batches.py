"""Ranges of messages that are read by a provider's batches: what goes out, and what came back.

A range is a line, a batch has many of them. Whatever happens to a batch, its lines come to an end:
each has its answer, or is `failed` and its range is read in the ordinary way, at once. Who has a
session's row and a line to lock takes the session first.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeAlias
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.consolidation import KEEPER, Remembered
from shared.encoding import JsonObject, dumps_text
from shared.records import LedgerEntry
from shared.store.database import Database
from shared.store.usage import append_call

LONGEST = timedelta(hours=25)
"""How long a batch may take: a provider promises a day."""

KEPT = timedelta(days=3)
"""Older batches are deleted with their lines, whatever has become of them."""

LINES = 200
"""How many lines a batch has at the most."""

LEASE_SECONDS = 300.0
"""How long a process has a batch to itself."""

LONGEST_PAUSE = 900.0
"""Seconds between two looks at a batch that takes long."""

State: TypeAlias = Literal["made", "sent", "done"]

# An undo may have left the branch that the line is of.
_OF_RANGE = text(
    """/* batches line */
    select l.id, l.last, l.state,
        l.state = 'out' and l.until > clock_timestamp() as waits,
        extract(epoch from l.until - clock_timestamp())::float8 as seconds,
        exists (
            with recursive path as (
                select m.no, m.parent from sessions s
                join messages m on m.session_id = s.id and m.no = s.head_message
                where s.id = l.session_id
                union all
                select m.no, m.parent
                from path p join messages m on m.session_id = l.session_id and m.no = p.parent
                where p.no > l.last
            )
            select from path where no = l.last
        ) as on_branch
    from consolidation_lines l
    where l.session_id = :session and l.user_id = :user and l.first = :first
    """
)

_PUT = text(
    """/* batches put */
    insert into consolidation_lines (user_id, session_id, keeper_id, first, last, until)
    values (:user, :session, :keeper, :first, :last,
        clock_timestamp() + cast(:longest as interval))
    on conflict (session_id, first) do nothing
    """
)

_USE = text(
    """/* batches use */
    update consolidation_lines set state = 'used' where id = :line and user_id = :user
    """
)

# Lines are gathered for a while: providers count batches by the hour.
_MAKE = text(
    """/* batches make */
    with ripe as (
        select 1 from consolidation_lines where batch_id is null and state = 'out'
        having min(made_at) < clock_timestamp() - make_interval(secs => :gather)
            or count(*) >= :lines
    ), waiting as (
        select l.id from consolidation_lines l
        where l.batch_id is null and l.state = 'out' and exists (select from ripe)
        order by l.made_at limit :lines for update skip locked
    ), batch as (
        insert into consolidation_batches (model)
        select :model where exists (select from waiting)
        returning id
    )
    update consolidation_lines l set batch_id = batch.id from batch, waiting
    where l.id = waiting.id
    returning batch.id
    """
)

_TAKE = text(
    """/* batches take */
    update consolidation_batches set next_at = clock_timestamp() + make_interval(secs => :lease)
    where id = (
        select id from consolidation_batches
        where state <> 'done' and next_at <= clock_timestamp()
        order by next_at limit 1 for update skip locked)
    returning id, model, state, provider_id, input_file, sends,
        extract(epoch from clock_timestamp() - made_at)::float8 as age
    """
)

_LATER = text(
    """/* batches later */
    update consolidation_batches set next_at = clock_timestamp() + least(
        greatest(make_interval(secs => :pause), (clock_timestamp() - made_at) / 10),
        make_interval(secs => :longest))
    where id = :batch
    """
)

_LINES = text(
    """/* batches lines */
    select id, user_id, session_id, first, last, known, tokens from consolidation_lines
    where batch_id = :batch and state = 'out' order by id
    """
)

_KNOW = text(
    """/* batches know */
    update consolidation_lines set known = cast(:known as jsonb), tokens = :tokens
    where id = :line and user_id = :user and state = 'out'
    """
)

_FILED = text(
    "/* batches filed */ update consolidation_batches set input_file = :file where id = :batch"
)

_SENDING = text(
    "/* batches sending */ update consolidation_batches set sends = sends + 1 where id = :batch"
)

_SENT = text(
    """/* batches sent */
    update consolidation_batches set state = 'sent', provider_id = :provider_id,
        next_at = clock_timestamp() + make_interval(secs => :pause)
    where id = :batch and state = 'made'
    """
)

_LOCK_SESSION = text(
    """/* batches lock session */
    select s.id from consolidation_lines l join sessions s on s.id = l.session_id
    where l.id = :line and l.batch_id = :batch for no key update of s
    """
)

_STATE = text(
    """/* batches state */
    select user_id, keeper_id, state from consolidation_lines
    where id = :line and batch_id = :batch for update
    """
)

# Its session is due at once, unless these messages were read meanwhile.
_ANSWER = text(
    """/* batches answer */
    with line as (
        update consolidation_lines set state = :state, output = :output
        where id = :line and user_id = :user
        returning session_id, user_id, first
    )
    update sessions s set consolidate_at = clock_timestamp() from line
    where s.id = line.session_id and s.user_id = line.user_id and s.consolidated = line.first - 1
    """
)

_LOCK_SESSIONS = text(
    """/* batches lock sessions */
    select s.id from sessions s
    where s.id in (select session_id from consolidation_lines
                   where batch_id = :batch and state = 'out')
    order by s.id for no key update
    """
)

_END = text(
    """/* batches end */
    with done as (
        update consolidation_batches set state = 'done' where id = :batch
    ), line as (
        update consolidation_lines set state = 'failed' where batch_id = :batch and state = 'out'
        returning session_id, user_id, first
    ), due as (
        update sessions s set consolidate_at = clock_timestamp() from line
        where s.id = line.session_id and s.user_id = line.user_id
            and s.consolidated = line.first - 1
    )
    select count(*) from line
    """
)

_READ = text(
    """/* batches read */
    select known, output from consolidation_lines
    where id = :line and user_id = :user and state = 'used' and output is not null
    """
)

_PRUNE = [
    text(
        """/* batches prune */
        delete from consolidation_batches where made_at < clock_timestamp() - cast(:age as interval)
        """
    ),
    text(
        """/* batches prune lines */
        delete from consolidation_lines
        where batch_id is null and made_at < clock_timestamp() - cast(:age as interval)
        """
    ),
]


@dataclass(frozen=True, slots=True)
class BatchLine:
    """A range that is or was in a batch.

    `waits` says that its answer is still to come, within `seconds` at the most; `on_branch` that
    its messages are those of the session as it is now.
    """

    id: UUID
    last: int
    state: str
    waits: bool
    seconds: float
    on_branch: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch that this process has to itself for a while; `age` is in seconds.

    `sends` counts how often the provider may have been told to begin.
    """

    id: UUID
    model: str
    state: State
    provider_id: str | None
    input_file: str | None
    sends: int
    age: float


@dataclass(frozen=True, slots=True)
class Asked:
    """A line of a batch, as far as it has no answer; `known` is None until it was composed."""

    id: UUID
    user_id: str
    session_id: UUID
    first: int
    last: int
    known: Remembered | None
    tokens: int


@dataclass(frozen=True, slots=True)
class Answered:
    """A model's answer to a line, and what was known when it was asked."""

    known: Remembered
    output: str


async def of_range(
    connection: AsyncConnection, user_id: str, session_id: UUID, first: int
) -> BatchLine | None:
    """The line of the range that begins there, under the session's lock."""
    range_ = {"user": user_id, "session": session_id, "first": first}
    row = (await connection.execute(_OF_RANGE, range_)).first()
    return None if row is None else BatchLine(*row)


async def put(
    connection: AsyncConnection, user_id: str, session_id: UUID, keeper: UUID, first: int, last: int
) -> None:
    """Have a range go with the next batch; under the session's lock."""
    line = {"user": user_id, "session": session_id, "keeper": keeper}
    await connection.execute(_PUT, line | {"first": first, "last": last, "longest": LONGEST})


async def use(connection: AsyncConnection, user_id: str, line_id: UUID) -> None:
    """A task takes the line's answer; no other will."""
    await connection.execute(_USE, {"line": line_id, "user": user_id})


async def make(db: Database, model: str, *, gather: float, lines: int = LINES) -> UUID | None:
    """Make a batch of lines that wait, where one of them has for `gather` seconds, or there are
    enough; None where there is none to make."""
    row = await db.row(_MAKE, {"model": model, "gather": gather, "lines": lines})
    return None if row is None else UUID(str(row[0]))


async def take(db: Database) -> Batch | None:
    """A batch that somebody should look after; nobody else is given it for a while."""
    row = await db.row(_TAKE, {"lease": LEASE_SECONDS})
    return None if row is None else Batch(*row)


async def later(db: Database, batch: Batch, *, pause: float) -> None:
    """Have it looked after again, the later the longer it takes."""
    seconds = {"pause": pause, "longest": max(pause, LONGEST_PAUSE)}
    await db.run(_LATER, {"batch": batch.id, **seconds})


async def lines(db: Database, batch: Batch) -> list[Asked]:
    """The lines that have no answer yet."""
    rows = await db.rows(_LINES, {"batch": batch.id})
    return [
        Asked(
            row.id, row.user_id, row.session_id, row.first, row.last, _known(row.known), row.tokens
        )
        for row in rows
    ]


async def know(db: Database, line: Asked, known: Remembered, tokens: int) -> bool:
    """Keep what the model is told to be known, before it is asked; False where the line is gone."""
    kept = {"known": dumps_text(known.as_json()), "tokens": tokens}
    return await db.run(_KNOW, {"line": line.id, "user": line.user_id, **kept}) == 1


async def filed(db: Database, batch: Batch, input_file: str) -> None:
    """The provider has the questions under this name."""
    await db.run(_FILED, {"batch": batch.id, "file": input_file})


async def sending(db: Database, batch: Batch) -> None:
    """From now on the provider may have begun."""
    await db.run(_SENDING, {"batch": batch.id})


async def sent(db: Database, batch: Batch, provider_id: str, *, pause: float) -> None:
    """The provider has begun, and calls it so."""
    found = {"batch": batch.id, "provider_id": provider_id, "pause": pause}
    await db.run(_SENT, found)


async def answer(
    db: Database, batch: Batch, line_id: UUID, output: str | None, entry: LedgerEntry | None
) -> None:
    """Take what came of a line, once: its session is due, and the call stands in the ledger.

    Args:
        output: the model's text; without it the range is read in the ordinary way.
        entry: what it cost. It is entered also where the line was erased with its user.
    """
    line: dict[str, Any] = {"line": line_id, "batch": batch.id}
    async with db.transaction() as connection:
        await connection.execute(_LOCK_SESSION, line)
        row = (await connection.execute(_STATE, line)).first()
        if row is not None:
            if row.state != "out":
                return
            state = "failed" if output is None else "answered"
            found = line | {"user": row.user_id, "state": state, "output": output}
            await connection.execute(_ANSWER, found)
        if entry is not None:
            await append_call(
                connection,
                None if row is None else row.user_id,
                KEEPER,
                session_id=batch.id if row is None else row.keeper_id,
                call_id=line_id,
                entry=entry,
            )


async def end(db: Database, batch: Batch) -> int:
    """Nothing more comes of the batch: its other lines are read in the ordinary way, at once.

    Returns:
        How many these are.
    """
    of_batch = {"batch": batch.id}
    async with db.transaction() as connection:
        await connection.execute(_LOCK_SESSIONS, of_batch)
        return int((await connection.execute(_END, of_batch)).scalar_one())


async def read(db: Database, user_id: str, line_id: UUID) -> Answered | None:
    """What a task takes instead of asking a model; None where there is nothing to take."""
    row = await db.row(_READ, {"line": line_id, "user": user_id})
    known = None if row is None else _known(row.known)
    return None if row is None or known is None else Answered(known, row.output)


async def prune(db: Database, age: timedelta = KEPT) -> int:
    """Delete what is older; how many batches, and lines without one."""
    return sum([await db.run(statement, {"age": age}) for statement in _PRUNE])


def _known(kept: JsonObject | None) -> Remembered | None:
    return None if kept is None else Remembered.of_json(kept)
