"""A claim whose answer was lost: asked again, it is found, or else it is made."""

from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from shared.errors import StoreUnavailable
from shared.records import Claim, NewAction
from shared.store import actions, claims, leases
from shared.store.database import Database
from tests.shared.invariants import broken
from tests.shared.sessions import LEASE, ME, claimed, completed, finish, new_session, say
from tests.wire import When, Wire


async def claim_under(
    db: Database, session: UUID, token: UUID, *, again: bool = True, lease: float = LEASE
) -> Claim | None:
    return await claims.claim(
        db, session, lease_seconds=lease, history=100, token=token, again=again
    )


@pytest.mark.parametrize("when", ["before", "after"])
async def test_it_is_one_claim(db: Database, cut_db: Database, wire: Wire, when: When) -> None:
    session, token = await new_session(db), uuid4()
    await say(db, session)
    wire.cut(when, "/* claim lock */")
    with pytest.raises(StoreUnavailable):
        await claim_under(cut_db, session, token, again=False)

    claim = await claim_under(cut_db, session, token)

    assert claim is not None
    assert (claim.attempt, claim.attempts, claim.open_tasks) == (1, 1, 2)
    assert (claim.fence.epoch, claim.fence.token) == (1, token)
    assert await claims.claim(db, session, lease_seconds=LEASE, history=100) is None
    found = await claim_under(cut_db, session, token)
    assert found is not None
    assert replace(found, joined=()) == replace(claim, joined=())
    await finish(db, claim)
    await finish(db, await claimed(db, session))
    assert await broken(db) == []


async def test_what_it_reads_is_what_a_claim_reads(db: Database) -> None:
    session, token = await new_session(db, started=True), uuid4()
    for text in "abc":
        action = NewAction({"type": "say", "text": text}, on_busy="collect")
        await actions.accept(db, ME, session, action)
    claim = await claim_under(db, session, token, again=False)

    assert claim is not None
    assert claim.action["text"] == "a\n\nb\n\nc"
    assert await claim_under(db, session, token) == claim


async def test_after_a_take_over(db: Database) -> None:
    session, token = await new_session(db), uuid4()
    lost = await claimed(db, session, lease=-1)
    claim = await claim_under(db, session, token, again=False)

    assert claim is not None
    assert (claim.attempt, claim.fence.epoch) == (2, lost.fence.epoch + 1)
    assert await claim_under(db, session, token) == claim


async def test_what_ran_out_and_nobody_took_is_its_own(db: Database) -> None:
    session, token = await new_session(db), uuid4()
    claim = await claim_under(db, session, token, again=False, lease=-1)

    assert await claim_under(db, session, token) == claim
    assert await claims.claim(db, session, lease_seconds=LEASE, history=100) is None


async def test_what_another_has_taken_is_not(db: Database) -> None:
    session, token = await new_session(db), uuid4()
    await claim_under(db, session, token, again=False, lease=-1)
    other = await claimed(db, session)

    assert await claim_under(db, session, token) is None

    await leases.end(db, other, completed())
    assert await claim_under(db, session, token) is None
    assert await broken(db) == []


@pytest.mark.parametrize("when", ["before", "after"])
async def test_out_of_the_quarantine_it_is_one_claim_too(
    db: Database, cut_db: Database, wire: Wire, when: When
) -> None:
    session, token = await new_session(db), uuid4()
    await claimed(db, session, lease=-1)
    assert await claims.claim(db, session, lease_seconds=-1, history=9, quarantine_after=1) is None
    async with cut_db.transaction():
        pass  # what a new connection commits by itself is done
    wire.cut(when, "COMMIT")
    with pytest.raises(StoreUnavailable):
        await claims.claim_quarantined(cut_db, lease_seconds=LEASE, history=9, token=token)

    claim = await claims.claim_quarantined(
        cut_db, lease_seconds=LEASE, history=9, token=token, again=True
    )

    assert wire.cuts_made
    assert claim is not None
    assert (claim.attempt, claim.attempts, claim.fence.epoch) == (2, 2, 3)
    assert claim.fence.token == token
    assert await claims.claim_quarantined(db, lease_seconds=LEASE, history=9) is None
    await finish(db, claim)
    assert await broken(db) == []
