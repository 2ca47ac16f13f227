"""Consolidation by batches: to the provider and back, whatever goes wrong, no range is lost."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from structlog.testing import capture_logs

from agent_core import Model
from agent_core.openai_batches import BatchEndpoint
from deploy.models.control import ScriptedModel
from shared.allowance import Budget, BudgetRules
from shared.consolidation import KEEPER
from shared.encoding import JsonObject
from shared.ending import end_all
from shared.errors import SettingsError
from shared.memories import NewMemory
from shared.prices import Price, PriceTable
from shared.records import Lasting
from shared.settings import Settings, load_settings
from shared.store import consolidation, leases, memories, sessions
from shared.store.consolidation import Due
from shared.store.database import Database
from tests.shared.sessions import ME, claimed, completed, new_session, say
from tests.shared.tables import dump
from tests.waiting import until, within
from tests.worker.hosts import Hosts
from tests.worker.test_consolidation import FINDINGS, SAID
from worker.batches import Batching
from worker.consolidation import ConsolidationAgent
from worker.host import Host
from worker.metering import Tariff
from worker.start import batches_of, model_of

GOOD = json.dumps({"findings": FINDINGS})
USAGE = {"prompt_tokens": 1000, "completion_tokens": 100, "cached_tokens": 200}

PRICE = Price(Decimal(2), Decimal(8), Decimal(1), Decimal(2), "test")
PRICES = PriceTable({"openai/scripted": [(date(2020, 1, 1), PRICE)]})
HALF = Decimal("0.0013")
"""Of (800 x 2 + 200 x 1 + 100 x 8) / 1,000,000."""


@pytest.fixture
def settings(
    postgres_url: str, redis_url: str, scripted_model: ScriptedModel, monkeypatch: Any
) -> Settings:
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    monkeypatch.setenv("REDIS_URL", redis_url)
    return load_settings().model_copy(
        update={
            "model": "openai/scripted",
            "model_url": scripted_model.url,
            "model_path": "direct",
            "model_retries": 0,
            "consolidate_batch": "openai",
        }
    )


@pytest.fixture
async def db(settings: Settings) -> AsyncIterator[Database]:
    database = Database.from_settings(settings)
    yield database
    await database.close()


@pytest.fixture
def batching(db: Database, settings: Settings) -> Batching:
    return at(db, settings.model_url or "")


def at(db: Database, url: str, rules: BudgetRules | None = None) -> Batching:
    """Whoever sees to batches at this provider."""
    endpoint = BatchEndpoint(Model("scripted", "openai", base_url=url), "key")
    return Batching(db, endpoint, Tariff(PRICES, Decimal(3)), rules or BudgetRules(), every=60.0)


async def spoken(db: Database, *more: str) -> UUID:
    """A quiet session in which the user has told something."""
    session = await new_session(db, started=True)
    await say(db, session)
    said = [
        {"role": "user", "content": one} if n % 2 == 0 else {"role": "assistant", "content": one}
        for n, one in enumerate((SAID, "Graz! I sail to Crete.", *more))
    ]
    outcome = replace(completed(), messages=said, lasting=Lasting(remembers=True))
    await leases.end(db, await claimed(db, session), outcome, idle_seconds=0.0)
    return session


async def put(db: Database, session: UUID) -> None:
    due = Due(session, ME)
    assert await consolidation.order(db, due, idle_seconds=0.0, batched=True) is None


async def look(db: Database, *batchings: Batching) -> None:
    """A look, when all has waited for long enough."""
    await db.run(text("update consolidation_lines set made_at = made_at - interval '1 hour'"))
    await db.run(text("update consolidation_batches set next_at = clock_timestamp()"))
    await asyncio.gather(*(one.look() for one in batchings))


async def older(db: Database, *, hours: int) -> None:
    """Have so much time gone by since the batches were made."""
    ago = text(
        "update consolidation_batches set made_at = made_at - make_interval(hours => :hours)"
    )
    await db.run(ago, {"hours": hours})


async def out(db: Database, batching: Batching) -> UUID:
    """A session of which a range is with the provider."""
    session = await spoken(db)
    await put(db, session)
    await look(db, batching)
    return session


async def batch_of(db: Database) -> Any:
    (found,) = (await dump(db))["consolidation_batches"]
    return found


async def line_of(db: Database) -> Any:
    (found,) = (await dump(db))["consolidation_lines"]
    return found


async def is_due(db: Database, session: UUID) -> bool:
    row = await db.row(
        text("select consolidate_at <= clock_timestamp() from sessions where id = :s"),
        {"s": session},
    )
    return row is not None and bool(row[0])


class Reader(Hosts):
    """A host that runs consolidations, and makes none."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.database_url.get_secret_value(), "redis://nowhere")
        self.settings = settings.model_copy(
            update={
                "sweep_seconds": 60.0,
                "drain_seconds": 0.0,
                "database_pool": 5,
                "lease_seconds": 30.0,
            }
        )

    def read(self) -> Host:
        agents = {KEEPER: ConsolidationAgent()}
        host = Host(self.settings, agents, model_of(self.settings), "key")
        host.start()
        self._hosts.append(host)
        return host


