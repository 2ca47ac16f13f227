"""What recall takes where there are many memories: `python -m bench.memory_scale [--json]`.

A million memories of 10,000 users in one database, written in the order of time, so that those of
one user lie far apart; a few users more with ten and with a thousand, and one with a hundred
thousand. Words follow Zipf's law, vectors are drawn around the middles of topics. Measured are the
statements and the ranking, as a worker makes them, by so many recalls at once as there are
processors: their times, and the CPU of a recall on both sides. Pings tell what the machine adds to
each time. At last a loop embeds without a pause: how late its timer comes at the worst, and how
much CPU its thread takes in one go.

With `--beside-fleet TURNS` all recalls are made once more while a gateway and a worker answer so
many turns a second over the same Postgres, which then is a durable one; `beside_fleet` has their
times and what the fleet did meanwhile.
"""

import argparse
import asyncio
import json
import math
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from pydantic import SecretStr
from sqlalchemy import text

from bench.beside import fleet_playing
from bench.memory import choose_embedder, measured
from bench.processes import cpu_seconds
from shared.garbage import steady_garbage
from shared.settings import Settings
from shared.store import vectors
from shared.store.database import Database
from shared.store.recall import Cue, Vector, recall
from worker.context import MOST_RECALLED
from worker.embedders import Embedder, as_text
from worker.memories import best_of
from worker.minilm import EmbeddingsMissingError

DIMENSION = 384
WORDS = 20_000
TOPICS = 200
POOL = 4_000
"""How many different texts and vectors there are; each is used many times."""

MODEL = "bench"
CROWDED = 0
"""The number of the user who has many."""

FEW, MANY = (200, 10), (50, 1_000)
"""Users beside the usual ones, and how many memories each has."""

MOST_TURNS = 1_000
"""A second, of the fleet beside."""

BATCH = 32
"""Texts of one run of the embedding model, as in its process."""

EMBED_SECONDS = 5.0
TICK_SECONDS = 0.005

_STAGES = """
    create temp table pool (no integer primary key, text text, words tsvector, vector halfvec);
    insert into characters (id, user_id, agent, name)
        select lpad(to_hex(u), 32, '0')::uuid, 'user-' || u, 'companion', 'Ember'
        from generate_series(0, %(users)s) u;
    insert into sessions (id, user_id, agent, character_id, head_message, next_message)
        select ('1' || lpad(to_hex(u), 31, '0'))::uuid, 'user-' || u, 'companion',
            lpad(to_hex(u), 32, '0')::uuid, 1000000, 1000001
        from generate_series(0, %(users)s) u
"""

_FILL = """
    insert into memories (user_id, character_id, session_id, kind, no, sources, role, speaker,
        text, words, said_at, valid_from, vector, model)
    select 'user-' || u, lpad(to_hex(u), 32, '0')::uuid,
        ('1' || lpad(to_hex(u), 31, '0'))::uuid, 'turn', n, array[n], 'user', 'Ada', p.text,
        p.words, t.said, t.said, p.vector, 'bench'
    from generate_series(%(first)s::bigint, %(last)s) n
        cross join generate_series(%(from)s::bigint, %(to)s) u
        join pool p on p.no = abs(hashint8(n * 1000003 + u)::bigint) %% %(pool)s
        cross join lateral (
            select timestamptz '2026-01-01 00:00Z' + make_interval(mins => n::integer) as said) t
    order by n, u
"""


class Words:
    """Texts and vectors by chance, the same ones each time."""

    def __init__(self) -> None:
        self._chance = random.Random(7)
        self._shares = [1 / (rank + 10) for rank in range(WORDS)]
        self._middles = [self._direction() for _ in range(TOPICS)]

    def words(self, words: int) -> str:
        drawn = self._chance.choices(range(WORDS), self._shares, k=words)
        return " ".join(f"{_syllables(word)}" for word in drawn)

    def vector(self) -> str:
        middle = self._chance.choice(self._middles)
        return as_text(
            [one + 0.7 * two for one, two in zip(middle, self._direction(), strict=True)]
        )

    def _direction(self) -> list[float]:
        numbers = [self._chance.gauss(0, 1) for _ in range(DIMENSION)]
        length = math.sqrt(sum(number * number for number in numbers))
        return [number / length for number in numbers]


def _syllables(word: int) -> str:
    """A word for a number, such as no stemmer changes and no list leaves out."""
    text = ""
    for _ in range(4):
        word, sign = divmod(word, 12)
        text += "bdfgklmnprtv"[sign] + "aou"[sign % 3]
    return text


