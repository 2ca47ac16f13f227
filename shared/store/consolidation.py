"""Reading sessions again for what is worth knowing: when it is due, what is read, what is kept.

A consolidation is a task like any other, of a session of its own for each character, behind
everything that somebody waits for. A session's row says how far it has been read: an end that
does not go on from there changes nothing, however often and by whomever it is written.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg.errors import ForeignKeyViolation
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.allowance import NO_RULES, BudgetRules
from shared.consolidation import (
    KEEPER,
    MESSAGES,
    MOST_KNOWN,
    MOST_MESSAGES,
    Consolidated,
    KnownMemory,
    Material,
    Said,
    upto_of,
)
from shared.errors import BudgetSpent
from shared.levels import CHORE
from shared.memories import NewMemory, said_in
from shared.records import Accepted, NewAction
from shared.store import batches
from shared.store.actions import accept_within
from shared.store.database import AnyRow, Database
from shared.store.memories import add_within

KEPT_SUMMARIES = 3
"""How many of a session's summaries are true at once: a window may begin before the newest."""

MOST_TRIES = 3
"""How often a range is tried; then the session goes on without what could be learned from it."""

_RETRY_SECONDS = 60.0
_LOOK_AGAIN_SECONDS = 15.0

_SPENT_SECONDS = 3600.0
"""How long a range waits for money: budgets renew themselves by the day."""

# Part of the statement that ends a task. Each task puts off what idleness brings about, until
# there is so much to read that the window is about to lose some of it. The numbers are those of
# the row as it is written, not of when the task began.
TOUCH = f"""case
                when cast(:idle_seconds as float8) is null or :message_count = 0
                    then consolidate_at
                when next_message + :message_count - 1 - consolidated >= {MESSAGES}
                    then clock_timestamp()
                else clock_timestamp() + make_interval(secs => cast(:idle_seconds as float8))
            end"""

_DUE = text(
    """/* consolidation due */
    update sessions set consolidate_at = clock_timestamp() + make_interval(secs => :again)
    where id in (
        select id from sessions where consolidate_at < clock_timestamp()
        order by consolidate_at limit :limit for no key update skip locked)
    returning id, user_id
    """
)

# Another conversation of the character has begun: what was said in the others should be known in
# it soon: also what would have come with a batch, some time.
_HURRY = text(
    """/* consolidation hurry */
    with hurried as (
        update sessions set consolidate_at = clock_timestamp()
        where id in (
            select id from sessions
            where character_id = :character and user_id = :user and id <> :session
                and consolidate_at > clock_timestamp()
            for no key update skip locked)
        returning id
    )
    update consolidation_lines l set until = clock_timestamp()
    from hurried where l.session_id = hurried.id and l.user_id = :user and l.state = 'out'
    """
)

_KEEPER = text(
    f"""/* consolidation keeper */
    with made as (
        insert into sessions (user_id, key, agent, character_id, priority)
        select s.user_id, '~{KEEPER}:' || s.character_id, :agent, s.character_id, {CHORE}
        from sessions s where s.id = :session and s.user_id = :user
        on conflict (user_id, key) where key is not null do nothing
        returning id
    )
    select id from made
    union all
    select k.id from sessions s
    join sessions k on k.user_id = s.user_id and k.key = '~{KEEPER}:' || s.character_id
    where s.id = :session and s.user_id = :user
    """
)

_LOCK = text(
    """/* consolidation lock */
    select id, next_message, head_message, consolidated, consolidate_at, consolidation_tries,
        open_tasks = 0 and updated_at < clock_timestamp() - make_interval(secs => :idle) as idle
    from sessions where id = any(cast(:ids as uuid[])) and user_id = :user
    order by id for no key update
    """
)

_UNDER_WAY = text(
    """/* consolidation under way */
    select 1 from tasks
    where session_id = :keeper and user_id = :user and status in ('queued', 'running')
        and action ->> 'session_id' = :session limit 1
    """
)

# After a pause the provider's cache is cold and the user comes back as to a new conversation: the
# newest soul can be taken.
_NOTE = text(
    """/* consolidation note */
    update sessions s set consolidated = :consolidated, consolidation_tries = :tries,
        consolidate_at = clock_timestamp() + make_interval(secs => cast(:seconds as float8)),
        soul_version = case when :idle then c.soul_version else s.soul_version end
    from characters c
    where s.id = :session and s.user_id = :user and c.id = s.character_id
    """
)

_SAID = text(
    """/* consolidation said */
    with recursive path as (
        select m.no, m.parent, m.message, m.created_at from sessions s
        join messages m on m.session_id = s.id and m.no = :last
        where s.id = :session and s.user_id = :user
        union all
        select m.no, m.parent, m.message, m.created_at
        from path p join messages m on m.session_id = :session and m.no = p.parent
        where m.no >= :first
    )
    select no, message, created_at from path order by no
    """
)