@pytest.fixture
async def reader(settings: Settings) -> AsyncIterator[Reader]:
    made = Reader(settings)
    yield made
    await made.drain()


async def read(db: Database, reader: Reader, session: UUID) -> JsonObject:
    """Have a session read that is due; the task."""
    ordered = await consolidation.order(db, Due(session, ME), idle_seconds=0.0, batched=True)
    assert ordered is not None
    reader.read().submit(ordered.session_id)

    async def task() -> JsonObject:
        rows = (await dump(db))["tasks"]
        return next(row for row in rows if row["id"] == str(ordered.task_id))

    async def over() -> bool:
        return (await task())["status"] not in {"queued", "running"}

    await until(over)
    return await task()


async def learned(db: Database) -> list[str]:
    return sorted(one["text"] for one in (await dump(db))["memories"] if one["kind"] == "fact")


async def test_a_range_goes_to_the_provider_and_comes_back(
    db: Database, batching: Batching, reader: Reader, scripted_model: ScriptedModel
) -> None:
    scripted_model.script({"reply": {"text": GOOD, "usage": USAGE}})
    scripted_model.batches(polls=1)
    session = await out(db, batching)
    assert (await batch_of(db))["state"] == "sent"
    await look(db, batching)
    assert not await is_due(db, session)

    await look(db, batching)

    assert (await batch_of(db))["state"] == "done"
    assert await is_due(db, session)
    (paid,) = (await dump(db))["usage"]
    assert Decimal(str(paid["usd"])) == HALF
    assert (paid["purpose"], paid["outcome"], paid["mark_up"]) == ("consolidation", "done", 3)
    assert (paid["input"], paid["output"], paid["cache_read"]) == (800, 100, 200)
    assert scripted_model.batches_standing()["files"] == []
    task = await read(db, reader, session)
    assert (task["status"], task["result"]["decision"]) == ("completed", {"kept": 1, "refused": 1})
    assert await learned(db) == ["The user lives in Graz."]
    assert len((await dump(db))["usage"]) == 1
    assert len(scripted_model.requests()) == 1


async def test_the_question_is_the_one_that_a_task_asks(
    db: Database, batching: Batching, reader: Reader, scripted_model: ScriptedModel
) -> None:
    scripted_model.script({"reply": {"text": "I'd rather not."}})
    session = await out(db, batching)
    await look(db, batching)
    await read(db, reader, session)

    batched, asked = scripted_model.requests()
    assert asked.body.pop("stream")
    assert asked.body.pop("stream_options")
    assert batched.body == asked.body


async def test_many_ranges_are_one_batch(
    db: Database, batching: Batching, scripted_model: ScriptedModel
) -> None:
    scripted_model.script({"reply": {"text": GOOD}})
    for _ in range(5):
        await put(db, await spoken(db))

    await look(db, batching)
    await look(db, batching)

    assert len(scripted_model.batches_standing()["batches"]) == 1
    assert {one["state"] for one in (await dump(db))["consolidation_lines"]} == {"answered"}


async def test_what_was_learned_meanwhile_is_not_learned_again(
    db: Database, batching: Batching, reader: Reader, scripted_model: ScriptedModel
) -> None:
    scripted_model.script({"reply": {"text": GOOD}})
    session = await out(db, batching)
    who = (await sessions.get(db, ME, session)).character_id
    await memories.add(db, ME, who, [NewMemory("fact", "The user lives in Graz.")])
    await look(db, batching)

    await read(db, reader, session)

    assert await learned(db) == ["The user lives in Graz."]