def build(url: str, users: int, each: int, crowd: int) -> None:
    """Write everything; the pool goes in by COPY, and is spread inside the database."""
    words = Words()
    last = _groups(users, each)[-1][0].stop - 1
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("set synchronous_commit = off")
        for stage in _STAGES.split(";"):
            connection.execute(stage.replace("%(users)s", str(last)).encode())
        with connection.cursor().copy("copy pool (no, text, words, vector) from stdin") as copy:
            for no in range(POOL):
                said = words.words(random.Random(no).randint(6, 30))
                copy.write_row((no, said, " ".join(sorted(set(said.split()))), words.vector()))
        for of, count in _groups(users, each):
            for first in range(1, count + 1, 10):
                spread = {"first": first, "last": min(count, first + 9), "pool": POOL}
                connection.execute(_FILL, spread | {"from": of.start, "to": of.stop - 1})
        lone = {"first": 1, "last": crowd, "from": CROWDED, "to": CROWDED, "pool": POOL}
        connection.execute(_FILL, lone)
        connection.execute("vacuum analyze memories")


def _groups(users: int, each: int) -> list[tuple[range, int]]:
    """The numbers of users who have as many memories as one another, and how many; the usual ones
    first."""
    found, first = [], 1
    for count, memories_of in ((users, each), FEW, MANY):
        found.append((range(first, first + count), memories_of))
        first += count
    return found


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of each recall, and the CPU of one in milliseconds: of Postgres (where that is on
    this machine) and of this process, which does a worker's part."""

    seconds: list[float]
    postgres: float
    worker: float

    def as_json(self) -> dict[str, Any]:
        cpu = {"postgres": round(self.postgres, 2), "worker": round(self.worker, 2)}
        return {"ms": _milliseconds(self.seconds), "cpu_ms": cpu}


async def recalls(db: Database, users: Sequence[int], count: int) -> Spent:
    """So many recalls of users by chance, two at once."""
    words, chance, taken = Words(), random.Random(11), []
    asked = [
        (chance.choice(users), f"{words.words(chance.randint(4, 12))}?", words.vector())
        for _ in range(count)
    ]

    async def some() -> None:
        while asked:
            user, said, numbers = asked.pop()
            cue = Cue(f"user-{user}", UUID(f"{user:032x}"), said)
            began = time.perf_counter()
            found = (await recall(db, cue, Vector(MODEL, DIMENSION, numbers))).matches
            best_of(found, cue.text, MOST_RECALLED)
            taken.append(time.perf_counter() - began)

    servers = [row.pid for row in await db.rows(_SERVERS)]
    postgres, worker = cpu_seconds(servers), time.process_time()
    await asyncio.gather(some(), some())
    worker, postgres = time.process_time() - worker, cpu_seconds(servers) - postgres
    return Spent(taken, postgres * 1000 / count, worker * 1000 / count)


_SERVERS = text("select pid from pg_stat_activity where datname = current_database()")


async def pings(db: Database, count: int) -> list[float]:
    """Seconds of a statement that does nothing, made as the recalls are: what the machine costs."""
    taken = []

    async def some() -> None:
        for _ in range(count // 2):
            began = time.perf_counter()
            await db.row(text("select 1"))
            taken.append(time.perf_counter() - began)

    await asyncio.gather(some(), some())
    return taken


def _milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        name: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000, 2)
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    }


async def stalls(embedder: Embedder, texts: Sequence[str], seconds: float) -> dict[str, Any]:
    """The worst of a loop that embeds texts for so long, and beside it of one that does nothing."""
    result: dict[str, Any] = {"model": embedder.name}
    await embedder.embed(texts[:1])
    for name in ("embedding", "idle"):
        end = time.perf_counter() + seconds
        watch = asyncio.create_task(_worst_until(end))
        done = 0
        while name == "embedding" and time.perf_counter() < end:
            at = done % (len(texts) - BATCH)
            done += len(await embedder.embed(texts[at : at + BATCH]))
        late, busy = await watch
        result[name] = {"late_ms": round(late * 1000, 2), "busy_ms": round(busy * 1000, 2)}
        if done:
            result["texts_a_second"] = round(done / seconds)
    return result


