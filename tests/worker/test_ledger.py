"""The ledger against the provider's own numbers, with faults of every kind; budgets in a fleet."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from decimal import Decimal
from itertools import count
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import text

from agent_core import Model
from bench.provider_numbers import (
    FAULTS,
    PRICES,
    Numbers,
    ledger_numbers,
    provider_numbers,
    said,
)
from deploy.models.control import ScriptedModel
from shared.allowance import NO_RULES, Budget
from shared.ending import end_all
from shared.errors import PricesError, StoreUnavailable
from shared.records import NewAction
from shared.settings import Settings, load_settings
from shared.store import actions, budgets
from shared.store.database import Database
from tests.shared.invariants import broken
from tests.shared.sessions import new_session
from tests.shared.tables import dump
from tests.waiting import PATIENCE, until, within
from worker.agents import Answer, RegisteredAgent, RunningTask
from worker.companion import CompanionAgent
from worker.host import Host


def saying(words: str, key: str | None = None) -> NewAction:
    return NewAction({"type": "say", "text": words}, client_action_id=key)


class Stage:
    """Some hosts with the companion, and the sessions that they are given."""

    def __init__(self, settings: Settings, db: Database, model: ScriptedModel) -> None:
        self.db = db
        self.provider = model
        self._model = Model(
            "scripted",
            "openai",
            base_url=model.url,
            api="openai",
            retry_delay=0.01,
            first_token_timeout=PATIENCE,
        )
        self._settings = settings
        self.hosts: list[Host] = []
        self._chance = random.Random(7)

    def start(self, agent: RegisteredAgent | None = None, **changes: object) -> Host:
        settings = self._settings.model_copy(update=changes)
        agents = {"companion": agent or CompanionAgent()}
        host = Host(settings, agents, self._model, "key")
        host.start()
        self.hosts.append(host)
        return host

    async def act(self, session: UUID, action: NewAction, user: str) -> UUID:
        accepted = await actions.accept(self.db, user, session, action, rules=NO_RULES)
        self.hint(session)
        return accepted.task_id

    def hint(self, session: UUID) -> None:
        self._chance.choice(self.hosts).submit(session)

    async def all_ended(self) -> bool:
        """Whether no task is open; sessions that wait are hinted, for nobody reads the queue."""
        waiting = text(
            """
            select id, coalesce(lease_until, clock_timestamp()) <= clock_timestamp() as free
            from sessions where open_tasks > 0
            """
        )
        try:
            rows = await self.db.rows(waiting)
        except StoreUnavailable:
            return False  # this connection was cut as well
        for row in rows:
            if row.free:
                self.hint(row.id)
        return not rows

    async def drain(self) -> None:
        for host in self.hosts:
            await within(asyncio.to_thread(host.drain))
        self.hosts.clear()

    async def numbers(self) -> tuple[Counter[Numbers], Counter[Numbers], int]:
        """The provider's numbers and the ledger's, and how many calls that has without any."""
        rows = (await dump(self.db))["usage"]
        cut_off = sum(row["outcome"] in {"aborted", "lost"} for row in rows)
        return provider_numbers(self.provider.calls()), ledger_numbers(rows), cut_off


@pytest.fixture
async def stage(
    postgres_url: str, redis_url: str, scripted_model: ScriptedModel, tmp_path: Path
) -> AsyncIterator[Stage]:
    prices = tmp_path / "prices.json"
    prices.write_text(json.dumps(PRICES))
    settings = load_settings().model_copy(
        update={
            "database_url": SecretStr(postgres_url),
            "redis_url": SecretStr(redis_url),
            "prices": str(prices),
            "mark_up": 1.0,
            "sweep_seconds": 0.3,
            "drain_seconds": 5.0,
            "lease_seconds": 300.0,  # none runs out, unless that is what a test is about
            "database_pool": 5,
            "consolidate_seconds": 0.0,  # these hosts lack the agent that would do it
        }
    )
    db = Database.from_settings(settings)
    found = Stage(settings, db, scripted_model)
    yield found
    await found.drain()
    await db.close()


async def cut_connections(url: str, every: float) -> None:
    """End one of the hosts' connections again and again, in the middle of whatever it does; on a
    machine that is too busy to write anything meanwhile, less often.
    """
    written = -1
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as admin:
        while True:
            cursor = await admin.execute("select sum(next_event)::int from sessions")
            before, (written,) = written, await cursor.fetchone() or (0,)
            if written < before + 10:
                await asyncio.sleep(every)
                continue
            await admin.execute(
                """
                select pg_terminate_backend(pid) from (
                    select pid from pg_stat_activity
                    where datname = current_database() and pid <> pg_backend_pid()
                        and application_name = 'fireside'
                    order by random() limit 1) one
                """
            )
            await asyncio.sleep(every)


async def steal_leases(stage: Stage, every: float) -> None:
    """Have a running session's lease run out, as if its worker had been frozen; another goes on."""
    steal = text(
        """
        update sessions set lease_until = clock_timestamp() - interval '1 s'
        where id = (select id from sessions where lease_until > clock_timestamp()
                    order by random() limit 1)
        returning id
        """
    )
    while True:
        row = await stage.db.row(steal)
        if row is not None:
            stage.hint(row.id)
        await asyncio.sleep(every)


