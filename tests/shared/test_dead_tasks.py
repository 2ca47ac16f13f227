"""Dead tasks as an operator sees and requeues them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from shared.allowance import NO_RULES, Budget
from shared.dead_tasks import main
from shared.encoding import dumps_text, loads
from shared.errors import InvalidRequest, NotFound
from shared.events import channel
from shared.levels import CHORE
from shared.queue import hint_of
from shared.records import NewAction, NewEvent, Outcome
from shared.settings import Settings, get_settings
from shared.store import actions, api_keys, budgets, claims, dead_tasks, leases, sessions
from shared.store.database import Database
from tests.ports import promised_port
from tests.shared.invariants import broken
from tests.shared.sessions import ME, claimed, finish, new_session
from tests.waiting import PATIENCE

ERROR = {"code": "attempts_exhausted", "message": "given up after 5 attempts"}
DEAD = Outcome("dead", [NewEvent("task_dead", {"error": ERROR})], error=ERROR)


@pytest.fixture(autouse=True)
def _fresh_settings(db: Database, settings: Settings) -> Iterator[None]:
    """The command reads the settings of the process, which are this test's."""
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


async def dead_task(db: Database, words: str = "poison", key_id: str = "") -> tuple[UUID, UUID]:
    """A session, and a task of it that was given up."""
    session = await new_session(db, started=True)
    action = NewAction({"type": "say", "text": words}, client_action_id="key", key_id=key_id)
    task = (await actions.accept(db, ME, session, action)).task_id
    await leases.end(db, await claimed(db, session), DEAD)
    return session, task


async def command(*arguments: object) -> int:
    return await asyncio.to_thread(main, [str(one) for one in arguments])


async def test_a_task_of_the_servers_own_is_requeued_as_any(db: Database) -> None:
    session, task = await dead_task(db)
    for table in ("sessions", "tasks"):
        await db.run(text(f"update {table} set priority = {CHORE}"))

    assert (await dead_tasks.requeue(db, task)).session_id == session


