"""Names, numbers and single signs within text that has no blanks, over HTTP: found and recalled."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest

from shared.memories import NewMemory
from shared.store import memories
from shared.store.database import Database
from tests.api.clients import Client
from tests.waiting import until
from tests.worker.hosts import Hosts
from tests.worker.test_recall import Chatting, shown_last
from worker.host import Host

REX, WEDDING, DOG, CAT = "我的狗叫Rex。", "我在2019年结婚了", "狗很可爱", "我养了一只猫"

FOUND = [("Rex", [REX]), ("2019", [WEDDING]), ("狗", [REX, DOG]), ("猫", [CAT])]

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
async def hosts(postgres_url: str, redis_url: str) -> AsyncIterator[Hosts]:
    made = Hosts(postgres_url, redis_url)
    yield made
    await made.drain()


async def remembered(client: Client, db: Database) -> dict[str, Any]:
    """A session whose character knows these things, and much else that is newer."""
    session = await client.session(metadata={"language": "zh"})
    said = [REX, WEDDING, DOG, CAT, *(f"今天天气很好第{no}天" for no in range(300))]
    new = [
        NewMemory("fact", one, language="simple", said_at=LONG_AGO + timedelta(minutes=no))
        for no, one in enumerate(said)
    ]
    await memories.add(db, "local", UUID(session["character_id"]), new)
    return session


async def test_a_search_finds_them(client: Client, db: Database) -> None:
    session = await remembered(client, db)

    for cue, expected in FOUND:
        body = {"text": cue, "character_id": session["character_id"]}
        for more in ({}, {"language": "zh"}):
            answer = await client.http.post("/v1/memories/search", json=body | more)
            assert {one["text"] for one in answer.json()["memories"]} == set(expected), cue


async def test_a_message_calls_them_up(client: Client, db: Database, hosts: Hosts) -> None:
    known = await remembered(client, db)
    chat = Chatting(*["好。"] * len(FOUND))
    host = hosts.start(chat.run)

    for cue, expected in FOUND:
        session = await client.session(
            character_id=known["character_id"], metadata={"language": "zh", "user_name": "Ada"}
        )
        await answered(client, host, session["id"], 1)
        await client.act(session["id"], text=f"{cue}?")
        await answered(client, host, session["id"], 2)
        lines = " ".join(shown_last(chat))
        assert all(one in lines for one in expected), (cue, lines)
        assert "第7天" not in lines  # there is no room for all


async def answered(client: Client, host: Host, session: str, count: int) -> None:
    host.submit(UUID(session))
    await until(partial(_has_answers, client, session, count))


async def _has_answers(client: Client, session: str, count: int) -> bool:
    return [one["type"] for one in await client.log(session)].count("task_completed") >= count
