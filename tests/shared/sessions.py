"""Sessions for tests, made in few words."""

from uuid import UUID

from sqlalchemy import text as sql

from shared.records import Claim, NewAction, NewEvent, NewSession, Outcome
from shared.store import actions, claims, leases, sessions
from shared.store.database import Database

ME = "me"
MAKE_DUE = sql("update sessions set hint_at = clock_timestamp() - interval '1 s'")

# After so many hints the next one is due half a minute later, and not in the next second.
MAKE_DUE_ONCE = sql("update sessions set hints = 5, hint_at = clock_timestamp() - interval '1 s'")

LEASE = 30.0


async def new_session(db: Database, user: str = ME, *, started: bool = False) -> UUID:
    """A session whose opening task waits, or (`started`) is over."""
    session, _, _ = await sessions.create(db, user, NewSession("companion"), "Ember")
    if started:
        await finish(db, await claimed(db, session.id))
    return session.id


async def claimed(db: Database, session: UUID, lease: float = LEASE) -> Claim:
    """The session's next task, under lease."""
    claim = await claims.claim(db, session, lease_seconds=lease, history=100)
    assert claim is not None
    return claim


async def say(db: Database, session: UUID, text: str = "hi", user: str = ME) -> UUID:
    """The task of an accepted action."""
    accepted = await actions.accept(db, user, session, NewAction({"type": "say", "text": text}))
    return accepted.task_id


def completed() -> Outcome:
    """The shortest end of a task."""
    return Outcome("completed", [NewEvent("task_completed", {})])


async def finish(db: Database, claim: Claim) -> None:
    await leases.end(db, claim, completed())