@pytest.mark.parametrize(
    "reply",
    [
        {"text": "I'd rather not."},
        {"text": "x" * 40_000, "split": "whole"},
        {"text": '{"findings": [{"kind": "fa\0'},
        {"fault": {"kind": "status", "status": 500}},
        {"fault": {"kind": "garbage"}},
        {"fault": {"kind": "empty"}},
    ],
)
async def test_a_line_without_a_good_answer_is_read_in_the_ordinary_way(
    db: Database,
    batching: Batching,
    reader: Reader,
    scripted_model: ScriptedModel,
    reply: JsonObject,
) -> None:
    scripted_model.script({"reply": reply, "times": 1}, {"reply": {"text": GOOD}})
    session = await out(db, batching)
    await look(db, batching)

    task = await read(db, reader, session)

    assert task["status"] == "completed"
    assert await learned(db) == ["The user lives in Graz."]
    assert len(scripted_model.requests()) == 2


@pytest.mark.parametrize(
    "script",
    [
        {"ends": "failed"},
        {"ends": "expired", "failed_lines": 1},
        {"ends": "cancelled", "failed_lines": 1},
        {"failed_lines": 1},
        {"refuse": {"status": 404}},
        {"refuse": {"content": 404}},
        {"garbage": ["content"]},
        {"refuse": {"upload": 400}},
        {"refuse": {"upload": 404}},
        {"refuse": {"create": 404}},
        {"refuse": {"create": 401}},
    ],
)
async def test_a_batch_that_comes_to_nothing_gives_its_ranges_back_at_once(
    db: Database, batching: Batching, scripted_model: ScriptedModel, script: JsonObject
) -> None:
    scripted_model.script({"reply": {"text": GOOD}})
    scripted_model.batches(**script)
    session = await out(db, batching)
    await look(db, batching)

    assert (await line_of(db))["state"] == "failed"
    assert (await batch_of(db))["state"] == "done"
    assert await is_due(db, session)
    assert scripted_model.batches_standing()["asked"].get("create", 0) <= 1


@pytest.mark.parametrize("step", ["upload", "create", "status", "content"])
@pytest.mark.parametrize("how", ["refuse", "garbage"])
async def test_a_bad_hour_of_the_provider_is_waited_out(
    db: Database, batching: Batching, scripted_model: ScriptedModel, step: str, how: str
) -> None:
    scripted_model.script({"reply": {"text": GOOD, "usage": USAGE}})
    fault: JsonObject = {how: {step: 503} if how == "refuse" else [step]}
    scripted_model.batches(**fault, times=1)
    session = await out(db, batching)
    for _ in range(3):
        await look(db, batching)

    if (step, how) == ("content", "garbage"):
        assert (await line_of(db))["state"] == "failed"  # a whole file of it
    else:
        assert (await line_of(db))["state"] == "answered"
        (paid,) = (await dump(db))["usage"]
        assert Decimal(str(paid["usd"])) == HALF
    assert await is_due(db, session)
    assert len(scripted_model.batches_standing()["batches"]) == 1


async def test_a_batch_is_not_made_twice_where_the_answer_was_lost(
    db: Database, batching: Batching, scripted_model: ScriptedModel
) -> None:
    scripted_model.script({"reply": {"text": GOOD}})
    scripted_model.batches(refuse={"create": 500}, after=True, times=1)
    await out(db, batching)
    assert (await batch_of(db))["state"] == "made"

    await look(db, batching)

    assert (await batch_of(db))["state"] == "sent"
    await look(db, batching)
    standing = scripted_model.batches_standing()
    assert (await line_of(db))["state"] == "answered"
    assert (standing["asked"]["create"], standing["asked"]["upload"]) == (1, 1)


async def test_without_a_list_it_is_sent_again_once(
    db: Database, batching: Batching, scripted_model: ScriptedModel
) -> None:
    scripted_model.script({"reply": {"text": GOOD}})
    scripted_model.batches(refuse={"create": 500, "list": 404})
    session = await out(db, batching)
    for _ in range(4):
        await look(db, batching)

    assert scripted_model.batches_standing()["asked"]["create"] == 2
    assert (await line_of(db))["state"] == "failed"
    assert await is_due(db, session)


