from typing import Any
from uuid import UUID

import psycopg
import pytest
from pydantic import SecretStr

from agent_core import AssistantMessage, TextContent, UserMessage
from bench.seeding import ANSWER, NAME, QUESTION, seed
from shared.memories import of_messages
from shared.records import NewEvent, NewSession, Outcome
from shared.settings import Settings
from shared.store import characters, claims, leases, sessions
from shared.store.database import Database

_WRITTEN = """
    select to_jsonb(m) - array['id', 'user_id', 'character_id', 'session_id', 'no', 'sources',
        'said_at', 'valid_from', 'created_at', 'text', 'words']
    from memories m where session_id = %s order by no
"""


def written(url: str, session: UUID | str) -> list[dict[str, Any]]:
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute(_WRITTEN, [session])]


def test_all_that_was_said_is_remembered(postgres_url: str) -> None:
    seeded = seed(postgres_url, "bench", sessions=3, history=4)

    with psycopg.connect(postgres_url) as connection:
        found = connection.execute(
            "select m.no, m.sources, m.text, m.words is not null, m.vector is null, m.user_id,"
            " m.character_id = s.character_id, m.text = coalesce("
            "said.message #>> '{content,0,text}', said.message ->> 'content'),"
            " 'question' = any(tsvector_to_array(m.words))"
            " from memories m join sessions s on s.id = m.session_id"
            " join messages said on said.session_id = m.session_id and said.no = m.no"
            " where m.session_id = %s order by m.no",
            [seeded.ids[1]],
        ).fetchall()
        count = connection.execute("select count(*) from memories").fetchone()
    assert count == (12,)
    same = (True, True, "bench", True)
    assert [(*row[:7], row[8]) for row in found] == [
        (1, [1], f"{QUESTION} Question 1.", *same, True),
        (2, [2], f"{ANSWER}Night 1.", *same, False),
        (3, [3], f"{QUESTION} Question 2.", *same, True),
        (4, [4], f"{ANSWER}Night 2.", *same, False),
    ]
    assert [row[7] for row in found] == [True] * 4


@pytest.mark.parametrize(("history", "read"), [(4, 0), (10, 0), (40, 30)])
def test_what_is_old_was_consolidated(postgres_url: str, history: int, read: int) -> None:
    seeded = seed(postgres_url, f"bench-{history}", sessions=1, history=history)

    with psycopg.connect(postgres_url) as connection:
        found = connection.execute(
            "select next_message, consolidated, consolidate_at from sessions where id = %s",
            [seeded.ids[0]],
        ).fetchone()
    assert found == (history + 1, read, None)


async def test_they_are_as_the_end_of_a_task_writes_them(postgres_url: str) -> None:
    db = Database.from_settings(Settings(database_url=SecretStr(postgres_url)))
    try:
        character = await characters.create(db, "player", "companion", NAME, "")
        new = NewSession("companion", character_id=character.id)
        session, _, _ = await sessions.create(db, "player", new, NAME)
        claim = await claims.claim(db, session.id, lease_seconds=60, history=1)
        assert claim is not None
        said = [UserMessage(QUESTION).to_dict(), AssistantMessage([TextContent(ANSWER)]).to_dict()]
        done = [NewEvent("task_completed", {})]
        await leases.end(db, claim, Outcome("completed", done, said))
    finally:
        await db.close()

    assert len(of_messages(said, {"name": NAME}, {})) == 2
    seeded = seed(postgres_url, "bench", sessions=1, history=2)

    assert written(postgres_url, seeded.ids[0]) == written(postgres_url, session.id)
