"""Holes in the log: what was pruned, and what a restore has lost, told over each transport."""

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from deploy.local.postgres import NOT_DURABLE, EmbeddedPostgres
from shared import lineage as lineages
from shared.encoding import loads
from shared.errors import LeaseLost
from shared.migrate import migrate
from shared.records import NewEvent
from shared.redis_pool import connect_redis
from shared.settings import Settings
from shared.store import catalog, lineage, retention
from shared.store.database import Database
from tests.api.clients import TERMINAL, Client
from tests.api.conftest import CATALOG, COMPARING, serving
from tests.api.test_events import stream_of
from tests.api.worker import FakeWorker
from tests.clients import http_client
from tests.waiting import until

AGE = timedelta(days=30)


async def lift(db: Database) -> None:
    """As after a restore that was noticed."""
    await lineage.begin_lift(db, await lineage.look(db))
    while (await lineage.look(db)).lifting:
        await lineage.lift(db)


async def prune(db: Database, session: str) -> None:
    """As after a month in which nothing happened."""
    await db.run(text("update events set at = at - interval '31 days'"))
    while await retention.prune_events(db, UUID(session), AGE):
        pass


def shape(frames: list[dict[str, Any]]) -> list[Any]:
    """Numbers of events, and gaps as pairs."""
    return [
        (frame["from"], frame["to"]) if frame["type"] == "gap" else frame["seq"]
        for frame in frames
        if frame["type"] == "gap" or "seq" in frame
    ]


async def by_socket(client: Client, session: str, after: int, last: int) -> list[Any]:
    async with client.socket(session, after=after) as socket:
        return await _until(socket.receive, last)


async def by_stream(client: Client, session: str, after: int, last: int) -> list[Any]:
    headers = {"Last-Event-ID": str(after)}
    async with stream_of(client, session, headers=headers) as stream:

        async def receive() -> dict[str, Any]:
            number, frame = await stream.next()
            assert number == (str(frame["seq"]) if "seq" in frame else None)
            return frame

        return await _until(receive, last)


async def _until(receive: Any, last: int) -> list[Any]:
    """The shape of what comes up to number `last`, be it an event's or in a gap."""
    frames = [await receive()]
    while frames[-1].get("seq", frames[-1].get("to")) != last:
        frames.append(await receive())
    return shape(frames)


async def by_page(client: Client, session: str, after: int, limit: int = 200) -> list[Any]:
    path = f"/v1/sessions/{session}/events"
    page = (await client.http.get(path, params={"after": after, "limit": limit})).json()
    gaps = [{"type": "gap", **gap} for gap in page["gaps"]]
    first = {"gap": "from"}
    entries = [*page["events"], *gaps]
    return shape(sorted(entries, key=lambda one: one[first.get(one["type"], "seq")]))


async def seen(client: Client, session: str, after: int, last: int) -> list[Any]:
    """What a client gets behind `after`; the same over the socket, the stream and the pages."""
    shapes = await by_socket(client, session, after, last)
    assert await by_stream(client, session, after, last) == shapes
    assert await by_page(client, session, after) == shapes
    return shapes


async def test_pruned_events_are_a_gap(client: Client, worker: FakeWorker, db: Database) -> None:
    session = (await client.session())["id"]
    await worker.answer(session)
    await prune(db, session)
    assert await seen(client, session, 0, 5) == [(1, 5)]

    await client.act(session)
    await worker.answer(session)
    assert await seen(client, session, 0, 10) == [(1, 5), 6, 7, 8, 9, 10]
    assert await seen(client, session, 3, 10) == [(4, 5), 6, 7, 8, 9, 10]
    assert await seen(client, session, 5, 10) == [6, 7, 8, 9, 10]
    assert await seen(client, session, 7, 10) == [8, 9, 10]
    page = (await client.http.get(f"/v1/sessions/{session}/events")).json()
    assert (page["first_seq"], page["head_seq"]) == (6, 10)


