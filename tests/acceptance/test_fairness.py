"""One user's backlog and another user's single action, with a real worker that has few slots.

The model holds each answer until it is let go, so no task ends while hints are on their way: who is
next is up to the worker, and not to how busy the machine is.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from deploy.local.fleet import Fleet
from deploy.models.control import ScriptedModel
from shared.encoding import dumps
from shared.queue import envelope
from shared.settings import Settings
from shared.store import api_keys
from shared.store.database import Database
from tests.acceptance.conftest import LONG_LEASE, end_at_once
from tests.clients import http_client
from tests.nursery import BornFleet
from tests.shared.times import now
from tests.waiting import until, within

BACKLOG = 60
HELD = 'a [[script: {"chunks": ["yes"], "fault": {"kind": "hang"}}]]'


class User:
    """A caller with a key of their own."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def session(self, **body: Any) -> str:
        """A new session whose opening task is over."""
        answer = await self.http.post("/v1/sessions", json={"agent": "companion", **body})
        assert answer.status_code == 201, answer.text
        made = answer.json()
        await self.wait_for(made["task_id"])
        return str(made["id"])

    async def say(self, session: str) -> str:
        body = {"type": "say", "text": HELD}
        answer = await self.http.post(f"/v1/sessions/{session}/actions", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["task_id"])

    async def wait_for(self, task: str) -> None:
        """Wait until a task has ended well."""
        while True:
            answer = (await self.http.get(f"/v1/tasks/{task}?wait=25")).json()
            if answer["finished_at"] is not None:
                assert answer["status"] == "completed", answer
                return


class Town:
    """A fleet with one worker, and its users."""

    def __init__(
        self, fleet: Fleet, db: Database, redis: Redis, model: ScriptedModel, stack: AsyncExitStack
    ) -> None:
        self.fleet = fleet
        self.db = db
        self._redis = redis
        self._model = model
        self._stack = stack

    async def user(self, name: str) -> User:
        _, key = await api_keys.create(self.db, name, "")
        headers = {"Authorization": f"Bearer {key}"}
        http = http_client(self.fleet.url, headers=headers, timeout=60)
        return User(await self._stack.enter_async_context(http))

    async def all_slots_are_taken(self) -> None:
        slots = int(self.fleet.env["FIRESIDE_MAX_IN_FLIGHT"])
        await self._model.until(in_flight=slots)

    @asynccontextmanager
    async def hinted(self, *sessions: str) -> AsyncIterator[None]:
        """At the end of the block these sessions, told to do something in it, wait in the queue."""
        left = {json.loads(dumps(envelope(UUID(one), "fireside")))["body"] for one in sessions}

        async def until_pushed() -> None:
            while left:
                told = (await monitor.next_command())["command"]
                if told.startswith("LPUSH"):
                    left.difference_update([one for one in left if one in told])

        async with self._redis.monitor() as monitor:
            yield
            await within(until_pushed())

    async def let_go_until_ended(self, *tasks: str) -> None:
        """Have the model answer whoever asks, until these tasks have ended."""

        async def have_ended() -> bool:
            self._model.release()
            row = await self.db.row(
                text(
                    "select count(*) as open from tasks"
                    " where id = any(cast(:tasks as uuid[])) and finished_at is null"
                ),
                {"tasks": list(tasks)},
            )
            assert row is not None
            return int(row.open) == 0

        await until(have_ended)

    async def begun_before(self, task: str, of: str, since: datetime) -> int:
        """How many tasks of a user began between a moment and a task's begin."""
        row = await self.db.row(
            text(
                "select count(*) as begun from tasks t join tasks o on o.user_id = :of"
                " and o.started_at > :since and o.started_at < t.started_at where t.id = :task"
            ),
            {"task": task, "of": of, "since": since},
        )
        assert row is not None
        return int(row.begun)

    async def waiting(self, of: str) -> int:
        row = await self.db.row(
            text("select count(*) as n from tasks where user_id = :of and status = 'queued'"),
            {"of": of},
        )
        assert row is not None
        return int(row.n)


@pytest.fixture
async def town(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    postgres_url: str,
    redis_url: str,
    scripted_model: ScriptedModel,
) -> AsyncIterator[Town]:
    """With as many slots as the test's parameter says."""
    with BornFleet(
        tmp_path,
        postgres=postgres_url,
        redis=redis_url,
        model=scripted_model.url,
        model_path="direct",
        auth="required",
        max_in_flight=str(request.param),
        drain_seconds="0",
        lease_seconds=LONG_LEASE,  # what is held is not to run a second time
        model_first_token_seconds="300",
    ) as fleet:
        async with AsyncExitStack() as stack:
            db = Database.from_settings(Settings(DATABASE_URL=postgres_url))
            stack.push_async_callback(db.close)
            redis = await stack.enter_async_context(Redis.from_url(redis_url))
            await asyncio.to_thread(fleet.add_gateway)
            await asyncio.to_thread(fleet.add_worker)
            yield Town(fleet, db, redis, scripted_model, stack)
        end_at_once(fleet)


@pytest.mark.parametrize("town", [1, 2], indirect=True)
async def test_a_backlog_delays_others_by_one_task_at_the_most(town: Town) -> None:
    """Of two users with a backlog each, one has it in one session, the other in many."""
    deep, wide = await town.user("deep"), await town.user("wide")
    room = await deep.session()
    rooms = await asyncio.gather(*(wide.session() for _ in range(BACKLOG)))
    others = [await town.user(name) for name in ("b", "c", "d")]
    quiet = [(other, await other.session()) for other in others]
    await asyncio.gather(*(deep.say(room) for _ in range(BACKLOG)))
    await asyncio.gather(*(wide.say(one) for one in rooms))

    begun = []
    for other, own in quiet * 3:
        await town.all_slots_are_taken()
        async with town.hinted(own):
            task = await other.say(own)
        since = await now(town.db)
        await town.let_go_until_ended(task)
        await other.wait_for(task)
        begun.append([await town.begun_before(task, user, since) for user in ("deep", "wide")])

    assert min([await town.waiting(user) for user in ("deep", "wide")]) > BACKLOG / 4
    assert max(max(pair) for pair in begun) <= 1, begun


@pytest.mark.parametrize("town", [1], indirect=True)
async def test_background_work_runs_when_nobody_waits(town: Town) -> None:
    slow, quick = await town.user("slow"), await town.user("quick")
    behind = [await slow.session(priority="background") for _ in range(3)]
    rooms = [await quick.session() for _ in range(6)]
    tasks = [await slow.say(one) for one in behind]
    await town.all_slots_are_taken()
    async with town.hinted(*rooms):
        await asyncio.gather(*(quick.say(one) for one in rooms))
    await town.let_go_until_ended(*tasks)
    for task in tasks:
        await slow.wait_for(task)

    rows = await town.db.rows(text("select user_id from tasks where seq > 1 order by started_at"))
    order = [row.user_id for row in rows]
    # What ran or was on its way before anyone else came.
    assert order[order.index("quick") :].index("slow") >= len(rooms), order
