"""Souls: sections merged, versions kept, changes undone, and what a session is shown of them."""

import asyncio
import time
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from shared.errors import (
    InvalidRequest,
    LeaseLost,
    NotFound,
    Refused,
    SoulTooLarge,
    VersionConflict,
)
from shared.records import MAX_SOUL, Lasting, SoulEdit
from shared.souls import merged, opening
from shared.store import characters, leases, sessions, souls
from shared.store.database import Database
from tests.shared.sessions import ME, claimed, completed, new_session, say
from tests.shared.tables import dump

SOUL = "You mend clocks.\n\n## Speech\nSlow.\n\n## Fears\nThe tide."


def test_a_section_is_changed_added_and_taken_out() -> None:
    changed = merged(SOUL, [SoulEdit(" speech ", "Quick.\n")])
    added = merged(SOUL, [SoulEdit("Loves", "Rain.")])
    taken = merged(SOUL, [SoulEdit("Speech", "")])

    assert changed == "You mend clocks.\n\n## speech\nQuick.\n\n## Fears\nThe tide."
    assert added == SOUL + "\n\n## Loves\nRain."
    assert taken == "You mend clocks.\n\n## Fears\nThe tide."
    assert merged(SOUL, []) == SOUL
    assert merged(SOUL, [SoulEdit("Nothing", " ")]) == SOUL
    assert (opening(SOUL), opening("## Fears\nNone."), opening("")) == ("You mend clocks.", "", "")


def test_no_text_of_a_section_takes_long_to_be_read() -> None:
    began = time.thread_time()

    soul = merged("", [SoulEdit("Speech", "x" + "\n" * 19_000 + "y")])

    assert time.thread_time() - began < 1
    assert soul.endswith("\ny")


@pytest.mark.parametrize(
    "edit",
    [
        SoulEdit("", "x"),
        SoulEdit("##", "x"),
        SoulEdit("two\nlines", "x"),
        SoulEdit("x" * 81, "x"),
        SoulEdit("Speech", "Slow.\n## Fears\nNone."),
        SoulEdit("Speech", "# All new"),
        SoulEdit("Speech", "Slow.\n\n\u2003\t#\nAll new"),
    ],
)
def test_an_edit_is_of_one_section(edit: SoulEdit) -> None:
    with pytest.raises(InvalidRequest):
        merged(SOUL, [edit])


def test_an_edit_of_many_lines_takes_no_longer_than_it_is_long() -> None:
    edits = [SoulEdit("Speech", "\n" * MAX_SOUL)] * 5
    began = time.process_time()
    after = merged(SOUL, edits)
    took = time.process_time() - began

    assert after == "You mend clocks.\n\n## Fears\nThe tide."
    assert took < 1


@given(st.text(max_size=200), st.text("ab# \n", min_size=1, max_size=20), st.text(max_size=50))
def test_whatever_is_merged_leaves_the_opening(soul: str, section: str, text: str) -> None:
    try:
        after = merged(soul, [SoulEdit(section, text)])
    except Refused:
        return
    assert opening(after) == opening(soul)
    assert merged(after, [SoulEdit(section, text)]) == after


async def character(db: Database, soul: str = "one") -> UUID:
    return (await characters.create(db, ME, "companion", "Ember", soul)).id


async def texts(db: Database, who: UUID) -> list[tuple[int, str, str, int | None]]:
    page = await souls.page(db, ME, who, limit=100)
    return [(one.version, one.soul, one.source, one.restored) for one in page[::-1]]


async def test_only_who_has_read_the_newest_version_overwrites_it(db: Database) -> None:
    who = await character(db)

    second = await souls.write(db, ME, who, "two", expected=1)
    with pytest.raises(VersionConflict):
        await souls.write(db, ME, who, "three", expected=1)
    same = await souls.write(db, ME, who, "two", expected=2)

    assert (second.version, second.soul, second.source) == (2, "two", "user")
    assert same == second == await souls.newest(db, ME, who)
    assert await texts(db, who) == [(1, "one", "user", None), (2, "two", "user", None)]


async def test_of_two_who_write_at_once_one_wins(db: Database) -> None:
    who = await character(db)

    ends = await asyncio.gather(
        *(souls.write(db, ME, who, f"by {n}", expected=1) for n in range(5)),
        return_exceptions=True,
    )

    assert sum(isinstance(one, VersionConflict) for one in ends) == 4
    assert (await souls.newest(db, ME, who)).version == 2


async def test_edits_at_once_are_all_merged(db: Database) -> None:
    who = await character(db, "")

    await asyncio.gather(*(souls.merge(db, ME, who, [SoulEdit(f"S{n}", str(n))]) for n in range(5)))

    newest = await souls.newest(db, ME, who)
    assert newest.version == 6
    assert sorted(newest.soul.split("\n\n")) == [f"## S{n}\n{n}" for n in range(5)]


async def test_each_undo_goes_back_by_one_more(db: Database) -> None:
    who = await character(db)
    await souls.write(db, ME, who, "two")
    await souls.write(db, ME, who, "three")

    undone = [(await souls.roll_back(db, ME, who, None)).soul for _ in range(2)]
    with pytest.raises(InvalidRequest):
        await souls.roll_back(db, ME, who, None)
    back = await souls.roll_back(db, ME, who, 3, expected=5)

    assert undone == ["two", "one"]
    assert (back.version, back.soul, back.source, back.restored) == (6, "three", "restored", 3)
    assert (await souls.roll_back(db, ME, who, None)).soul == "two"
    assert [one[3] for one in await texts(db, who)] == [None, None, None, 2, 1, 3, 2]