@pytest.mark.parametrize("where", ["upload", "create", "status", "content"])
@pytest.mark.parametrize("done", [False, True])
async def test_killed_anywhere(
    db: Database,
    batching: Batching,
    reader: Reader,
    scripted_model: ScriptedModel,
    where: str,
    done: bool,
) -> None:
    """The process is gone while the provider has not answered, whether it did what it was told."""
    scripted_model.script({"reply": {"text": GOOD, "usage": USAGE}})
    scripted_model.batches(silent=[where], after=done)
    session = await spoken(db)
    await put(db, session)

    async def asked() -> bool:
        return where in scripted_model.batches_standing()["asked"]

    async def looks() -> None:
        while True:
            await look(db, batching)

    killed = asyncio.create_task(looks())
    await until(asked)
    await end_all([killed])

    scripted_model.batches()
    other = at(db, scripted_model.url)
    for _ in range(3):
        await look(db, other)
    await read(db, reader, session)
    assert await learned(db) == ["The user lives in Graz."]
    (paid,) = (await dump(db))["usage"]
    assert Decimal(str(paid["usd"])) == HALF
    assert len(scripted_model.batches_standing()["batches"]) == 1


async def test_several_processes_do_what_one_does(
    db: Database, batching: Batching, scripted_model: ScriptedModel
) -> None:
    scripted_model.script({"reply": {"text": GOOD, "usage": USAGE}})
    for _ in range(3):
        await put(db, await spoken(db))
    everybody = [at(db, scripted_model.url) for _ in range(4)]
    for _ in range(3):
        await look(db, *everybody)

    assert len(scripted_model.batches_standing()["batches"]) == 1
    assert {one["state"] for one in (await dump(db))["consolidation_lines"]} == {"answered"}
    assert len((await dump(db))["usage"]) == 3


async def test_a_provider_that_is_away_is_left_in_the_end(db: Database) -> None:
    away = at(db, "http://127.0.0.1:9/v1")
    session = await out(db, away)
    assert (await batch_of(db))["state"] == "made"

    await older(db, hours=2)
    await look(db, away)

    assert await is_due(db, session)


async def test_a_batch_that_is_never_done_is_given_up_after_a_day(
    db: Database, batching: Batching, scripted_model: ScriptedModel
) -> None:
    scripted_model.script({"reply": {"text": GOOD}})
    scripted_model.batches(ends="never")
    session = await out(db, batching)
    await look(db, batching)
    assert not await is_due(db, session)

    await older(db, hours=26)
    await look(db, batching)

    assert await is_due(db, session)
    assert (await batch_of(db))["state"] == "done"
    assert scripted_model.batches_standing()["asked"]["cancel"] == 1


async def test_an_answer_that_waited_for_workers_is_paid_and_used(
    db: Database, batching: Batching, reader: Reader, scripted_model: ScriptedModel
) -> None:
    scripted_model.script({"reply": {"text": GOOD, "usage": USAGE}})
    session = await out(db, batching)

    await older(db, hours=26)
    await look(db, batching)

    (paid,) = (await dump(db))["usage"]
    assert Decimal(str(paid["usd"])) == HALF
    assert scripted_model.batches_standing()["files"] == []
    await read(db, reader, session)
    assert await learned(db) == ["The user lives in Graz."]
    assert len(scripted_model.requests()) == 1


async def test_a_batch_that_was_begun_is_found_though_workers_were_away(
    db: Database, batching: Batching, scripted_model: ScriptedModel
) -> None:
    """The answer to its beginning was lost, and a day went by."""
    scripted_model.script({"reply": {"text": GOOD, "usage": USAGE}})
    scripted_model.batches(refuse={"create": 500}, after=True, times=1)
    await out(db, batching)

    await older(db, hours=26)
    for _ in range(2):
        await look(db, batching)

    assert (await line_of(db))["state"] == "answered"
    assert scripted_model.batches_standing()["asked"]["create"] == 1


async def test_a_provider_that_says_nothing_is_given_two_days(
    db: Database, batching: Batching, scripted_model: ScriptedModel
) -> None:
    scripted_model.script({"reply": {"text": GOOD, "usage": USAGE}})
    session = await out(db, batching)
    scripted_model.batches(refuse={"status": 503})

    await older(db, hours=26)
    await look(db, batching)
    assert (await batch_of(db))["state"] == "sent"
    await older(db, hours=25)
    await look(db, batching)

    assert (await batch_of(db))["state"] == "done"
    assert (await line_of(db))["state"] == "failed"
    assert await is_due(db, session)
    assert scripted_model.batches_standing()["asked"]["cancel"] == 1


