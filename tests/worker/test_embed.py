"""The embedding process: vectors for what was written, answers to who asks, changed models."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from aiohttp import web
from pydantic import SecretStr
from redis.asyncio import Redis
from sqlalchemy import text

from shared.embedding import EMBED_CHANNEL, TEXT_CHARACTERS, Embeddings
from shared.encoding import dumps
from shared.ending import end_all
from shared.errors import SettingsError, StoreUnavailable
from shared.memories import NewMemory
from shared.redis_pool import connect_redis
from shared.settings import Settings, load_settings
from shared.store import characters, memories, memory_pages, vectors
from shared.store.database import Database
from shared.store.recall import CROWD, Cue, recall
from tests.waiting import PATIENCE, until, within
from tests.web import served
from worker.agent_cache import AgentCache
from worker.embed import BATCH, Answering, Filling, catch_up, check, serve
from worker.embedders import (
    EmbeddingsAway,
    EmbeddingsChanged,
    HashingEmbedder,
    LitellmEmbedder,
    MiniLmEmbedder,
    as_text,
    dimension_of,
    embedder_of,
)
from worker.recollection import Recollection

ROOT = Path(__file__).parents[2]
ME = "me"

START = 4 * PATIENCE
"""Seconds that a process may take to start, or to end, on however busy a machine."""


@pytest.fixture
def settings(postgres_url: str, redis_url: str) -> Settings:
    urls = {"database_url": SecretStr(postgres_url), "redis_url": SecretStr(redis_url)}
    return load_settings().model_copy(update=urls)


@pytest.fixture
async def db(settings: Settings) -> AsyncIterator[Database]:
    database = Database.from_settings(settings)
    yield database
    await database.close()


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    client = connect_redis(settings)
    yield client
    await client.aclose()


class Fickle:
    """An embedder that is away, or gives as many numbers as it is told."""

    name = "fickle"

    def __init__(self, dimension: int = 2) -> None:
        self.dimension = dimension
        self.away = False
        self.seen: list[str] = []

    async def embed(self, texts: Sequence[str]) -> list[str]:
        if self.away:
            raise EmbeddingsAway("fickle: gone")
        self.seen += texts
        return [as_text([1.0] * self.dimension) for _ in texts]


async def remembered(db: Database, *texts: str) -> UUID:
    character = await characters.create(db, ME, "companion", "Ember", "")
    new = [NewMemory("fact", one, speaker="Ada") for one in texts]
    await memories.add(db, ME, character.id, new)
    return character.id


async def without_vector(db: Database) -> int:
    return len(await vectors.missing(db, after=UUID(int=0), limit=1000))


async def test_filling_gives_a_vector_to_each_memory(db: Database) -> None:
    await remembered(db, *(f"memory {number}" for number in range(70)))
    embedder = Fickle()

    assert await Filling(db, embedder, 2).fill() == 70
    assert await without_vector(db) == 0
    assert await Filling(db, embedder, 2).fill() == 0
    assert all(one.startswith("Ada (") for one in embedder.seen)
    assert len(embedder.seen) == 70


async def is_built(db: Database, dimension: int) -> bool:
    found = text(
        "/* graph */ select from pg_index where indisvalid and indexrelid = to_regclass(:name)"
    )
    return await db.row(found, {"name": f"memories_near_{dimension}"}) is not None


async def test_vectors_of_any_length_have_their_graph(db: Database) -> None:
    filling = asyncio.create_task(Filling(db, Fickle(7), 7).fill_for_ever())

    await until(lambda: is_built(db, 7))
    await end_all([filling])


async def test_memories_get_their_vectors_while_the_graph_waits(
    db: Database, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does behind every older transaction; and its build may be broken off."""
    monkeypatch.setattr("worker.embed.AWAY_SECONDS", 0.01)
    connect = psycopg.AsyncConnection.connect
    async with (
        await connect(postgres_url, autocommit=True) as looking,
        await connect(postgres_url) as other,
    ):

        async def waiting() -> int | None:
            found = await looking.execute(
                "select pid from pg_stat_activity where query like 'create index concurrently%'"
                " and datname = current_database() and wait_event_type = 'Lock'"
            )
            row = await found.fetchone()
            return None if row is None else int(row[0])

        async def waits_anew() -> bool:
            return await waiting() not in {None, first}

        async def all_have_vectors() -> bool:
            return await without_vector(db) == 0

        # What writers don't mind, and whoever builds an index does.
        await other.execute("lock table memories in share update exclusive mode")
        filling = asyncio.create_task(Filling(db, Fickle(8), 8).fill_for_ever())
        for words in ("one", "two"):
            first = await waiting()
            await remembered(db, words)
            await until(all_have_vectors)
            await until(waits_anew)
            await looking.execute("select pg_terminate_backend(%s)", [await waiting()])
        await other.rollback()
        await until(lambda: is_built(db, 8))
        await end_all([filling])


