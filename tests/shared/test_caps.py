"""How many open tasks a user may have."""

import pytest

from shared.errors import NotFound, SessionBusy, TooManyTasks
from shared.records import NewAction, NewSession
from shared.store import actions, sessions
from shared.store.database import Database
from tests.shared.invariants import broken
from tests.shared.sessions import ME, claimed, finish, new_session, say
from tests.shared.tables import dump

SAY = NewAction({"type": "say", "text": "hi"}, client_action_id="k")


async def test_beyond_the_cap_nothing_is_written(db: Database) -> None:
    session = await new_session(db)
    await say(db, session)
    before = await dump(db)

    for on_busy in ("enqueue", "interrupt", "reject", "steer", "collect"):
        refused = NewAction({"type": "say", "text": "no"}, on_busy, "no")
        with pytest.raises(TooManyTasks) as error:
            await actions.accept(db, ME, session, refused, most=2)
        assert error.value.position == 2
    with pytest.raises(TooManyTasks):
        await sessions.create(db, ME, NewSession("other agent"), "Ember", most=2)

    assert await dump(db) == before
    assert await broken(db) == []


async def test_below_the_cap_a_busy_session_is_busy(db: Database) -> None:
    session = await new_session(db)

    with pytest.raises(SessionBusy):
        await actions.accept(db, ME, session, NewAction(SAY.action, "reject"), most=2)


async def test_a_known_action_is_found_however_much_is_open(db: Database) -> None:
    session = await new_session(db)
    first = await actions.accept(db, ME, session, SAY, most=2)
    made = await sessions.create(db, ME, NewSession("companion", key="mine"), "Ember")

    for most in (2, 0):
        again = await actions.accept(db, ME, session, SAY, most=most)
        assert (again.task_id, again.fresh) == (first.task_id, False)
        found = await sessions.create(
            db, ME, NewSession("companion", key="mine"), "Ember", most=most
        )
        assert (found[0].id, found[1], found[2]) == (made[0].id, made[1], None)


async def test_what_ended_and_what_others_have_does_not_count(db: Database) -> None:
    session = await new_session(db)
    for _ in range(3):
        await new_session(db, "you")
    with pytest.raises(TooManyTasks):
        await actions.accept(db, ME, session, SAY, most=1)

    await finish(db, await claimed(db, session))
    assert (await actions.accept(db, ME, session, SAY, most=1)).fresh


async def test_a_session_of_someone_else_is_not_found_however_much_is_open(db: Database) -> None:
    session = await new_session(db, "you")
    await new_session(db)

    with pytest.raises(NotFound):
        await actions.accept(db, ME, session, SAY, most=1)


async def test_with_nothing_left_for_all_the_users_own_tasks_are_told(db: Database) -> None:
    session = await new_session(db, started=True)

    with pytest.raises(TooManyTasks) as error:
        await actions.accept(db, ME, session, SAY, most=0)
    assert error.value.position == 0