async def test_nobody_elses_soul_is_read_or_written(db: Database) -> None:
    who = await character(db)
    for attempt in (
        souls.newest(db, "stranger", who),
        souls.version(db, "stranger", who, 1),
        souls.page(db, "stranger", who, limit=9),
        souls.write(db, "stranger", who, "x"),
        souls.merge(db, "stranger", who, [SoulEdit("a", "b")]),
        souls.roll_back(db, "stranger", who, 1),
        souls.newest(db, ME, uuid4()),
        souls.version(db, ME, who, 2),
        souls.roll_back(db, ME, who, 2),
    ):
        with pytest.raises(NotFound):
            await attempt
    assert await texts(db, who) == [(1, "one", "user", None)]


async def test_a_soul_has_a_largest_size(db: Database) -> None:
    who = await character(db)

    with pytest.raises(SoulTooLarge):
        await souls.write(db, ME, who, "x" * 1_000_000)
    with pytest.raises(SoulTooLarge):
        await souls.merge(db, ME, who, [SoulEdit("a", "x" * MAX_SOUL)])
    await souls.write(db, ME, who, "x" * MAX_SOUL)

    assert [one[0] for one in await texts(db, who)] == [1, 2]


async def test_old_versions_go_but_not_those_that_sessions_have(db: Database) -> None:
    session = await sessions.get(db, ME, await new_session(db, started=True))
    who = session.character_id
    for n in range(souls.KEPT_VERSIONS + 5):
        await souls.write(db, ME, who, f"soul {n}")

    kept = sorted(row["version"] for row in (await dump(db))["souls"])

    assert kept == [1, *range(7, souls.KEPT_VERSIONS + 7)]


async def soul_shown(db: Database, session: UUID) -> tuple[str, int]:
    """What the session's next task is shown; the task is ended."""
    await say(db, session)
    claim = await claimed(db, session)
    await leases.end(db, claim, completed())
    return claim.character["soul"], claim.character["soul_version"]


async def test_a_session_keeps_the_soul_that_it_began_with(db: Database) -> None:
    session = await new_session(db, started=True)
    who = (await sessions.get(db, ME, session)).character_id
    await souls.write(db, ME, who, "two")

    assert await soul_shown(db, session) == ("", 1)
    later = await new_session(db, started=True)
    assert await soul_shown(db, later) == ("two", 2)

    await say(db, session)
    claim = await claimed(db, session)
    await leases.end(db, claim, replace(completed(), lasting=Lasting(window_cut=True)))
    assert await soul_shown(db, session) == ("two", 2)


async def test_a_session_that_nobody_uses_takes_a_soul_as_it_is_written(db: Database) -> None:
    session = await new_session(db, started=True)
    used = await new_session(db, started=True)
    who = (await sessions.get(db, ME, session)).character_id
    idle = text("update sessions set updated_at = now() - interval '11 minutes' where id = :s")
    await db.run(idle, {"s": session})

    await souls.write(db, ME, who, "two")
    await characters.update(db, ME, who, name=None, soul="three")

    assert await soul_shown(db, session) == ("three", 3)
    assert await soul_shown(db, used) == ("", 1)


async def test_an_attempt_is_shown_what_the_one_before_it_was(db: Database) -> None:
    session = await new_session(db, started=True)
    who = (await sessions.get(db, ME, session)).character_id
    await say(db, session)
    first = await claimed(db, session)
    await souls.write(db, ME, who, "two")
    await leases.release(db, first.fence)

    second = await claimed(db, session)

    assert (second.attempt, second.character) == (2, first.character)


async def test_what_an_agent_changes_commits_with_its_end(db: Database) -> None:
    session = await new_session(db, started=True)
    who = (await sessions.get(db, ME, session)).character_id
    task = await say(db, session)
    claim = await claimed(db, session)
    await souls.write(db, ME, who, "You are mine.\n\n## Speech\nSlow.")
    edits = [SoulEdit("Fears", "None."), SoulEdit("Speech", "x" * MAX_SOUL)]
    outcome = replace(completed(), lasting=Lasting(edits, window_cut=True))

    await leases.end(db, claim, outcome)
    with pytest.raises(LeaseLost):
        await leases.end(db, claim, outcome)

    newest = await souls.newest(db, ME, who)
    assert newest.soul == "You are mine.\n\n## Speech\nSlow.\n\n## Fears\nNone."
    assert (newest.version, newest.source, newest.task_id) == (3, "agent", task)
    assert await soul_shown(db, session) == (newest.soul, 3)


async def test_who_lost_the_lease_changes_no_soul(db: Database) -> None:
    session = await new_session(db, started=True)
    who = (await sessions.get(db, ME, session)).character_id
    await say(db, session)
    lost = await claimed(db, session)
    await leases.release(db, lost.fence)
    await claimed(db, session)

    with pytest.raises(LeaseLost):
        await leases.end(db, lost, replace(completed(), lasting=Lasting([SoulEdit("a", "b")])))

    assert await texts(db, who) == [(1, "", "user", None)]