async def test_a_worker_sees_to_characters_that_have_grown(db: Database, redis: Redis) -> None:
    """No embedding process is there to do so."""
    texts = [f"Ship number{no} came." for no in range(CROWD)]
    character = await remembered(db, *texts)
    recollection = Recollection(db, redis, AgentCache(most=9, most_bytes=10**7, idle_seconds=60))
    tending = asyncio.create_task(recollection.tend_for_ever())
    found = await recollection.recall(Cue(ME, character, "number7"))
    assert len(found.memories.keys) == CROWD

    async def is_crowded() -> bool:
        found = await recollection.recall(Cue(ME, character, "number7"))
        return len(found.memories.keys) < 200

    await until(is_crowded)
    found = await recollection.recall(Cue(ME, character, "number7"))
    assert "Ship number7 came." in [one.text for one in found.rows() if one.hits]
    await end_all([tending])


async def test_a_worker_holds_what_it_has_read_of_a_character(db: Database, redis: Redis) -> None:
    character = await remembered(db, "Ada has a dog.")
    cache = AgentCache(most=9, most_bytes=10**7, idle_seconds=60)
    recollection, cue = Recollection(db, redis, cache), Cue(ME, character, "Who has a dog?")

    first = await recollection.recall(cue)
    held = cache.take_memories(character)
    cache.keep_memories(character, held)
    assert held.bytes > 0
    assert await recollection.recall(cue) == first  # and so what the ranking has made of them

    memory = UUID(bytes=first.memories.keys[0])
    await memory_pages.change(db, ME, memory, words="Ada had a dog.")
    assert (await recollection.recall(cue)).memories.texts == ("Ada had a dog.",)