async def test_a_requeued_task_has_the_same_action_and_leaves_the_dead_one_as_it_is(
    db: Database, redis: Redis, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    session, task = await dead_task(db)
    before = await actions.get_task(db, ME, task)
    async with listening(redis, session) as heard:
        assert await command("requeue", task) == 0
        assert b"task_queued" in await heard()
    hint = await redis.rpop(settings.queue)

    (found,) = await dead_tasks.page(db, limit=10)
    (again,) = found.requeued
    assert capsys.readouterr().out == f"{task}  requeued as {again}\n"
    assert isinstance(hint, bytes)
    assert hint_of(loads(hint)) == session
    assert await actions.get_task(db, ME, task) == before
    events = await sessions.events_after(db, ME, session, after=0, limit=100)
    assert [(e.type, e.task_id) for e in events[-2:]] == [
        ("task_dead", task),
        ("task_queued", again),
    ]
    claim = await claimed(db, session)
    assert (claim.task_id, claim.action) == (again, {"type": "say", "text": "poison"})
    assert (claim.attempt, claim.attempts) == (1, 1)
    await finish(db, claim)
    assert await broken(db) == []


async def test_a_task_is_requeued_only_where_its_budget_pays_for_it(
    db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    key, _ = await api_keys.create(db, ME)
    session, task = await dead_task(db, key_id=str(key))
    await budgets.put(db, ME, Budget(Decimal(0)), key_id=str(key))
    assert await command("requeue", task) == 1
    assert capsys.readouterr().err == f"fireside: the budget for task {task} is spent\n"

    await budgets.put(db, ME, Budget(Decimal(2)), key_id=str(key))
    assert await command("requeue", task) == 0

    claim = await claimed(db, session)
    assert (claim.key_id, claim.left_usd) == (str(key), Decimal(2))
    assert await broken(db) == []


async def test_what_a_batch_was_paid_for_is_requeued_by_a_spent_budget(db: Database) -> None:
    _, task = await dead_task(db)
    action = dumps_text({"type": "consolidate", "line": uuid4()})
    await db.run(text("update tasks set action = cast(:action as jsonb)"), {"action": action})
    await budgets.put(db, ME, Budget(Decimal(0)))

    await dead_tasks.requeue(db, task, NO_RULES)


async def test_what_the_settings_let_a_user_spend_holds_for_a_requeued_task(
    db: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, task = await dead_task(db)
    monkeypatch.setenv("FIRESIDE_BUDGET_PER_USER", "0/day")
    get_settings.cache_clear()

    assert await command("requeue", task) == 1
    assert "is spent" in capsys.readouterr().err


@asynccontextmanager
async def listening(redis: Redis, session: UUID) -> AsyncIterator[Callable[[], Awaitable[bytes]]]:
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(channel(session))
        assert await pubsub.get_message(timeout=PATIENCE) is not None  # it stands

        async def heard() -> bytes:
            message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=PATIENCE)
            assert message is not None
            return bytes(message["data"])

        yield heard


async def test_twice_only_when_asked_for(db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    _, task = await dead_task(db)
    assert await command("requeue", task) == 0
    assert await command("requeue", task) == 1
    assert "was requeued before, as" in capsys.readouterr().err
    assert await command("requeue", "--again", task) == 0

    assert len((await dead_tasks.page(db, limit=1))[0].requeued) == 2
    assert await broken(db) == []


async def test_of_many_at_once_one_requeues(db: Database) -> None:
    _, task = await dead_task(db)
    results = await asyncio.gather(
        *(dead_tasks.requeue(db, task) for _ in range(8)), return_exceptions=True
    )

    assert sorted(type(one).__name__ for one in results) == ["Accepted"] + ["InvalidRequest"] * 7


async def test_what_is_not_dead_or_not_there_is_refused_and_the_others_are_requeued(
    db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = await claimed(db, await new_session(db))
    nobody = uuid4()
    _, task = await dead_task(db)
    assert await command("requeue", waiting.task_id, nobody, task) == 1

    said = capsys.readouterr()
    assert said.err == (
        f"fireside: task {waiting.task_id} is not dead but running\n"
        f"fireside: there is no task {nobody}\n"
    )
    assert said.out.startswith(f"{task}  requeued as ")
    with pytest.raises(NotFound):
        await dead_tasks.requeue(db, nobody)
    with pytest.raises(InvalidRequest):
        await dead_tasks.requeue(db, waiting.task_id)


@pytest.mark.parametrize("arguments", [["requeue", "1"], ["requeue"], [], ["list", "--limit", "x"]])
def test_what_makes_no_sense_is_a_usage_error(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 2


async def test_the_list_shows_no_words_of_users(
    db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    session, first = await dead_task(db, "a secret")
    _, second = await dead_task(db, "another secret")
    assert await command("list") == 0
    text = capsys.readouterr().out
    assert await command("list", "--json", "--limit", 1) == 0
    (line,) = capsys.readouterr().out.splitlines()

    assert [one.split()[0] for one in text.splitlines()] == [str(second), str(first)]
    assert f"session {session}  user me  companion/say  given up after 5 attempts" in text
    assert "secret" not in text
    assert "secret" not in line
    assert loads(line)["task_id"] == str(second)
    assert loads(line)["error"] == ERROR


async def test_the_quarantine_is_listed(db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    session = await new_session(db)
    assert await command("quarantine") == 0
    assert capsys.readouterr().out == ""
    task = (await claimed(db, session, lease=-1)).task_id
    for _ in range(2):
        await claims.claim(db, session, lease_seconds=-1, history=1, quarantine_after=1)
    assert await command("quarantine") == 0
    line = capsys.readouterr().out
    assert await command("quarantine", "--json") == 0

    assert line == f"{session}  user me  companion  task {task}  attempts 1  waits\n"
    assert loads(capsys.readouterr().out)["session_id"] == str(session)


async def test_redis_and_postgres_may_be_away(
    db: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, task = await dead_task(db)
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{promised_port()}/0")
    get_settings.cache_clear()
    assert await command("requeue", task) == 0
    assert "Redis was not told" in capsys.readouterr().err
    monkeypatch.setenv("DATABASE_URL", f"postgresql://127.0.0.1:{promised_port()}/none")
    get_settings.cache_clear()
    assert await command("list") == 1
    assert capsys.readouterr().err.startswith("fireside: Postgres is not available")
