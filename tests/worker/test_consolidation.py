"""Consolidation by a worker: what a user said is known for good, whatever the model answers."""

import asyncio
import functools
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from agent_core import UserMessage
from deploy.models.control import ScriptedModel
from shared.consolidation import KEEPER
from shared.encoding import JsonObject
from shared.memories import NewMemory
from shared.records import Lasting
from shared.store import actions, memories, sessions
from shared.store.database import Database
from tests.shared.sessions import ME, new_session, say
from tests.shared.tables import dump
from tests.waiting import until
from tests.worker.hosts import Companion, Hosts
from worker.agents import Answer, RegisteredAgent, RunningTask
from worker.consolidation import ConsolidationAgent
from worker.host import Host
from worker.narration import begin_turn, end_turn, tell, written
from worker.start import model_of

SAID = "I have moved to Graz, and my sister Ida paints boats."

FINDINGS: list[JsonObject] = [
    {
        "kind": "fact",
        "text": "The user lives in Graz.",
        "sources": [1],
        "quote": "moved to Graz",
    },
    {
        "kind": "fact",
        "text": "The companion sails to Crete.",
        "sources": [2],
        "quote": "I sail to Crete",
    },
]
"""What a model finds: what the user said, and what the agent made up."""

GOOD = json.dumps({"findings": FINDINGS, "summary": ""})


async def remembering(task: RunningTask) -> Answer:
    """Answer with an invention, and have it read again."""
    if task.action["type"] == "start":
        return Answer("", {})
    answer = written("Graz! I sail to Crete.", "test")
    begin_turn(task, UserMessage(str(task.action["text"]), timestamp=0))
    tell(task, answer)
    end_turn(task, [], answer)
    return Answer(answer.text, {}, lasting=Lasting(remembers=True))


class Readers(Hosts):
    """Hosts that read again, soon, what their agent says; the model is scripted."""

    def __init__(self, postgres_url: str, redis_url: str, model: ScriptedModel) -> None:
        super().__init__(postgres_url, redis_url)
        self.settings = self.settings.model_copy(
            update={
                "model": "openai/scripted",
                "model_url": model.url,
                "model_path": "direct",
                "model_retries": 0,
                "consolidate_seconds": 0.05,
                "sweep_seconds": 0.05,
            }
        )

    def read(self) -> Host:
        agents: dict[str, RegisteredAgent] = {
            "companion": Companion(remembering),
            KEEPER: ConsolidationAgent(),
        }
        host = Host(self.settings, agents, model_of(self.settings), "key")
        host.start()
        self._hosts.append(host)
        return host


@pytest.fixture
async def readers(
    postgres_url: str,
    redis_url: str,
    scripted_model: ScriptedModel,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Readers]:
    monkeypatch.setattr("worker.rota.HAND_OVER_SECONDS", 10.0)  # as for all other hosts
    made = Readers(postgres_url, redis_url, scripted_model)
    yield made
    await made.drain()


@pytest.fixture
async def db(readers: Readers) -> AsyncIterator[Database]:
    database = Database.from_settings(readers.settings)
    yield database
    await database.close()


async def consolidations(db: Database) -> list[Any]:
    rows = (await dump(db))["tasks"]
    return [row for row in rows if row["action"]["type"] == "consolidate"]


async def over(db: Database, count: int = 1) -> bool:
    rows = await consolidations(db)
    return sum(row["status"] not in {"queued", "running"} for row in rows) >= count


async def submit(host: Host, db: Database, count: int = 1) -> None:
    """Take up the session of the latest of so many consolidations, as its hint has it done."""

    async def ordered() -> bool:
        return len(await consolidations(db)) >= count

    await until(ordered)
    host.submit(UUID((await consolidations(db))[-1]["session_id"]))


async def learned(db: Database) -> list[str]:
    return [one["text"] for one in (await dump(db))["memories"] if one["kind"] == "fact"]


async def test_a_quiet_session_is_read(
    readers: Readers, db: Database, scripted_model: ScriptedModel
) -> None:
    scripted_model.say(GOOD)
    session = await new_session(db)
    await say(db, session, SAID)
    host = readers.read()
    host.submit(session)
    await submit(host, db)

    await until(lambda: over(db))

    (task,) = await consolidations(db)
    assert (task["status"], task["result"]["decision"]) == ("completed", {"kept": 1, "refused": 1})
    assert await learned(db) == ["The user lives in Graz."]
    (request,) = scripted_model.requests()
    asked = str(request.body["messages"])
    assert SAID in asked
    assert "instruction" in asked
    (row,) = [row for row in (await dump(db))["sessions"] if row["id"] == str(session)]
    assert (row["consolidated"], row["consolidate_at"]) == (2, None)