async def sessions_of_users(stage: Stage) -> list[UUID]:
    return [await new_session(stage.db, f"user-{no}", started=True) for no in range(20)]


async def accepted(stage: Stage, session: UUID, action: NewAction, user: str) -> bool:
    """Whether an action was accepted; its connection may be cut as well."""
    try:
        await stage.act(session, action, user)
    except StoreUnavailable:
        return False
    return True


async def act_with_faults(stage: Stage, sessions: Sequence[UUID], tasks: int) -> None:
    """Tasks of 20 users, a third of which meet a fault of the provider; each kind in its turn."""
    for number in range(tasks):
        fault = FAULTS[number // 3 % len(FAULTS)] if number % 3 == 0 else None
        # A caller whose answer is lost sends its action again, by its key.
        keyed = saying(said(number, fault=fault, calls=1 + number % 2), key=str(number))
        async with asyncio.timeout(PATIENCE):
            while not await accepted(stage, sessions[number % 20], keyed, f"user-{number % 20}"):
                pass
    await until(stage.all_ended, 60)


async def test_the_ledger_is_what_the_provider_reported_to_the_token(stage: Stage) -> None:
    """Every fault of a provider, but no call that we broke off: nothing may be missing."""
    for _ in range(2):
        stage.start()
    await act_with_faults(stage, await sessions_of_users(stage), 120)
    await stage.drain()

    provider, entered, cut_off = await stage.numbers()
    assert cut_off == 0
    assert entered == provider
    assert provider.total() > 150
    rows = (await dump(stage.db))["usage"]
    assert Counter(row["outcome"] for row in rows)["error"] > 10


async def test_with_connections_cut_only_calls_that_were_broken_off_are_missing(
    stage: Stage, postgres_url: str
) -> None:
    """An attempt that loses Postgres may hang up while the provider's last words are on the way."""
    for _ in range(2):
        stage.start(lease_seconds=3.0)
    sessions = await sessions_of_users(stage)
    cutting = asyncio.create_task(cut_connections(postgres_url, 0.15))
    await act_with_faults(stage, sessions, 200)
    assert not cutting.done()
    await end_all([cutting])
    await stage.drain()

    provider, entered, cut_off = await stage.numbers()
    missing = provider - entered
    assert entered - provider == Counter()
    assert missing.total() <= cut_off
    assert provider.total() > 250
    rows = (await dump(stage.db))["usage"]
    assert Counter(row["outcome"] for row in rows)["error"] > 10
    row = await stage.db.row(
        text(
            """
            select (select sum((coalesce(usd, 0) + estimated_usd) * mark_up) from usage)
                = (select sum(total) from spending)
            """
        )
    )
    assert row is not None
    assert row[0] is True
    assert await broken(stage.db) == []


async def test_calls_of_workers_that_lost_their_lease_are_entered_too(stage: Stage) -> None:
    for _ in range(2):
        stage.start(lease_seconds=1.0, heartbeat_seconds=0.3)
    sessions = [await new_session(stage.db, started=True) for _ in range(10)]
    stealing = asyncio.create_task(steal_leases(stage, 0.05))
    numbers = count()

    async def go_on() -> None:
        number = next(numbers)
        await stage.act(sessions[number % 10], saying(said(number, calls=1 + number % 3)), "me")

    for _ in range(60):
        await go_on()

    async def some_were_lost() -> bool:
        ended = await stage.all_ended()  # it hints at those whose hint went to the queue
        row = await stage.db.row(text("select count(*) from tasks where claims > 1"))
        assert row is not None
        lost = int(row[0])
        if ended and not lost:
            await go_on()  # all were too quick for a thief
        return lost > 5 or (ended and lost > 0)

    await until(some_were_lost)
    await end_all([stealing])
    await until(stage.all_ended, 60)
    await stage.drain()

    provider, entered, cut_off = await stage.numbers()
    assert entered - provider == Counter()
    # A provider's last words may have reached a worker just when it was told to stop.
    assert (provider - entered).total() <= cut_off
    attempts = Counter(row["claims"] for row in (await dump(stage.db))["tasks"])
    assert any(claims > 1 for claims in attempts)


async def test_a_budget_is_overrun_by_no_more_than_one_call_in_flight_per_session(
    stage: Stage,
) -> None:
    """Thirty sessions of one user in two workers, whose tasks all make six calls."""
    each = Decimal(1000 * 1000 + 10 * 2000) / 1_000_000  # dollars for 1,000 tokens and 10
    limit = each * 40
    await budgets.put(stage.db, "me", Budget(limit))
    for _ in range(2):
        stage.start()
    usage = {"prompt_tokens": 1000, "completion_tokens": 10}
    tools = {"tool_calls": [{"name": "roll_dice", "arguments": {}}], "usage": usage, "ttft": 0.05}
    turns = [*[tools] * 5, {"text": "Done.", "usage": usage, "ttft": 0.05}]
    stage.provider.script({"match": {"user": "go"}, "turns": turns})
    sessions = [await new_session(stage.db, started=True) for _ in range(30)]
    go = saying("go")

    await asyncio.gather(*(stage.act(session, go, "me") for session in sessions))
    await until(stage.all_ended, 60)
    await stage.drain()

    rows = (await dump(stage.db))["usage"]
    spent = sum((Decimal(str(row["usd"])) for row in rows), Decimal(0))
    assert limit <= spent <= limit + each * len(sessions)
    # A task that came first may have made all of its six calls; no other ended without an error.
    found = await stage.db.rows(text("select error ->> 'code' from tasks where seq > 1"))
    ends = Counter(row[0] for row in found)
    assert ends["budget_spent"] + ends[None] == len(sessions)
    assert 6 * ends[None] <= len(rows)
    assert await budgets.left(stage.db, "me", NO_RULES) == limit - spent
    more = await asyncio.gather(
        *(stage.act(session, go, "me") for session in sessions),
        return_exceptions=True,
    )
    assert {type(one).__name__ for one in more} == {"BudgetSpent"}


async def test_most_of_a_budget_is_spent_with_economy(stage: Stage) -> None:
    await budgets.put(stage.db, "me", Budget(Decimal(24)))
    seen: list[bool] = []

    class Watched(CompanionAgent):
        async def run(self, task: RunningTask) -> Answer:
            seen.append(task.economy)
            return await super().run(task)

    session = await new_session(stage.db, "me", started=True)
    stage.start(Watched())
    for number in range(2):  # of about 10 dollars each
        await stage.act(session, saying(said(number)), "me")
        await until(stage.all_ended, 60)
    await stage.act(session, saying(said(3)), "me")
    await until(stage.all_ended, 60)

    assert seen == [False, False, True]


def test_a_worker_does_not_start_with_a_malformed_table_of_prices(
    stage: Stage, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(PRICES | {"unit": "cents"}))

    with pytest.raises(PricesError, match=r"^FIRESIDE_PRICES: unit: "):
        stage.start(prices=str(wrong))