async def _worst_until(end: float) -> tuple[float, float]:
    """How late this loop's timer came at the worst, and the most CPU its thread took in one go."""
    late = busy = 0.0
    while (began := time.perf_counter()) < end:
        used = time.thread_time()
        await asyncio.sleep(TICK_SECONDS)
        late = max(late, time.perf_counter() - began - TICK_SECONDS)
        busy = max(busy, time.thread_time() - used)
    return late, busy


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many users with how many memories each, those of one user more, how many recalls; `turns`
    a second of a fleet beside them, if that is not 0."""

    users: int
    each: int
    crowd: int
    recalls: int
    turns: float = 0.0


async def run(url: str, sizes: Sizes, embedder: Embedder) -> dict[str, Any]:
    """Build, warm up, measure."""
    began = time.perf_counter()
    build(url, sizes.users, sizes.each, sizes.crowd)
    result: dict[str, Any] = {
        "memories": sizes.users * sizes.each,
        "users": sizes.users,
        "build_seconds": round(time.perf_counter() - began, 1),
    }
    steady_garbage()  # as each worker does: else a full collection is in the slowest recalls
    db = Database.from_settings(Settings(database_url=SecretStr(url), database_pool=2))
    count = sizes.recalls
    try:
        (usual, _), *others = _groups(sizes.users, sizes.each)
        await recalls(db, usual, 40)
        result |= (await recalls(db, usual, count)).as_json()
        result["ping_ms"] = _milliseconds(await pings(db, count))
        for of, number in others:
            spent = await recalls(db, of, max(40, count // 5))
            result[f"of {number:,} memories"] = spent.as_json()
        if sizes.crowd:
            result["crowded"] = await _crowded(db, sizes.crowd, max(40, count // 10))
        if sizes.turns:
            result["beside_fleet"] = await _beside_fleet(db, url, sizes)
    finally:
        await db.close()
    words = Words()
    result["loop"] = await stalls(embedder, [words.words(20) for _ in range(400)], EMBED_SECONDS)
    return result


async def _beside_fleet(db: Database, url: str, sizes: Sizes) -> dict[str, Any]:
    """The times of the same recalls while others play. The CPU of Postgres is not only theirs, so
    it is left out."""
    result: dict[str, Any] = {}
    (usual, _), *others = _groups(sizes.users, sizes.each)
    with fleet_playing(url, sizes.turns) as players:
        result["ms"] = _milliseconds((await recalls(db, usual, sizes.recalls)).seconds)
        result["ping_ms"] = _milliseconds(await pings(db, sizes.recalls))
        for of, number in others:
            spent = await recalls(db, of, max(40, sizes.recalls // 5))
            result[f"of {number:,} memories"] = {"ms": _milliseconds(spent.seconds)}
        if sizes.crowd:
            spent = await recalls(db, [CROWDED], max(40, sizes.recalls // 10))
            result["crowded"] = {"ms": _milliseconds(spent.seconds)}
    return result | {"asked_turns_s": sizes.turns, **players.told}


async def _crowded(db: Database, crowd: int, count: int) -> dict[str, Any]:
    began = time.perf_counter()
    await vectors.crowd(db, f"user-{CROWDED}", UUID(int=CROWDED))
    seconds = round(time.perf_counter() - began, 1)
    await recalls(db, [CROWDED], 10)
    taken = await recalls(db, [CROWDED], count)
    return {"memories": crowd, "index_seconds": seconds} | taken.as_json()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.memory_scale", description=__doc__)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--each", type=int, default=100, help="memories of each user")
    parser.add_argument("--crowd", type=int, default=100_000, help="memories of one user more")
    parser.add_argument("--recalls", type=int, default=1_000)
    parser.add_argument(
        "--beside-fleet",
        type=float,
        default=0.0,
        metavar="TURNS",
        help="once more while a fleet answers so many turns a second over the same Postgres",
    )
    parser.add_argument("--url", help="a migrated, empty database; else one of its own")
    parser.add_argument("--embeddings", choices=["best", "minilm", "hashing"], default="best")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--out", type=Path, help="a file for the same")
    asked = parser.parse_args()
    if not 0 <= asked.beside_fleet <= MOST_TURNS:
        parser.error(f"--beside-fleet: turns a second, {MOST_TURNS} at the most")
    try:
        embedder = choose_embedder(asked.embeddings)
    except EmbeddingsMissingError as error:
        print(f"bench.memory_scale: {error}", file=sys.stderr)
        return 1
    sizes = Sizes(asked.users, asked.each, asked.crowd, asked.recalls, asked.beside_fleet)
    if asked.url:
        result = asyncio.run(run(asked.url, sizes, embedder))
    else:
        durable = asked.beside_fleet > 0
        result = measured(lambda url: run(url, sizes, embedder), durable=durable)
    for name, figure in result.items():
        print(f"{name:18} {figure}")
    if asked.json:
        print(json.dumps(result))
    if asked.out is not None:
        asked.out.write_text(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