_OF_SESSION = text(
    """/* consolidation session */
    select s.metadata, s.character_id,
        jsonb_build_object('id', c.id, 'name', c.name) as character,
        (select jsonb_build_object('text', m.text, 'upto', m.no) from memories m
         where m.user_id = s.user_id and m.character_id = s.character_id and m.session_id = s.id
            and m.kind = 'summary' and m.on_branch
         order by m.no desc limit 1) as summary
    from sessions s join characters c on c.id = s.character_id
    where s.id = :session and s.user_id = :user
    """
)

_KNOWN = text(
    """/* consolidation known */
    select id, kind, text from memories
    where user_id = :user and character_id = :character and valid_to is null and on_branch
        and kind in ('fact', 'preference', 'skill', 'relationship')
    order by said_at desc, id limit :limit
    """
)

_ADVANCE = text(
    """/* consolidation advance */
    update sessions set consolidated = :last, consolidation_tries = 0,
        consolidate_at = case when next_message - 1 > :last then
            clock_timestamp() + make_interval(secs => cast(:idle_seconds as float8)) end
    where id = :session and user_id = :user and consolidated = :first - 1
    returning character_id
    """
)

_CLOSE = text(
    """/* consolidation close */
    update memories set valid_to = greatest(valid_from, cast(:at as timestamptz))
    where id = any(cast(:ids as uuid[])) and user_id = :user and character_id = :character
        and valid_to is null
    """
)


# A window is cut back to somewhere within the last summaries; the ones before these say nothing
# that they don't, and would be recalled beside them.
_CLOSE_SUMMARIES = text(
    f"""/* consolidation close summaries */
    update memories set valid_to = greatest(valid_from, clock_timestamp())
    where session_id = :session and user_id = :user and kind = 'summary' and valid_to is null
        and no <= :upto - {KEPT_SUMMARIES * MESSAGES}
    """
)


@dataclass(frozen=True, slots=True)
class Due:
    """A session that should be read again."""

    session_id: UUID
    user_id: str


async def due(db: Database, *, limit: int = 20) -> list[Due]:
    """Sessions whose time has come; nobody else is given them for a while."""
    rows = await db.rows(_DUE, {"again": _LOOK_AGAIN_SECONDS, "limit": limit})
    return [Due(*row) for row in rows]


async def hurry(
    connection: AsyncConnection, user_id: str, character_id: UUID, session_id: UUID
) -> None:
    """Have the character's other sessions read soon: this one begins."""
    parameters = {"user": user_id, "character": character_id, "session": session_id}
    await connection.execute(_HURRY, parameters)


async def order(
    db: Database,
    one: Due,
    *,
    idle_seconds: float,
    batched: bool = False,
    rules: BudgetRules = NO_RULES,
) -> Accepted | None:
    """Make the task that reads what of a session was not read yet.

    Two who do so at once make one task. None where there is nothing to read, where a task does so
    already, where the last one failed a moment ago, where a batch will bring the answer, or where
    the user's budget is spent.

    Args:
        batched: what nobody waits for may go with a batch.
        rules: what may be spent by those who have no budget of their own.
    """
    keeper = await _keeper(db, one)
    if keeper is None:
        return None
    async with db.transaction() as connection:
        # Both rows in the order of their ids, as the end of that task locks them.
        ids = [one.session_id, keeper]
        rows = await connection.execute(
            _LOCK, {"ids": ids, "user": one.user_id, "idle": idle_seconds}
        )
        row = next((row for row in rows if row.id == one.session_id), None)
        if row is None or row.consolidate_at is None:
            return None
        return await _order(connection, one, keeper, row, rules, batched=batched)


async def _keeper(db: Database, one: Due) -> UUID | None:
    """The session of the character's consolidations, made at first use; None where it is gone."""
    of_session = {"session": one.session_id, "user": one.user_id, "agent": KEEPER}
    try:
        row = await db.row(_KEEPER, of_session)
    except IntegrityError as error:
        # The statement's snapshot still had the session. Who deletes the character, which this
        # waited for, has deleted the session before it.
        if isinstance(error.orig, ForeignKeyViolation):
            return None
        raise
    return None if row is None else UUID(str(row.id))