@pytest.mark.parametrize(
    "reply",
    [
        {"text": "I'd rather not."},
        {"text": '{"findings": [{"kind": "fa'},
        {"text": json.dumps({"findings": [FINDINGS[1]]})},
        {"text": json.dumps({"findings": [FINDINGS[0] | {"sources": [77]}]})},
        {"text": '{"findings": [], "summary": "' + "x" * 1_000_000, "split": "whole"},
        {"fault": {"kind": "status", "status": 500}},
    ],
)
async def test_a_bad_answer_changes_nothing(
    readers: Readers, db: Database, scripted_model: ScriptedModel, reply: JsonObject
) -> None:
    scripted_model.script({"reply": reply})
    session = await new_session(db)
    await say(db, session, SAID)
    host = readers.read()
    host.submit(session)
    await submit(host, db)

    await until(lambda: over(db))

    assert await learned(db) == []
    later = await say(db, session, "And now?")
    host.submit(session)
    await until(lambda: _ended(db, later))
    assert (await actions.get_task(db, ME, later)).status == "completed"


async def being_read(
    readers: Readers, db: Database, scripted_model: ScriptedModel
) -> tuple[Host, UUID]:
    """A session whose consolidation waits for its model, and the host that runs it."""
    scripted_model.script({"reply": {"text": GOOD, "fault": {"kind": "hang", "after": 0}}})
    session = await new_session(db)
    await say(db, session, SAID)
    host = readers.read()
    host.submit(session)
    await submit(host, db)
    await scripted_model.until(in_flight=1)
    return host, session


async def test_another_worker_asks_what_the_first_one_asked(
    readers: Readers, db: Database, scripted_model: ScriptedModel
) -> None:
    """The first attempt has journalled what was known and the model's answer, and is lost."""
    host, session = await being_read(readers, db, scripted_model)
    who = (await sessions.get(db, ME, session)).character_id
    await memories.add(db, ME, who, [NewMemory("fact", "The user owns a boat.")])
    (task,) = await consolidations(db)
    await until(lambda: _knows(db))
    scripted_model.script({"reply": {"text": GOOD}})
    await asyncio.to_thread(host.drain)

    again = readers.read()
    again.submit(UUID(task["session_id"]))
    await until(lambda: over(db))

    assert (await consolidations(db))[0]["status"] == "completed"
    first, second = scripted_model.requests()
    assert first.body["messages"] == second.body["messages"]
    assert "owns a boat" not in str(second.body)
    assert "The user lives in Graz." in await learned(db)


async def _knows(db: Database) -> bool:
    rows = (await dump(db))["steps"]
    return any((row["name"], row["status"]) == ("known", "done") for row in rows)


async def _ended(db: Database, task: Any) -> bool:
    return (await actions.get_task(db, ME, task)).finished_at is not None


async def test_it_holds_nobody_up_and_leaves_the_log_alone(
    readers: Readers, db: Database, scripted_model: ScriptedModel
) -> None:
    host, session = await being_read(readers, db, scripted_model)

    later = await say(db, session, "Still there?")
    host.submit(session)
    await until(lambda: _ended(db, later))

    (task,) = await consolidations(db)
    assert task["status"] == "running"
    log = [row for row in (await dump(db))["events"] if row["session_id"] == str(session)]
    assert sorted(row["seq"] for row in log) == list(range(1, len(log) + 1))
    assert {row["task_id"] for row in log}.isdisjoint({task["id"]})
    scripted_model.release()
    await until(lambda: over(db))


async def test_each_message_is_read_once(
    readers: Readers, db: Database, scripted_model: ScriptedModel
) -> None:
    scripted_model.script({"reply": {"text": GOOD}})
    session = await new_session(db)
    host = readers.read()
    for count in (1, 2):
        await say(db, session, SAID)
        host.submit(session)
        await submit(host, db, count)
        await until(functools.partial(over, db, count))

    assert await learned(db) == ["The user lives in Graz."]
    ranges = [(row["action"]["first"], row["action"]["last"]) for row in await consolidations(db)]
    assert sorted(ranges) == [(1, 2), (3, 4)]


async def test_who_has_nothing_left_is_read_later(
    readers: Readers, db: Database, scripted_model: ScriptedModel
) -> None:
    readers.settings = readers.settings.model_copy(update={"budget_per_user": "0"})
    session = await new_session(db)
    await say(db, session, SAID)
    host = readers.read()
    host.submit(session)

    async def put_off() -> bool:
        waits = "consolidate_at > clock_timestamp() + interval '1 minute'"
        row = await db.row(
            text(f"select {waits} from sessions where id = :session"), {"session": session}
        )
        return row is not None and row[0] is True

    await until(put_off)

    assert await consolidations(db) == []
    assert scripted_model.requests() == []
