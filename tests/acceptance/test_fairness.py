"""One user's backlog and another user's single action, with a real worker that has few slots."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from deploy.local.fleet import Fleet
from deploy.models.control import ScriptedModel
from shared.settings import Settings
from shared.store import api_keys
from shared.store.database import Database
from tests.clients import http_client

BACKLOG = 60
WAY_OF_A_HINT = 0.2
"""Seconds; a task takes longer."""

SHORT = 'a [[script: {"chunks": ["yes"], "ttft": 0.4}]]'


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
        body = {"type": "say", "text": SHORT}
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

    def __init__(self, fleet: Fleet, db: Database, stack: AsyncExitStack) -> None:
        self.fleet = fleet
        self.db = db
        self._stack = stack

    async def user(self, name: str) -> User:
        _, key = await api_keys.create(self.db, name, "")
        headers = {"Authorization": f"Bearer {key}"}
        http = http_client(self.fleet.url, headers=headers, timeout=60)
        return User(await self._stack.enter_async_context(http))

    async def begun_meanwhile(self, task: str, of: str) -> int:
        """How many tasks of a user began between a task's accept and its begin.

        What began while its hint was on its way does not count: on a busy machine a slot or two may
        become free meanwhile.
        """
        row = await self.db.row(
            text(
                "select count(*) as begun from tasks t join tasks o on o.user_id = :of"
                " and o.started_at > t.created_at + make_interval(secs => :way)"
                " and o.started_at < t.started_at where t.id = :task"
            ),
            {"task": task, "of": of, "way": WAY_OF_A_HINT},
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
    with Fleet(
        tmp_path,
        postgres=postgres_url,
        redis=redis_url,
        model=scripted_model.url,
        model_path="direct",
        auth="required",
        max_in_flight=str(request.param),
        drain_seconds="0",
    ) as fleet:
        async with AsyncExitStack() as stack:
            db = Database.from_settings(Settings(DATABASE_URL=postgres_url))
            stack.push_async_callback(db.close)
            await asyncio.to_thread(fleet.add_gateway)
            await asyncio.to_thread(fleet.add_worker)
            yield Town(fleet, db, stack)


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
        task = await other.say(own)
        await other.wait_for(task)
        begun.append([await town.begun_meanwhile(task, user) for user in ("deep", "wide")])

    assert min([await town.waiting(user) for user in ("deep", "wide")]) > BACKLOG / 4
    assert max(max(pair) for pair in begun) <= 1, begun


@pytest.mark.parametrize("town", [1], indirect=True)
async def test_background_work_runs_when_nobody_waits(town: Town) -> None:
    slow, quick = await town.user("slow"), await town.user("quick")
    behind = [await slow.session(priority="background") for _ in range(3)]
    rooms = [await quick.session() for _ in range(6)]
    tasks = [await slow.say(one) for one in behind]
    await asyncio.gather(*(quick.say(one) for one in rooms))
    for task in tasks:
        await slow.wait_for(task)

    rows = await town.db.rows(text("select user_id from tasks where seq > 1 order by started_at"))
    order = [row.user_id for row in rows]
    # What ran or was on its way before anyone else came.
    assert order[order.index("quick") :].index("slow") >= len(rooms), order