async def _order(
    connection: AsyncConnection,
    one: Due,
    keeper: UUID,
    row: AnyRow,
    rules: BudgetRules,
    *,
    batched: bool,
) -> Accepted | None:
    note = {
        "session": one.session_id,
        "user": one.user_id,
        "consolidated": row.consolidated,
        "tries": row.consolidation_tries,
        "idle": row.idle,
        "seconds": None,
    }
    first, newest = row.consolidated + 1, row.head_message or 0
    if newest < first:
        await connection.execute(_NOTE, note)
        return None
    under_way = {"keeper": keeper, "user": one.user_id, "session": str(one.session_id)}
    if (await connection.execute(_UNDER_WAY, under_way)).first() is not None:
        await connection.execute(_NOTE, note | {"seconds": _LOOK_AGAIN_SECONDS})
        return None
    line = await batches.of_range(connection, one.user_id, one.session_id, first)
    if newest - row.consolidated < MESSAGES:  # else the window is about to be cut
        if line is None and batched and row.idle and not row.consolidation_tries:
            range_ = (one.session_id, keeper, first, newest)
            await batches.put(connection, one.user_id, *range_)
            await connection.execute(_NOTE, note | {"seconds": batches.LONGEST.total_seconds()})
            return None
        if line is not None and line.waits and line.on_branch:
            await connection.execute(_NOTE, note | {"seconds": line.seconds})
            return None
    answered = line is not None and line.state == "answered" and line.on_branch
    last = min(newest, row.consolidated + MOST_MESSAGES)
    tries = row.consolidation_tries + 1
    if tries > MOST_TRIES and not answered:
        seconds = None if last == newest else _LOOK_AGAIN_SECONDS
        given_up = {"consolidated": last, "tries": 0, "seconds": seconds}
        await connection.execute(_NOTE, note | given_up)
        return None
    action = {"type": "consolidate", "session_id": str(one.session_id), "first": first}
    if line is not None and answered:
        last, action["line"] = line.last, str(line.id)
        await batches.use(connection, one.user_id, line.id)
    key = f"{one.session_id}:{first}:{last}:{action.get('line', tries)}"
    new = NewAction(action | {"last": last}, client_action_id=key)
    try:
        # An answer that a batch has brought stands in the ledger: to keep it costs nothing.
        accepted = await accept_within(
            connection, one.user_id, keeper, new, rules=rules, paid=answered
        )
    except BudgetSpent:
        await connection.execute(_NOTE, note | {"seconds": _SPENT_SECONDS})
        return None
    later = {"tries": tries, "seconds": _RETRY_SECONDS * 4 ** (tries - 1)}
    await connection.execute(_NOTE, note | later)
    return accepted


async def read(
    db: Database, user_id: str, session_id: UUID, first: int, last: int
) -> Material | None:
    """What a consolidation of these messages starts from; None where the session is gone."""
    of_session = {"session": session_id, "user": user_id}
    row = await db.row(_OF_SESSION, of_session)
    if row is None:
        return None
    summary = row.summary or {"text": "", "upto": 0}
    begin = min(first, summary["upto"] + 1) if upto_of(last) > summary["upto"] else first
    begin = max(begin, first - MOST_MESSAGES)
    said = await db.rows(_SAID, of_session | {"first": begin, "last": last})
    known = await db.rows(
        _KNOWN, {"user": user_id, "character": row.character_id, "limit": MOST_KNOWN}
    )
    return Material(
        said=[
            Said(one.no, one.message["role"], words, one.created_at)
            for one in said
            if (words := said_in(one.message).strip())
        ],
        known=[KnownMemory(*one) for one in known],
        summary=summary["text"],
        summary_upto=summary["upto"],
        character=row.character,
        metadata=row.metadata,
    )


async def lock_source(
    connection: AsyncConnection, user_id: str, keeper: UUID, done: Consolidated
) -> None:
    """Lock the session that was read and the one of the task, before that one is ended."""
    ids = [done.session_id, keeper]
    await connection.execute(_LOCK, {"ids": ids, "user": user_id, "idle": 0.0})


async def keep_within(
    connection: AsyncConnection, user_id: str, done: Consolidated, *, idle_seconds: float | None
) -> bool:
    """Write what was found, in the transaction that ends the task; whether it was written.

    Where somebody has read these messages before, or the session is gone, nothing is.
    """
    range_ = {
        "session": done.session_id,
        "user": user_id,
        "first": done.first,
        "last": done.last,
        "idle_seconds": idle_seconds or _RETRY_SECONDS,
    }
    character = (await connection.execute(_ADVANCE, range_)).scalar()
    if character is None:
        return False
    await add_within(connection, user_id, character, list(_memories(done)))
    if done.summary is not None:
        await connection.execute(_CLOSE_SUMMARIES, range_ | {"upto": done.summary.upto})
    for finding in done.findings:
        if finding.replaces:
            closed = {
                "ids": list(finding.replaces),
                "user": user_id,
                "character": character,
                "at": finding.at,
            }
            await connection.execute(_CLOSE, closed)
    return True


def _memories(done: Consolidated) -> Sequence[NewMemory]:
    shared: dict[str, Any] = {"session_id": done.session_id, "language": done.language}
    found = [
        NewMemory(
            finding.kind,
            finding.text,
            sources=finding.sources,
            role="user",
            speaker=done.speaker,
            importance=finding.importance,
            said_at=finding.at,
            **shared,
        )
        for finding in done.findings
    ]
    if done.summary is not None:
        upto = done.summary.upto
        sources = range(max(done.first, upto - MESSAGES + 1), upto + 1)
        found.append(
            NewMemory("summary", done.summary.text, no=upto, sources=list(sources), **shared)
        )
    return found