async def test_memories_wait_for_a_model_that_is_away(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    character = await remembered(db, "Ada has a dog.")
    embedder = Fickle()
    embedder.away = True
    filling = Filling(db, embedder, 2)

    with pytest.raises(EmbeddingsAway):
        await filling.fill()
    found = (await recall(db, Cue(ME, character, "Who has a dog?"), None)).matches
    assert (found.hits, found.likeness) == ([("dog",)], [None])

    embedder.away = False
    assert await filling.fill() == 1


async def test_a_model_whose_vectors_changed_is_refused_with_what_to_do(db: Database) -> None:
    await remembered(db, "one", "two")
    await Filling(db, Fickle(2), 2).fill()

    assert await check(db, Fickle(2)) == 2
    with pytest.raises(EmbeddingsChanged) as caught:
        await check(db, Fickle(3))
    assert str(caught.value) == (
        "memories have vectors of fickle with 2 numbers, FIRESIDE_EMBEDDINGS gives fickle with 3: "
        "run python -m worker.embed --again"
    )


async def test_a_model_that_changes_while_it_runs_writes_nothing(db: Database) -> None:
    await remembered(db, "one")

    with pytest.raises(EmbeddingsChanged, match="fickle gave 3 numbers, before it gave 2"):
        await Filling(db, Fickle(3), 2).fill()
    assert await without_vector(db) == 1


async def test_embedding_again(db: Database, settings: Settings) -> None:
    character = await remembered(db, *(f"memory {number}" for number in range(40)))
    await Filling(db, Fickle(2), 2).fill()
    await memories.add(db, ME, character, [NewMemory("fact", "a new one")])

    assert await catch_up(settings, Fickle(3), again=True) == 41

    assert await vectors.sample(db) == [vectors.Found("fickle", 3)]
    assert await catch_up(settings, Fickle(3), again=False) == 0


def command(settings: Settings, *arguments: str, **environment: str) -> tuple[int, str]:
    given = {
        "DATABASE_URL": settings.database_url.get_secret_value(),
        "REDIS_URL": settings.redis_url.get_secret_value(),
        "PATH": "",
        **environment,
    }
    ran = subprocess.run(
        [sys.executable, "-m", "worker.embed", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=given,
        timeout=300,
    )
    return ran.returncode, ran.stdout or ran.stderr


async def test_the_command(db: Database, settings: Settings) -> None:
    await remembered(db, "one", "two")
    hashing = {"FIRESIDE_EMBEDDINGS": "hashing"}

    done = await asyncio.to_thread(command, settings, "--once", **hashing)
    assert done == (0, "2 memories embedded by hashing-384\n")

    await db.run(text("update memories set model = 'older'"))
    code, said = await asyncio.to_thread(command, settings, **hashing)
    assert code == 1
    assert said == (
        "fireside: memories have vectors of older with 384 numbers, FIRESIDE_EMBEDDINGS gives "
        "hashing-384 with 384: run python -m worker.embed --again\n"
    )

    done = await asyncio.to_thread(command, settings, "--again", **hashing)
    assert done == (0, "2 memories embedded by hashing-384\n")


async def test_the_process_does_not_begin_over_an_older_schema(
    db: Database, settings: Settings
) -> None:
    await db.run(text("update alembic_version set version_num = '0003'"))

    with pytest.raises(StoreUnavailable, match="is 0003, this release needs"):
        await within(serve(settings, HashingEmbedder()), START)


async def test_the_command_reads_words_anew_and_makes_no_vector(
    db: Database, settings: Settings
) -> None:
    character = await remembered(db, "我的狗叫Rex。", *(f"plain {no}" for no in range(700)))
    await db.run(text("update memories set words = to_tsvector('english', text)"))

    for count in (1, 0):
        done = await asyncio.to_thread(command, settings, "--words", FIRESIDE_EMBEDDINGS="none")
        assert done == (0, f"{count} memories have other words now\n")

    found = (await recall(db, Cue(ME, character, "Rex"), None)).matches
    assert [one.text for one in found.rows() if one.hits] == ["我的狗叫Rex。"]
    assert await without_vector(db) == 701


_HELD = """
import asyncio, sys
from worker import embed

class Held:
    name = "held"

    async def embed(self, texts):
        print("asked for", len(texts), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        return ["[1,0]" for _ in texts]

embed.embedder_of = lambda settings: Held()
sys.exit(embed.main())
"""
"""A process that makes vectors; its model gives a batch for each line that it reads."""


@asynccontextmanager
async def holding(
    settings: Settings, *arguments: str, **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _HELD, *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        env={
            "DATABASE_URL": settings.database_url.get_secret_value(),
            "REDIS_URL": settings.redis_url.get_secret_value(),
            "FIRESIDE_DRAIN_SECONDS": str(START),
            **environment,
        },
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def read_until(process: asyncio.subprocess.Process, part: str) -> str:
    """Read what a process writes, up to a line with this in it; that line."""
    assert process.stdout is not None
    while part not in (line := (await within(process.stdout.readline(), START)).decode()):
        assert line, f"it ended without {part!r}"
    return line


def go_on(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")


async def test_a_process_that_is_told_to_end_finishes_its_batch_and_begins_no_other(
    db: Database, settings: Settings
) -> None:
    await remembered(db, *(f"memory {number}" for number in range(2 * BATCH)))
    async with holding(settings) as process:
        await read_until(process, "asked for 1")
        go_on(process)
        batch = int((await read_until(process, "asked for")).split()[-1])  # it begins anywhere
        process.send_signal(signal.SIGTERM)
        await read_until(process, "ending")
        go_on(process)

        assert await within(process.wait(), START) == 0
    assert await without_vector(db) == 2 * BATCH - batch


async def test_a_process_that_is_told_to_end_waits_for_a_batch_no_longer_than_it_may(
    db: Database, settings: Settings
) -> None:
    await remembered(db, "one")
    async with holding(settings, FIRESIDE_DRAIN_SECONDS="0") as process:
        await read_until(process, "asked for 1")
        go_on(process)
        await read_until(process, "asked for 1")
        process.send_signal(signal.SIGTERM)
        await read_until(process, "ending")
        go_on(process)  # the thread that reads it; its batch is not waited for

        assert await within(process.wait(), START) == 0


@pytest.mark.parametrize(("arguments", "code"), [((), 0), (("--once",), 143)])
async def test_a_process_that_waits_for_its_model_ends_when_it_is_told_to(
    db: Database, settings: Settings, arguments: tuple[str, ...], code: int
) -> None:
    async with holding(settings, *arguments) as process:
        await read_until(process, "asked for 1")
        process.send_signal(signal.SIGTERM)
        go_on(process)

        assert await within(process.wait(), START) == code


@pytest.mark.parametrize("name", ["nonsense", ""])
def test_a_wrong_name_of_a_model(name: str, settings: Settings) -> None:
    with pytest.raises(SettingsError, match="must be minilm, hashing or provider/model"):
        embedder_of(settings.model_copy(update={"embeddings": name}))


def test_the_settings_choose(settings: Settings) -> None:
    hashing = embedder_of(settings.model_copy(update={"embeddings": "hashing"}))
    hosted = embedder_of(settings.model_copy(update={"embeddings": "openai/some-model"}))

    assert isinstance(hashing, HashingEmbedder)
    assert isinstance(hosted, LitellmEmbedder)
    assert hosted.name == "openai/some-model"


@pytest.fixture
async def narrow() -> AsyncIterator["Narrow"]:
    server = Narrow()
    app = web.Application()
    app.router.add_post("/v1/embeddings", server.embeddings)
    async with served(app) as url:
        server.url = f"{url}/v1"
        yield server


class Narrow:
    """A server whose model takes texts of up to `most` characters, and refuses a whole request for
    one that is longer. Vectors say how long a text was."""

    def __init__(self) -> None:
        self.url = ""
        self.most = 400
        self.status = 400
        self.sizes: set[int] = set()

    async def embeddings(self, request: web.Request) -> web.Response:
        texts = (await request.json())["input"]
        self.sizes.add(len(texts))
        if any(len(one) > self.most for one in texts):
            error = {"message": "too many tokens", "type": "invalid_request", "code": None}
            return web.json_response({"error": error}, status=self.status)
        data = [
            {"object": "embedding", "index": no, "embedding": [float(len(one)), 1.0]}
            for no, one in enumerate(texts)
        ]
        used = {"prompt_tokens": 1, "total_tokens": 1}
        return web.json_response({"object": "list", "model": "m", "data": data, "usage": used})


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_one_text_that_is_too_long_keeps_no_other_from_its_vector(
    narrow: Narrow, status: int
) -> None:
    narrow.status = status
    texts = ["x" * length for length in (1, 1000, 2, 3, 1600, 4)]

    made = await LitellmEmbedder("openai/m", url=narrow.url, api_key="k").embed(texts)

    taken = (1, 250, 2, 3, 400, 4)
    assert made == [as_text([float(length), 1.0]) for length in taken]


@pytest.mark.parametrize(("status", "sizes"), [(500, {2}), (400, {2, 1})])
async def test_a_model_that_takes_nothing_is_away(
    narrow: Narrow, status: int, sizes: set[int]
) -> None:
    narrow.status, narrow.most = status, 0
    with pytest.raises(EmbeddingsAway):
        await LitellmEmbedder("openai/m", url=narrow.url, api_key="k").embed(["x" * 100, "y"])
    assert narrow.sizes == sizes


async def test_hashing_is_the_same_every_time_and_likes_the_like() -> None:
    one, same, like, other = await HashingEmbedder().embed(
        ["My dog is called Rex", "My dog is called Rex", "the dog called Rex", "It rains"]
    )

    assert one == same
    assert dimension_of(one) == 384
    assert product(one, like) > product(one, other)


async def test_others_have_the_loop_between_any_two_texts() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await HashingEmbedder().embed(["word " * 200] * 32)
    await end_all([counting])

    assert turns >= 32


def product(one: str, two: str) -> float:
    pairs = zip(one[1:-1].split(","), two[1:-1].split(","), strict=True)
    return sum(float(a) * float(b) for a, b in pairs)


async def test_a_vector_is_brought_to_unit_length() -> None:
    assert as_text([3.0, 4.0]) == "[0.6,0.8]"
    assert as_text([0.0, 0.0]) == "[0,0]"
    assert as_text([float("nan"), 2.0]) == "[0,1]"


@asynccontextmanager
async def answering(
    redis: Redis,
    *embedders: HashingEmbedder | Fickle | MiniLmEmbedder,
    patience: float = PATIENCE,
) -> AsyncIterator[Embeddings]:
    """Embedding processes at work, and somebody who may ask them."""
    asks = Embeddings(redis, patience=patience)
    services = [asyncio.create_task(asks.listen_for_ever())]
    for embedder in embedders:
        process = Answering(redis, embedder)
        services += [
            asyncio.create_task(process.hear_for_ever()),
            asyncio.create_task(process.answer_for_ever()),
        ]

    async def all_hear() -> bool:
        channels = await redis.pubsub_channels(f"{EMBED_CHANNEL}*")
        heard = dict(await redis.pubsub_numsub(EMBED_CHANNEL))
        return asks._channel.encode() in channels and (
            heard.get(EMBED_CHANNEL.encode(), 0) == len(embedders)
        )

    await until(all_hear)
    await within(asks._hearing.wait())  # Redis may know before the one who asked it does
    try:
        yield asks
    finally:
        await end_all(services)


async def test_who_asks_is_answered(redis: Redis) -> None:
    embedder = HashingEmbedder()
    async with answering(redis, embedder) as asks:
        found = await asyncio.gather(*(asks.of(f"question {number}") for number in range(20)))

    expected = await embedder.embed([f"question {number}" for number in range(20)])
    assert [one and one.text for one in found] == expected
    assert {(one.model, one.dimension) for one in found if one} == {("hashing-384", 384)}


async def test_two_processes_answer_a_question_once(redis: Redis) -> None:
    first, second = Fickle(), Fickle()
    async with answering(redis, first, second) as asks:
        assert all([await asks.of(f"question {number}") for number in range(10)])

    assert sorted(first.seen + second.seen) == sorted(f"question {number}" for number in range(10))


async def quickest(asks: Embeddings, *texts: str) -> float:
    """The fewest seconds after which one of these questions had no answer."""
    took = []
    for one in texts:
        began = time.monotonic()
        assert await asks.of(one) is None
        took.append(time.monotonic() - began)
    return min(took)


async def test_without_a_process_nobody_waits_and_no_words_stay(redis: Redis) -> None:
    async with answering(redis) as asks:
        assert await quickest(asks, "a secret", "another", "a third") < 5

    assert await redis.keys("*") == []


@pytest.mark.parametrize(("seconds", "published"), [(60.0, 1), (0.0, 3)])
async def test_where_nobody_listens_nobody_is_asked_for_a_while(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, seconds: float, published: int
) -> None:
    monkeypatch.setattr("shared.embedding.NOBODY_SECONDS", seconds)

    async def told() -> int:
        return int((await redis.info("commandstats")).get("cmdstat_publish", {}).get("calls", 0))

    async with answering(redis) as asks:
        before = await told()
        assert [await asks.of(text) for text in ("one", "two", "three")] == [None] * 3
        assert await told() - before == published


async def test_a_process_that_does_not_answer_is_not_asked_again_at_once(redis: Redis) -> None:
    away = Fickle()
    away.away = True
    async with answering(redis, away, patience=2.0) as asks:
        assert await asks.of("one") is None
        assert await quickest(asks, "two", "three", "four") < 1


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"no json",
        b"[]",
        b"7",
        dumps({"id": "1", "to": "elsewhere", "text": "hi"}),
        dumps({"id": 1, "to": f"{EMBED_CHANNEL}:x", "text": "hi"}),
        dumps({"id": "1", "to": f"{EMBED_CHANNEL}:x", "text": "x" * (TEXT_CHARACTERS + 1)}),
    ],
)
async def test_junk_is_not_answered(redis: Redis, junk: bytes) -> None:
    embedder = Fickle()
    async with answering(redis, embedder) as asks:
        await redis.publish(EMBED_CHANNEL, junk)
        for channel in await redis.pubsub_channels(f"{EMBED_CHANNEL}:*"):
            await redis.publish(channel, junk)
        assert await asks.of("fine") is not None

    assert embedder.seen == ["fine"]


async def test_recalling_with_and_without_the_process(db: Database, redis: Redis) -> None:
    character = await remembered(db, "My dog is called Rex.")
    embedder = HashingEmbedder()
    await Filling(db, embedder, 384).fill()
    recollection = Recollection(db, redis, AgentCache(most=9, most_bytes=10**7, idle_seconds=60))
    cue = Cue(ME, character, "Rex the dog")

    assert (await recollection.recall(cue)).likeness == [None]
    hearing = asyncio.create_task(recollection.hear_for_ever())
    async with answering(redis, embedder):

        async def has_likeness() -> bool:
            return (await recollection.recall(cue)).likeness != [None]

        await until(has_likeness)
    await end_all([hearing])


async def test_the_model_runs_beside_the_loop() -> None:
    pytest.importorskip("onnxruntime")
    embedder = MiniLmEmbedder()
    assert embedder.name == "all-MiniLM-L6-v2-int8"
    await embedder.embed(["warm"])
    most = 0
    for _ in range(3):  # the loop itself may stand still for as long as a run takes
        work = asyncio.ensure_future(embedder.embed(["It was a fine day at the lake. " * 8] * 32))
        switched = 0
        while not work.done():
            await asyncio.sleep(0.001)
            switched += 1
        made = await within(work)
        assert {dimension_of(vector) for vector in made} == {384}
        most = max(most, switched)
        if most > 20:
            break

    assert most > 20


async def test_minilm_in_batches_gives_what_it_gives_alone() -> None:
    pytest.importorskip("onnxruntime")
    embedder = MiniLmEmbedder()
    texts = ["a dog", "My dog is called Rex, and he likes the lake.", "", "x" * 5_000, "rain"]

    together = await embedder.embed(texts)

    for one, vector in zip(texts, together, strict=True):
        assert product(vector, (await embedder.embed([one]))[0]) > 0.97
