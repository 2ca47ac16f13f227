"""Whose turn it is, as the tables tell."""

from uuid import UUID, uuid4

from sqlalchemy import text

from shared.levels import BACKGROUND, CROWD
from shared.records import NewAction, NewSession
from shared.store import actions, sessions, sweeps, turns
from shared.store.database import Database
from tests.shared.sessions import MAKE_DUE, ME, claimed, finish, new_session, say


async def waiting(db: Database, count: int, user: str = ME) -> list[UUID]:
    """Sessions that wait since one after the other."""
    return [await new_session(db, user) for _ in range(count)]


async def background(db: Database, user: str = ME) -> UUID:
    session, _, _ = await sessions.create(db, user, NewSession("companion", priority=1), "Ember")
    return session.id


async def test_an_accepted_action_has_the_level_of_what_its_user_has_open(db: Database) -> None:
    made = [await sessions.create(db, ME, NewSession("companion"), "Ember") for _ in range(5)]
    other = await sessions.create(db, "you", NewSession("companion"), "Ember")
    levels = [accepted.level for _, _, accepted in [*made, other] if accepted is not None]

    assert levels == [0, 1, 2, 2, 3, 0]


async def test_a_repeated_action_gets_no_better_level(db: Database) -> None:
    await waiting(db, 4)
    session = await new_session(db)
    action = NewAction({"type": "continue"}, client_action_id="once")
    first = await actions.accept(db, ME, session, action)
    again = await actions.accept(db, ME, session, action)

    assert (first.level, again.level, again.fresh) == (3, 3, False)


async def test_what_runs_in_the_background_does_not_push_its_user_back(db: Database) -> None:
    for _ in range(5):
        await background(db)
    session, _, accepted = await sessions.create(db, ME, NewSession("companion"), "Ember")

    assert accepted is not None
    assert accepted.level == 0
    assert (await turns.levels(db, [session.id])) == {session.id: 0}


async def test_the_longest_waiting_session_of_each_user_is_first(db: Database) -> None:
    mine, yours = await waiting(db, 5), await waiting(db, 2, "you")
    levels = await turns.levels(db, [*reversed(mine), *yours])

    assert [levels[one] for one in (*mine, *yours)] == [0, 1, 2, 2, 3, 0, 1]


async def test_what_runs_is_before_all_that_waits(db: Database) -> None:
    mine = await waiting(db, 3)
    claims = [await claimed(db, one) for one in mine[:2]]
    assert await turns.levels(db, mine) == {mine[2]: 2}

    for claim in claims:
        await finish(db, claim)
    assert await turns.levels(db, mine) == {mine[2]: 0}


async def test_a_session_that_just_ran_is_behind_its_users_others(db: Database) -> None:
    mine = await waiting(db, 2)
    await say(db, mine[0])
    await say(db, mine[1])
    await finish(db, await claimed(db, mine[0]))

    assert await turns.levels(db, [mine[0]], and_first=True) == {mine[1]: 0, mine[0]: 1}


async def test_what_is_held_back_is_not_the_next_one(db: Database) -> None:
    mine = await waiting(db, 3)
    await db.run(
        text("update sessions set ready_at = clock_timestamp() + interval '1 h' where id = :id"),
        {"id": mine[0]},
    )
    await db.run(text("update sessions set quarantined = true where id = :id"), {"id": mine[1]})

    assert await turns.levels(db, [mine[2]], and_first=True) == {mine[2]: 0}
    assert await turns.levels(db, mine) == {mine[0]: CROWD, mine[1]: CROWD, mine[2]: 0}


async def test_a_session_whose_worker_died_waits_like_others(db: Database) -> None:
    mine = await waiting(db, 1)
    await claimed(db, mine[0])
    await db.run(text("update sessions set lease_until = clock_timestamp() - interval '1 s'"))

    assert await turns.levels(db, mine) == {mine[0]: 0}


async def test_background_is_last_until_it_was_hinted_often(db: Database) -> None:
    session, mine = await background(db), await waiting(db, 2)
    levels = []
    for _ in range(turns.LIFTED):
        await db.run(MAKE_DUE)
        found = await sweeps.sweep(db)
        levels.append((await turns.levels(db, found))[session])
    assert levels == [BACKGROUND] * (turns.LIFTED - 1) + [0]

    await claimed(db, session)
    assert await turns.levels(db, mine) == {mine[0]: 1, mine[1]: 2}


async def test_unknown_and_idle_sessions_have_no_level(db: Database) -> None:
    idle = await new_session(db, started=True)

    assert await turns.levels(db, []) == {}
    assert await turns.levels(db, [idle, uuid4()], and_first=True) == {}


async def test_a_crowd_shares_the_last_level_of_those_who_wait(db: Database) -> None:
    mine = await waiting(db, 130)
    levels = await turns.levels(db, mine)

    assert levels[mine[127]] == CROWD - 1
    assert levels[mine[128]] == levels[mine[129]] == CROWD


async def test_open_tasks_are_counted_over_all_users(db: Database) -> None:
    assert await turns.open_in_all(db) == 0
    mine = await waiting(db, 2)
    await say(db, mine[0])
    await new_session(db, "you")
    await new_session(db, "you", started=True)

    assert await turns.open_in_all(db) == 4
