"""Kept answers: found by their hash, gone with their users, and never in anybody's way."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from shared.encoding import dumps
from shared.kept_answers import (
    LONGEST_SECONDS,
    MOST_BYTES,
    PATIENCE_SECONDS,
    KeptAnswers,
    forget_answers,
)
from shared.store.traces import owner_of
from tests.ports import promised_port
from tests.waiting import PATIENCE, until, within

ANNA, BERT = "anna@home.example", "bert"
KEY = "f" * 64
ANSWER = {"text": "the first one"}
NAME = f"fireside:answer:{KEY}"


async def list_of(redis: Redis) -> bytes:
    (name,) = [key async for key in redis.scan_iter(match="fireside:answers-of:*")]
    assert isinstance(name, bytes)
    return name


async def test_an_answer_is_there_for_everyone_until_its_time_is_over(redis: Redis) -> None:
    kept = KeptAnswers(redis, patience=PATIENCE)

    assert await kept.get(ANNA, KEY) is None
    await kept.put(ANNA, KEY, ANSWER, 60)

    assert await kept.get(BERT, KEY) == ANSWER
    assert 50 < await redis.ttl(NAME) <= 60
    await redis.pexpire(NAME, 1)
    await asyncio.sleep(0.01)
    assert await kept.get(BERT, KEY) is None


async def test_no_answer_is_kept_for_longer_than_the_lists(redis: Redis) -> None:
    await KeptAnswers(redis, patience=PATIENCE).put(ANNA, KEY, ANSWER, 10 * LONGEST_SECONDS)

    assert await redis.ttl(NAME) <= LONGEST_SECONDS
    assert await redis.ttl(await list_of(redis)) == pytest.approx(LONGEST_SECONDS, abs=60)


async def test_keys_name_no_user(redis: Redis) -> None:
    await KeptAnswers(redis, patience=PATIENCE).put(ANNA, KEY, ANSWER, 60)

    answers, of_user = sorted([key async for key in redis.scan_iter()])
    assert answers == NAME.encode()
    assert re.fullmatch(rb"fireside:answers-of:[0-9a-f]{64}", of_user)


async def test_who_is_forgotten_leaves_nothing_and_takes_nothing_of_others(redis: Redis) -> None:
    kept = KeptAnswers(redis, patience=PATIENCE)
    for number in range(3):
        await kept.put(ANNA, f"{number}", ANSWER, 60)
    await kept.put(BERT, "3", ANSWER, 60)

    await forget_answers(redis, owner_of(ANNA))
    await forget_answers(redis, owner_of(ANNA))

    left = {key async for key in redis.scan_iter() if b"answers-of" not in key}
    assert left == {b"fireside:answer:3"}
    await forget_answers(redis, owner_of(BERT))
    assert await redis.keys() == []


async def test_whoever_got_an_answer_takes_it_along(redis: Redis) -> None:
    """It answers the words of both, which are the same."""
    kept = KeptAnswers(redis, patience=PATIENCE)
    await kept.put(ANNA, KEY, ANSWER, 60)
    await kept.get(BERT, KEY)

    await forget_answers(redis, owner_of(BERT))

    assert await redis.exists(NAME) == 0


async def test_a_list_does_not_grow_for_ever(redis: Redis) -> None:
    kept = KeptAnswers(redis, patience=PATIENCE)
    await kept.put(ANNA, KEY, ANSWER, 60)
    name = await list_of(redis)
    await redis.zadd(name, {"old": time.time() - 61, "nearly": time.time() - 30})

    await kept.put(ANNA, "other", ANSWER, 60)

    assert await redis.zrange(name, 0, -1) == [b"nearly", KEY.encode(), b"other"]


async def test_a_hash_is_on_the_list_of_whoever_uses_it_for_as_long_as_its_answer_is_there(
    redis: Redis,
) -> None:
    """However short a time other answers are kept for by then."""
    kept = KeptAnswers(redis, patience=PATIENCE)
    await kept.put(ANNA, KEY, ANSWER, 6_000)
    await kept.get(BERT, KEY)
    await kept.put(BERT, "other", ANSWER, 6)

    for name in [key async for key in redis.scan_iter(match="fireside:answers-of:*")]:
        kept_until = await redis.zscore(name, KEY)
        assert kept_until == pytest.approx(time.time() + 6_000, abs=30)
        assert await redis.ttl(name) > 6_000


async def test_what_would_be_there_for_ever_is_none_of_ours(redis: Redis) -> None:
    await redis.set(NAME, dumps(ANSWER))

    assert await KeptAnswers(redis, patience=PATIENCE).get(ANNA, KEY) is None


@pytest.mark.parametrize("value", [b"", b"{", b"\xff\x00", b"[1]", b"null", b'"x"', b"[" * 9_000])
async def test_what_is_no_answer_is_none(redis: Redis, value: bytes) -> None:
    await redis.set(NAME, value, ex=60)

    assert await KeptAnswers(redis, patience=PATIENCE).get(ANNA, KEY) is None


async def test_what_is_too_long_is_neither_kept_nor_believed(redis: Redis) -> None:
    kept = KeptAnswers(redis, patience=PATIENCE)
    long = {"text": "x" * (MOST_BYTES - 11)}

    await kept.put(ANNA, KEY, long | {"text": long["text"] + "x"}, 60)
    assert await redis.keys() == []
    await kept.put(ANNA, KEY, long, 60)
    assert await kept.get(ANNA, KEY) == long
    await redis.append(NAME, " ")
    assert await kept.get(ANNA, KEY) is None


async def test_something_else_at_its_place_is_replaced(redis: Redis) -> None:
    kept = KeptAnswers(redis, patience=PATIENCE)
    await redis.rpush(NAME, "a", "b")

    assert await kept.get(ANNA, KEY) is None
    await kept.put(ANNA, KEY, ANSWER, 60)

    assert await kept.get(ANNA, KEY) == ANSWER


async def test_without_a_users_list_nothing_is_kept_or_used(redis: Redis) -> None:
    kept = KeptAnswers(redis, patience=PATIENCE)
    await kept.put(ANNA, KEY, ANSWER, 60)
    name = await list_of(redis)
    await redis.delete(name, NAME)
    await redis.set(name, "no list")

    await kept.put(ANNA, KEY, ANSWER, 60)
    assert await redis.exists(NAME) == 0
    await kept.put(BERT, KEY, ANSWER, 60)
    assert await kept.get(ANNA, KEY) is None
    assert await kept.get(BERT, KEY) == ANSWER

    await forget_answers(redis, owner_of(ANNA))
    assert await redis.exists(name) == 0


async def test_a_full_redis_keeps_nothing(redis: Redis) -> None:
    kept = KeptAnswers(redis, patience=PATIENCE)
    await redis.config_set("maxmemory", 1)
    try:
        await kept.put(ANNA, KEY, ANSWER, 60)
        assert await kept.get(ANNA, KEY) is None
    finally:
        await redis.config_set("maxmemory", 0)

    await kept.put(ANNA, KEY, ANSWER, 60)
    assert await kept.get(ANNA, KEY) == ANSWER


async def test_a_redis_that_is_away_is_none(redis: Redis) -> None:
    away = Redis(host="127.0.0.1", port=promised_port())
    kept = KeptAnswers(away)

    with capture_logs() as logs:
        await kept.put(ANNA, KEY, ANSWER, 60)
        assert await kept.get(ANNA, KEY) is None
    await away.aclose()

    assert [entry["event"] for entry in logs] == ["answers of models are not kept"]
    assert ANNA not in str(logs)


@asynccontextmanager
async def mute_server() -> AsyncIterator[tuple[int, list[bytes]]]:
    """A port at which everything is heard, and nothing answered."""
    heard: list[bytes] = []
    gone = asyncio.Event()

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(100))
        await gone.wait()
        writer.close()

    server = await asyncio.start_server(hear, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], heard
    finally:
        gone.set()
        server.close()


async def test_a_redis_that_does_not_answer_is_waited_for_once_and_shortly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shared.kept_answers.AWAY_SECONDS", 3600)
    async with mute_server() as (port, heard):
        mute = Redis(host="127.0.0.1", port=port)
        kept = KeptAnswers(mute)
        begun = time.monotonic()

        for _ in range(40):
            assert await within(kept.get(ANNA, KEY)) is None
            await within(kept.put(ANNA, KEY, ANSWER, 60))

        # Neither for each of them, nor for ever.
        assert time.monotonic() - begun < 40 * PATIENCE_SECONDS
        await until(lambda: bool(heard))
        assert len(heard) == 1
        await mute.aclose()