@pytest.fixture
def unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gateways do not notice that the database is lifted.

    One that looked in the middle of it would serve nobody for a moment.
    """

    async def passes(*_: object) -> None:
        return None

    monkeypatch.setattr("api.gateway.Lineage", partial(lineages.Lineage, every=3600.0))
    monkeypatch.setattr(lineages.Lineage, "_inspect", passes)


@pytest.mark.usefixtures("unwatched")
async def test_a_jump_is_a_gap_before_and_behind_its_first_event(
    client: Client, worker: FakeWorker, db: Database
) -> None:
    session = (await client.session())["id"]
    await worker.answer(session)
    await lift(db)
    head = (await client.http.get(f"/v1/sessions/{session}")).json()["head_seq"]
    assert head > lineage.SEQ_MARGIN
    for after in (0, 5, 8):  # before the jump, at its edge, and in a future that was lost
        known = list(range(after + 1, 6))
        assert await seen(client, session, after, head) == [*known, (max(after, 5) + 1, head)]

    await client.act(session)
    await worker.answer(session)
    last = head + 5
    new = list(range(head + 1, last + 1))
    for after in (0, 5, 8):
        known = list(range(after + 1, 6))
        gap = (max(after, 5) + 1, head)
        assert await seen(client, session, after, last) == [*known, gap, *new]
    assert await seen(client, session, head, last) == new
    assert await by_page(client, session, 4, limit=1) == [5]
    assert await by_page(client, session, 5, limit=1) == [(6, head), head + 1]


@COMPARING
@pytest.mark.usefixtures("unwatched")
async def test_who_is_connected_at_the_jump_is_told(
    client: Client, worker: FakeWorker, db: Database
) -> None:
    session = (await client.session())["id"]
    await worker.answer(session)
    async with client.socket(session, after=5) as quiet, client.socket(session, after=5) as busy:
        await quiet.joined()
        await busy.joined()
        await lift(db)
        head = (await client.http.get(f"/v1/sessions/{session}")).json()["head_seq"]
        assert shape([await quiet.receive()]) == [(6, head)]  # by comparing, nothing was pushed
        await client.act(session)
        await worker.answer(session)
        pushed = await busy.until(*TERMINAL)
        assert shape(pushed) == [(6, head), *range(head + 1, head + 6)]


@pytest.mark.usefixtures("unwatched")
async def test_jumps_and_pruning_together(client: Client, worker: FakeWorker, db: Database) -> None:
    session = (await client.session())["id"]
    await worker.answer(session)
    await lift(db)
    first = (await client.http.get(f"/v1/sessions/{session}")).json()["head_seq"]
    await client.act(session)
    await worker.answer(session)
    await lift(db)
    second = (await client.http.get(f"/v1/sessions/{session}")).json()["head_seq"]
    await client.act(session)
    await worker.answer(session)
    last = second + 5

    assert await seen(client, session, 4, last) == [
        5,
        (6, first),
        *range(first + 1, first + 6),
        (first + 6, second),
        *range(second + 1, last + 1),
    ]
    await prune(db, session)
    assert await seen(client, session, 4, last) == [(5, last)]


@pytest.fixture
def own_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A migrated Postgres that a test may stop and put back."""
    folder = tmp_path_factory.mktemp("own") / "postgres"
    with EmbeddedPostgres(folder, settings=NOT_DURABLE) as server:
        migrate(server.url)
        yield server


def copied(server: EmbeddedPostgres) -> Path:
    server.stop()
    copy = server.folder.parent / "backup"
    subprocess.run(["cp", "-a", server.data, copy], check=True)
    server.start()
    return copy


def put_back(server: EmbeddedPostgres, copy: Path) -> None:
    server.stop()
    shutil.rmtree(server.data)
    subprocess.run(["cp", "-a", copy, server.data], check=True)
    server.start()


async def serves(client: Client) -> None:
    """Return once the gateway answers again."""

    async def is_back() -> bool:
        return (await client.http.get("/v1/sessions")).status_code == 200

    await until(is_back)


async def marked(settings: Settings, db: Database) -> None:
    """Return once the gateway has noted where the database stands now."""
    now = await lineage.look(db)
    async with connect_redis(settings) as redis:

        async def is_noted() -> bool:
            kept = loads(await redis.get(lineages.mark_key(now.id)) or b"{}")
            return int(kept.get("position", 0)) >= (now.position or 0)

        await until(is_noted)


async def test_a_client_of_a_lost_future_goes_on_behind_a_gap(
    settings: Settings, own_postgres: EmbeddedPostgres
) -> None:
    own = settings.model_copy(update={"database_url": SecretStr(own_postgres.url)})
    db = Database.from_settings(own)  # as an older release: it does not watch
    await catalog.announce(db, CATALOG)
    async with (
        serving(own) as url,
        http_client(url) as http,
        FakeWorker.connected(own, db) as worker,
    ):
        client = Client(http, url)
        session = (await client.session())["id"]
        await worker.answer(session)
        await client.act(session)
        zombie = await worker.start(session)  # 6 and 7
        copy = await asyncio.to_thread(copied, own_postgres)
        await serves(client)
        await db.close()
        lost = await worker.write(zombie, *[NewEvent("turn_start", {})] * 4)
        assert [event["seq"] for event in await client.log(session)] == list(range(1, 12))
        assert lost[-1].seq == 11
        await marked(own, db)
        await asyncio.to_thread(put_back, own_postgres, copy)
        await serves(client)
        await db.close()

        with pytest.raises(LeaseLost):
            await worker.write(zombie, NewEvent("turn_end", {}))
        head = (await client.http.get(f"/v1/sessions/{session}")).json()["head_seq"]
        claim = await worker.start(session)
        await worker.end(claim, "cancelled")
        assert claim.task_id == zombie.task_id
        assert claim.attempt > zombie.attempt + 1
        for after in (11, 9, 7):
            assert await seen(client, session, after, head + 2) == [
                (after + 1, head),
                head + 1,
                head + 2,
            ]
        assert await seen(client, session, 5, head + 2) == [6, 7, (8, head), head + 1, head + 2]
        kinds = [event["type"] for event in await client.log(session, after=11)]
        assert kinds == ["task_restarted", "task_cancelled"]
    await db.close()