async def test_answers_that_can_not_be_had_are_deleted_at_the_provider(
    db: Database, batching: Batching, scripted_model: ScriptedModel
) -> None:
    scripted_model.script({"reply": {"text": GOOD}})
    scripted_model.batches(refuse={"content": 404})
    await out(db, batching)
    await look(db, batching)

    assert (await line_of(db))["state"] == "failed"
    assert scripted_model.batches_standing()["files"] == []


async def test_who_was_erased_is_not_asked_about(
    db: Database, batching: Batching, scripted_model: ScriptedModel
) -> None:
    session = await spoken(db)
    await put(db, session)
    await sessions.delete(db, ME, session)

    await look(db, batching)

    assert scripted_model.batches_standing()["asked"] == {}


async def test_an_answer_without_usage_is_estimated(
    db: Database, batching: Batching, scripted_model: ScriptedModel
) -> None:
    usage = {"prompt_tokens": 0, "completion_tokens": 0}
    scripted_model.script({"reply": {"text": GOOD, "usage": usage}})
    await out(db, batching)
    await look(db, batching)

    (paid,) = (await dump(db))["usage"]
    assert (paid["reported"], paid["usd"]) == (False, 0)
    assert 0 < paid["estimated_usd"] < 0.01


async def test_who_has_nothing_left_goes_with_no_batch(db: Database) -> None:
    budget = Budget(Decimal(1))
    spent = at(db, "http://127.0.0.1:9/v1", BudgetRules(per_user=Budget(Decimal(0))))
    paying = at(db, "http://127.0.0.1:9/v1", BudgetRules(per_user=budget))

    assert not await spent.may(ME)
    assert await paying.may(ME)
    assert await at(db, "http://127.0.0.1:9/v1").may(ME)


async def test_logs_hold_nothing_of_it(
    db: Database, batching: Batching, scripted_model: ScriptedModel
) -> None:
    scripted_model.script({"reply": {"text": GOOD}})
    with capture_logs() as logs:
        scripted_model.batches(refuse={"status": 500}, times=1)
        await out(db, batching)
        for _ in range(2):
            await look(db, batching)

    assert [one["event"] for one in logs] == ["batch sent", "batch not seen to", "batch ended"]
    assert logs[1]["error"] == "ProviderError 500"
    assert "Graz" not in str(logs)


async def test_a_postgres_that_is_away_ends_nothing(
    scripted_model: ScriptedModel, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.trouble.SAY_SECONDS", 0.0)
    away = settings.model_copy(
        update={"database_url": SecretStr("postgresql://me@127.0.0.1:9/none")}
    )
    db = Database.from_settings(away)
    endpoint = BatchEndpoint(model_of(settings), "key")
    batching = Batching(db, endpoint, Tariff(), BudgetRules(), every=0.01)
    looking = asyncio.create_task(batching.look_for_ever())
    with capture_logs() as logs:
        await within(until(lambda: len(logs) > 1))
    await end_all([looking])
    await db.close()

    assert {one["event"] for one in logs} == {"batches not looked at"}


@pytest.mark.parametrize(
    "changed", [{"consolidate_batch": "off"}, {"consolidate_seconds": 0.0}], ids=str
)
def test_there_are_none_unless_they_are_asked_for(settings: Settings, changed: JsonObject) -> None:
    assert batches_of(settings.model_copy(update=changed)) is None


def test_the_cheap_model_is_asked(settings: Settings) -> None:
    cheap = settings.model_copy(update={"model_cheap": "openai/small"})

    for chosen, name in ((settings, "openai/scripted"), (cheap, "openai/small")):
        endpoint = batches_of(chosen)
        assert endpoint is not None
        assert endpoint.model.name == name


def test_a_provider_without_an_address_is_refused(settings: Settings) -> None:
    nowhere = settings.model_copy(update={"model": "anthropic/claude", "model_url": None})

    with pytest.raises(SettingsError, match="FIRESIDE_CONSOLIDATE_BATCH: anthropic/claude has no"):
        batches_of(nowhere)
