"""Hints on their way to a real, stock Celery worker."""

import asyncio
import base64
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from kombu.exceptions import OperationalError
from redis.asyncio import Redis
from structlog.testing import capture_logs

from deploy.local.valkey import EmbeddedValkey
from shared.broker import RECONNECT_SECONDS, Channel, Transport
from shared.errors import QueueUnavailable
from shared.levels import BACKGROUND, FIRST, LEVELS, key_of
from shared.queue import ADVANCE, Hints, envelope, hint_of, level_in, make_celery
from shared.redis_pool import connect_redis
from shared.settings import Settings, load_settings
from tests.waiting import PATIENCE, until, within

QUEUE = "shared-tests"

RAN = "ran"
"""The Redis list onto which the worker's task pushes what it was called with."""


@pytest.fixture(scope="module")
def worker(valkey_server: EmbeddedValkey) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process, by Celery's own command."""
    command = "-m celery -A tests.shared.hint_worker worker --loglevel=WARNING --without-mingle"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", *command.split()],
        cwd=Path(__file__).parents[2],
        env=os.environ
        | {
            "REDIS_URL": valkey_server.url,
            "FIRESIDE_QUEUE": QUEUE,
            "RAN_LIST": RAN,
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield process
    process.kill()  # it has nothing to finish, and an orderly end takes its time
    process.wait()


@pytest.fixture
def queue_settings(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("FIRESIDE_QUEUE", QUEUE)
    return load_settings()


async def ran(redis: Redis, count: int) -> list[bytes]:
    """The next calls of the worker's task, waited for."""
    calls: list[bytes] = []

    async def all_were_made() -> bool:
        while isinstance(one := await redis.rpop(RAN), bytes):
            calls.append(one)
        return len(calls) >= count

    await until(all_were_made)
    return calls


@pytest.fixture
async def ready(
    worker: subprocess.Popen[bytes], redis: Redis, queue_settings: Settings
) -> subprocess.Popen[bytes]:
    """The worker, known to take hints."""
    await Hints(queue_settings, redis).send([UUID(int=0)])

    async def runs() -> bool:
        assert worker.poll() is None, "the worker did not start"
        return await redis.rpop(RAN) is not None

    await until(runs, 4 * PATIENCE)
    return worker


async def said(redis: Redis) -> list[bytes]:
    """All keys but those that the worker beside has for itself."""
    keys = [key for key in await redis.keys() if isinstance(key, bytes)]
    return [key for key in keys if not key.startswith(b"_kombu.")]


async def test_a_celery_worker_runs_each_hint(
    ready: subprocess.Popen[bytes], redis: Redis, queue_settings: Settings
) -> None:
    sessions = [uuid4() for _ in range(50)]

    await Hints(queue_settings, redis).send(sessions)

    assert sorted(await ran(redis, 50)) == sorted(str(one).encode() for one in sessions)
    assert await redis.llen(QUEUE) == 0


async def test_send_task_says_the_same(
    ready: subprocess.Popen[bytes], redis: Redis, queue_settings: Settings
) -> None:
    session = uuid4()
    app = make_celery(queue_settings)

    app.send_task(ADVANCE, [str(session)], queue=QUEUE)

    assert await ran(redis, 1) == [str(session).encode()]
    app.close()


async def test_no_ids_no_message(redis: Redis, queue_settings: Settings) -> None:
    await Hints(queue_settings, redis).send([])

    assert await said(redis) == []


def changed(**parts: Any) -> dict[str, Any]:
    """A good hint with parts replaced; headers and properties are merged."""
    made = envelope(UUID(int=1), QUEUE)
    for name, value in parts.items():
        merge = name in {"headers", "properties"} and isinstance(value, dict) and value
        made[name.replace("_", "-")] = made[name] | value if merge else value
    return made


def body(value: object) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


NO_HINTS: list[Any] = [
    None,
    7,
    "text",
    [],
    {},
    {"headers": {}, "body": ""},
    changed(headers={}),
    changed(headers=[]),
    changed(headers=None),
    changed(headers={"task": "os.system"}),
    changed(headers={"task": None}),
    changed(body=None),
    changed(body=7),
    changed(body="%%%"),
    changed(body="é"),
    changed(body=""),
    changed(body=base64.b64encode(b"\xff{").decode()),
    changed(body=body(None)),
    changed(body=body(7)),
    changed(body=body({"a": 1})),
    changed(body=body([])),
    changed(body=body([[], {}, {}])),
    changed(body=body([[1], {}, {}])),
    changed(body=body([["not-an-id"], {}, {}])),
    changed(body=body([[str(UUID(int=1)), "more"], {}, {}])),
]

ODD_HINTS: list[Any] = [
    changed(content_type="application/x-python-serialize"),
    changed(content_type="x/y"),
    changed(headers={"id": None}),
    changed(headers={"retries": "x"}),
    changed(headers={"eta": "never"}),
    changed(headers={"expires": "never"}),
    changed(headers={"timelimit": "x"}),
    changed(properties={}),
    changed(properties=None),
    changed(properties={"delivery_tag": None}),
    changed(properties={"delivery_info": None}),
    changed(properties={"body_encoding": "rot13"}),
    changed(body=body([[str(UUID(int=1))], {"key": 1}, {"callbacks": ["x"], "chain": [1]}])),
    changed(body=body([[str(UUID(int=1))]])),
]

NOT_JSON: list[bytes] = [
    b"",
    b"garbage",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"__type__":1,"__value__":1}',
]


@pytest.mark.parametrize("message", NO_HINTS)
def test_what_is_no_hint(message: object) -> None:
    assert hint_of(message) is None


@pytest.mark.parametrize("message", [envelope(UUID(int=1), QUEUE), *ODD_HINTS])
def test_what_is_a_hint(message: object) -> None:
    assert hint_of(message) == UUID(int=1)


async def test_a_worker_outlives_messages_that_are_no_hints(
    ready: subprocess.Popen[bytes], redis: Redis, queue_settings: Settings
) -> None:
    bad = [json.dumps(message).encode() for message in NO_HINTS] + NOT_JSON
    for message in bad:
        await redis.lpush(QUEUE, message)
    await Hints(queue_settings, redis).send([UUID(int=2)])

    assert await ran(redis, 1) == [str(UUID(int=2)).encode()]
    assert ready.poll() is None
    assert await redis.llen(QUEUE) == 0
    assert await redis.hlen(Channel.unacked_key) == 0


async def test_only_the_session_counts_in_a_hint(
    ready: subprocess.Popen[bytes], redis: Redis
) -> None:
    for message in ODD_HINTS:
        await redis.lpush(QUEUE, json.dumps(message))

    assert await ran(redis, len(ODD_HINTS)) == [str(UUID(int=1)).encode()] * len(ODD_HINTS)
    assert ready.poll() is None


def test_what_workers_tell_each_other_is_dropped_without_a_word() -> None:
    with make_celery(load_settings()).connection_for_read() as connection:
        transport = connection.transport
        assert isinstance(transport, Transport)
        with capture_logs() as logged:
            for queue in ("celeryev.6f", QUEUE):
                transport._deliver({"headers": {"hostname": "worker@there"}, "body": ""}, queue)

    assert [(line["event"], line["queue"]) for line in logged] == [
        ("dropped a message that is no hint", QUEUE)
    ]


async def test_a_queue_that_is_away(
    queue_settings: Settings, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{closed_port}/0")
    settings = load_settings()
    redis = connect_redis(settings)

    with pytest.raises(QueueUnavailable, match="Redis is not available: "):
        await within(Hints(settings, redis).send([uuid4()]))

    await redis.aclose()


async def test_another_broker_gets_the_hints_by_celery(
    redis: Redis, queue_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRESIDE_BROKER_URL", "memory://")
    settings = load_settings()
    sessions = [uuid4(), uuid4()]
    got = []

    await Hints(settings, redis).send(sessions)

    with make_celery(settings).connection() as connection:
        queue = connection.SimpleQueue(QUEUE)
        for _ in sessions:
            message = queue.get(block=False)
            message.ack()
            got.append((message.headers["task"], message.payload[:2]))
        queue.close()
    assert got == [(ADVANCE, [[str(session)], {}]) for session in sessions]
    assert await said(redis) == []


async def test_another_broker_that_is_away(
    redis: Redis,
    queue_settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    closed_port: int,
) -> None:
    monkeypatch.setenv("FIRESIDE_BROKER_URL", f"redis://127.0.0.1:{closed_port}/0")

    with pytest.raises(QueueUnavailable):
        await within(Hints(load_settings(), redis).send([uuid4()]))


def test_a_broker_that_is_away_is_tried_at_even_intervals(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{closed_port}/0")
    assert RECONNECT_SECONDS == 2
    monkeypatch.setattr("shared.broker.RECONNECT_SECONDS", 0.02)
    pauses = []
    with (
        make_celery(load_settings()).connection_for_read() as connection,
        pytest.raises(OperationalError),
    ):
        connection.ensure_connection(lambda _, pause: pauses.append(pause), max_retries=2)

    assert pauses == [0.02] * 2


@pytest.mark.parametrize(
    ("redis_url", "broker"),
    [
        ("redis://cache", "redis://cache"),
        ("redis://:p%40w@cache:1/2", "redis://:p%40w@cache:1/2"),
        ("redis://cache/1?db=3", "redis://cache/3"),
        ("rediss://u:p@cache/1", "rediss://u:p@cache/1?ssl_cert_reqs=required"),
        ("rediss://cache?ssl_cert_reqs=none&db=2", "rediss://cache/2?ssl_cert_reqs=none"),
        ("unix:///run/r.sock", "redis+socket:///run/r.sock?virtual_host=0"),
        ("unix://u:p@/run/r.sock?db=4", "redis+socket://u:p@/run/r.sock?virtual_host=4"),
    ],
)
def test_celery_gets_the_redis_url_in_its_own_spelling(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, redis_url: str, broker: str
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)

    assert make_celery(load_settings()).conf.broker_url == broker

    monkeypatch.setenv("FIRESIDE_BROKER_URL", redis_url)
    assert make_celery(load_settings()).conf.broker_url == broker


async def test_a_redis_at_a_socket_that_is_away(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REDIS_URL", f"unix://{tmp_path}/redis.sock?db=3")
    redis = connect_redis(load_settings())

    with pytest.raises(QueueUnavailable):
        await Hints(load_settings(), redis).send([uuid4()])
    with (
        make_celery(load_settings()).connection() as connection,
        pytest.raises(OperationalError, match=f"{tmp_path}/redis.sock"),
    ):
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
    await redis.aclose()


async def test_a_worker_takes_the_first_level_first(
    ready: subprocess.Popen[bytes], redis: Redis, queue_settings: Settings
) -> None:
    sessions = [uuid4() for _ in range(LEVELS)]
    levels = dict(zip(sessions, reversed(range(LEVELS)), strict=True))
    pushed = [
        (key_of(QUEUE, level), json.dumps(envelope(one, QUEUE, level)))
        for one, level in levels.items()
    ]
    async with redis.pipeline() as pipe:  # all at once, so that none is taken before the others
        for key, message in pushed:
            pipe.lpush(key, message)
        await pipe.execute()
    first, *rest = [levels[UUID(str(one, "ascii"))] for one in await ran(redis, LEVELS)]

    # The command that waited was answered by the first list that was pushed to.
    assert rest == sorted(rest)
    assert first in {FIRST, BACKGROUND}


async def test_hints_go_to_the_lists_of_their_levels(redis: Redis, settings: Settings) -> None:
    hints = Hints(settings, redis)
    one, two, three = uuid4(), uuid4(), uuid4()

    await hints.send([one, two, three], {one: 4, two: BACKGROUND})

    for session, level in ((three, FIRST), (one, 4), (two, BACKGROUND)):
        message = await redis.lindex(key_of(settings.queue, level), 0)
        assert message is not None
        assert hint_of(json.loads(message)) == session
        assert level_in(json.loads(message)) == level


async def test_a_hint_is_exchanged_for_the_longest_waiting_of_the_best_level(
    redis: Redis, settings: Settings
) -> None:
    hints = Hints(settings, redis)
    held, late, early, worse = uuid4(), uuid4(), uuid4(), uuid4()
    assert await hints.exchange(held, 4) == held
    await hints.send([worse], {worse: 5})
    assert await hints.exchange(held, 4) == held
    await hints.send([worse], {worse: 4})
    await hints.send([early], {early: 2})
    await hints.send([late], {late: 2})

    assert await hints.exchange(held, FIRST) == held
    assert await hints.exchange(held, 4) == early
    # The one that was given back is taken before what came after it.
    message = await redis.rpop(key_of(settings.queue, 4))
    assert isinstance(message, bytes)
    assert hint_of(json.loads(message)) == held


async def test_hints_of_a_session_that_begins_are_withdrawn_from_the_first_level(
    redis: Redis, settings: Settings
) -> None:
    hints = Hints(settings, redis)
    begins, other = uuid4(), uuid4()
    for _ in range(3):
        await hints.send([begins, other])
    await hints.send([begins], {begins: 2})

    await hints.withdraw(begins)

    left = await redis.lrange(settings.queue, 0, -1)
    assert [hint_of(json.loads(one)) for one in left] == [other] * 3
    assert await redis.llen(key_of(settings.queue, 2)) == 1


async def test_nothing_is_exchanged_for_what_is_no_hint(redis: Redis, settings: Settings) -> None:
    held = uuid4()
    for message in [json.dumps(one).encode() for one in NO_HINTS] + NOT_JSON:
        await redis.lpush(settings.queue, message)
        assert await Hints(settings, redis).exchange(held, 1) == held
    assert await said(redis) == []


async def test_another_broker_gets_the_level_as_priority(
    redis: Redis, queue_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRESIDE_BROKER_URL", "memory://")
    settings = load_settings()
    session, held = uuid4(), uuid4()
    hints = Hints(settings, redis)

    await hints.send([session], {session: 4})

    assert await hints.exchange(held, 5) == held
    with make_celery(settings).connection() as connection:
        queue = connection.SimpleQueue(QUEUE)
        message = queue.get(block=False)
        message.ack()
        queue.close()
    assert message.properties["priority"] == 4


def method(channel: int, number: int, body: bytes) -> bytes:
    """A frame of AMQP's class "connection"."""
    payload = struct.pack(">HH", 10, number) + body
    return struct.pack(">BHI", 1, channel, len(payload)) + payload + b"\xce"


async def test_an_amqp_broker_that_refuses_us_is_not_available(
    redis: Redis, queue_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)  # the protocol's name
        ways = struct.pack(">I5sI5s", 5, b"PLAIN", 5, b"en_US")
        writer.write(method(0, 10, b"\0\x09" + struct.pack(">I", 0) + ways))
        await reader.read(1)
        writer.write(method(0, 50, struct.pack(">HB14sHH", 403, 14, b"ACCESS_REFUSED", 10, 11)))
        await reader.read()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as broker:
        port = broker.sockets[0].getsockname()[1]
        monkeypatch.setenv("FIRESIDE_BROKER_URL", f"amqp://127.0.0.1:{port}")
        with pytest.raises(QueueUnavailable, match="ACCESS_REFUSED"):
            await within(Hints(load_settings(), redis).send([uuid4()]))


def test_only_amqp_is_told_how_many_priorities_there_are(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make_celery(settings).conf.task_queue_max_priority is None

    monkeypatch.setenv("FIRESIDE_BROKER_URL", "amqp://broker")
    assert make_celery(load_settings()).conf.task_queue_max_priority == BACKGROUND


async def test_an_exchange_without_redis(
    queue_settings: Settings, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{closed_port}/0")
    redis = connect_redis(load_settings())

    with pytest.raises(QueueUnavailable):
        await Hints(load_settings(), redis).exchange(uuid4(), 1)
    with pytest.raises(QueueUnavailable):
        await Hints(load_settings(), redis).withdraw(uuid4())
    await redis.aclose()
