"""`python -m worker.embed`: the process that makes vectors, of memories and of what is asked.

One for a database is enough; more share the questions. A model takes 200 MB and whole milliseconds
of a processor, so it is in none of the workers. `--once` gives vectors to the memories that have
none and ends, `--again` to those that have another model's. `--words` makes no vectors: it has
memories found by the words that this release reads in them.
"""

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from agent_core.recall import date_of, told
from shared.command import exit_code_of, say
from shared.embedding import EMBED_CHANNEL, TEXT_CHARACTERS
from shared.encoding import dumps, loads
from shared.ending import end_all, goes_on
from shared.errors import FiresideError
from shared.hearing import hear_for_ever
from shared.logs import set_up_logs
from shared.redis_pool import connect_redis, redis_said
from shared.settings import Settings, get_settings, warn_of_unknown_variables
from shared.store import rewording, vectors
from shared.store.database import Database
from shared.trouble import Trouble
from worker.embedders import (
    Embedder,
    EmbeddingsAway,
    EmbeddingsChanged,
    dimension_of,
    embedder_of,
)

log = structlog.get_logger(__name__)

BATCH = 32
"""Memories of one round. Questions wait for the run of a round that is under way."""

WORDS_BATCH = 500
"""Memories whose words are read anew in one transaction."""

IDLE_SECONDS = 0.5
AWAY_SECONDS = 5.0
"""How long nothing is looked for, after nothing was found and after a failure."""

MOST_WAITING = 1_000
"""Questions that wait; further ones are not answered, and their askers do without."""

_FIRST, _LAST = UUID(int=0), UUID(int=2**128 - 1)


class Filling:
    """Gives vectors to memories.

    Args:
        dimension: how many numbers the model's vectors have.

    `busy` is held while a batch is under way: whoever holds it keeps the next from beginning.
    """

    def __init__(self, db: Database, embedder: Embedder, dimension: int) -> None:
        self.busy = asyncio.Lock()
        self._db = db
        self._embedder = embedder
        self._dimension = dimension

    async def fill(self) -> int:
        """Give vectors to all memories that have none; how many there were."""
        count, after = 0, uuid4()
        for end in (_LAST, after):
            while found := await vectors.missing(self._db, after=after, limit=BATCH):
                await self._put(found)
                count += len(found)
                after = found[-1].id
                if after > end:
                    break
            after = _FIRST
        return count

    async def fill_for_ever(self) -> None:
        """Fill until cancelled; a model or a database that is away is tried again.

        The graph is built beside it: that may wait for hours, and vectors are of use without it.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._index())
            trouble = Trouble(log, "memories wait for their vectors")
            while goes_on():
                pause = AWAY_SECONDS
                with trouble.catch():
                    pause = 0.0 if await self.fill() else IDLE_SECONDS
                await asyncio.sleep(pause)

    async def _index(self) -> None:
        """Have the graph built; a build that was broken off is begun anew."""
        trouble = Trouble(log, "the graph of vectors is not built")
        while goes_on():
            with trouble.catch():
                await vectors.index(self._db, self._dimension)
                return
            await asyncio.sleep(AWAY_SECONDS)

    async def again(self) -> int:
        """Give vectors to all memories that have others; how many there were."""
        await vectors.index(self._db, self._dimension)
        count, after = 0, _FIRST
        while found := await vectors.stale(
            self._db, self._embedder.name, self._dimension, after=after, limit=BATCH
        ):
            await self._put(found)
            count += len(found)
            after = found[-1].id
        return count

    async def _put(self, memories: Sequence[vectors.Unembedded]) -> None:
        async with self.busy:
            await self._make(memories)

    async def _make(self, memories: Sequence[vectors.Unembedded]) -> None:
        made = await self._embedder.embed([text_of(memory) for memory in memories])
        if any(dimension_of(vector) != self._dimension for vector in made):
            raise EmbeddingsChanged(
                f"{self._embedder.name} gave {dimension_of(made[0])} numbers, before it gave "
                f"{self._dimension}"
            )
        await vectors.put(self._db, self._embedder.name, memories, made)
        for user_id, character_id in {(one.user_id, one.character_id) for one in memories}:
            if await vectors.crowd(self._db, user_id, character_id):
                log.info("a character has many memories", character_id=str(character_id))


def text_of(memory: vectors.Unembedded) -> str:
    """The words that a memory's vector is made of: with who said it and when, in UTC."""
    return told(memory.text, memory.speaker, date_of(memory.said_at))


class Answering:
    """Answers workers that ask for the vector of a cue; `busy` as with `Filling`."""

    def __init__(self, redis: Redis, embedder: Embedder) -> None:
        self.busy = asyncio.Lock()
        self._redis = redis
        self._embedder = embedder
        self._asked: asyncio.Queue[dict[str, Any]] = asyncio.Queue(MOST_WAITING)

    async def hear_for_ever(self) -> None:
        """Take questions; a Redis that is away is tried again."""
        await hear_for_ever(
            self._redis, {EMBED_CHANNEL: self._take}, unheard="questions are not heard"
        )

    def _take(self, message: Mapping[str, Any]) -> None:
        """Take a question. Anyone may publish, so it may be none."""
        try:
            asked = loads(message["data"])
            wellformed = all(isinstance(asked[name], str) for name in ("id", "to", "text"))
        except (ValueError, TypeError, KeyError):
            return
        ours = wellformed and asked["to"].startswith(f"{EMBED_CHANNEL}:")
        if ours and len(asked["text"]) <= TEXT_CHARACTERS and not self._asked.full():
            self._asked.put_nowait(asked)

    async def answer_for_ever(self) -> None:
        """Answer until cancelled."""
        while True:
            asked = [await self._asked.get()]
            while len(asked) < 8 and not self._asked.empty():
                asked.append(self._asked.get_nowait())
            try:
                async with self.busy:
                    mine = [one for one in asked if await self._is_mine(one["id"])]
                    if mine:
                        await self._answer(mine)
            except (FiresideError, RedisError, OSError) as error:
                log.warning("questions are left unanswered", error=redis_said(error))

    async def _is_mine(self, key: str) -> bool:
        """Whether no other embedding process has taken this question."""
        return bool(await self._redis.set(f"{EMBED_CHANNEL}:taken:{key}", 1, nx=True, ex=5))

    async def _answer(self, asked: Sequence[Mapping[str, str]]) -> None:
        made = await self._embedder.embed([one["text"] for one in asked])
        for one, vector in zip(asked, made, strict=True):
            answer = {
                "id": one["id"],
                "model": self._embedder.name,
                "dimension": dimension_of(vector),
                "vector": vector,
            }
            await self._redis.publish(one["to"], dumps(answer))


async def check(db: Database, embedder: Embedder, *, again: bool = False) -> int:
    """How many numbers the model's vectors have.

    Raises:
        EmbeddingsAway: it gives none.
        EmbeddingsChanged: memories have vectors that these can't be compared with.
    """
    dimension = dimension_of((await embedder.embed(["a first word"]))[0])
    others = [
        one for one in await vectors.sample(db) if one != vectors.Found(embedder.name, dimension)
    ]
    if others and not again:
        raise EmbeddingsChanged(
            f"memories have vectors of {others[0].model} with {others[0].dimension} numbers, "
            f"FIRESIDE_EMBEDDINGS gives {embedder.name} with {dimension}: "
            "run python -m worker.embed --again"
        )
    return dimension


async def serve(settings: Settings, embedder: Embedder) -> None:
    """Fill and answer until SIGTERM; a model that is away at the start is waited for.

    What is under way then is finished within the time to drain, and nothing else begun.
    """
    db, redis = Database.from_settings(settings), connect_redis(settings)
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    ending = asyncio.create_task(told.wait())
    services: list[asyncio.Task[Any]] = [asyncio.create_task(_checked(db, embedder))]
    try:
        await asyncio.wait([ending, *services], return_when=asyncio.FIRST_COMPLETED)
        if told.is_set():
            return
        filling = Filling(db, embedder, services.pop().result())
        answering = Answering(redis, embedder)
        services += [
            asyncio.create_task(service)
            for service in (
                filling.fill_for_ever(),
                answering.hear_for_ever(),
                answering.answer_for_ever(),
            )
        ]
        log.info("making vectors", model=embedder.name)
        await asyncio.wait([ending, *services], return_when=asyncio.FIRST_COMPLETED)
        for service in services:
            if service.done():
                service.result()
        log.info("ending when the batch is done")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settings.drain_seconds):
                await asyncio.gather(filling.busy.acquire(), answering.busy.acquire())
    finally:
        await end_all([ending, *services])
        await redis.aclose()
        await db.close()


async def _checked(db: Database, embedder: Embedder) -> int:
    await db.check_schema()
    while True:
        try:
            return await check(db, embedder)
        except EmbeddingsAway as error:
            log.warning("memories wait for their vectors", error=str(error))
            await asyncio.sleep(AWAY_SECONDS)


async def catch_up(settings: Settings, embedder: Embedder, *, again: bool) -> int:
    """Give vectors to memories without one, or (`again`) with another's; how many there were."""
    async with Database.opened(settings) as db:
        filling = Filling(db, embedder, await check(db, embedder, again=again))
        count = await filling.again() if again else 0
        return count + await filling.fill()


async def read_anew(settings: Settings) -> int:
    """Read the words of all memories anew; how many had others."""
    async with Database.opened(settings) as db:
        count, after = 0, _FIRST
        while found := await rewording.page(db, after=after, limit=WORDS_BATCH):
            count += await rewording.read_anew(db, found)
            after = found[-1].id
        return count


def _work(asked: argparse.Namespace) -> None:
    settings = get_settings()
    set_up_logs(settings)
    warn_of_unknown_variables()
    if asked.words:
        say(f"{asyncio.run(read_anew(settings))} memories have other words now")
        return
    embedder = embedder_of(settings)
    if asked.once or asked.again:
        count = asyncio.run(catch_up(settings, embedder, again=asked.again))
        say(f"{count} memories embedded by {embedder.name}")
        return
    with contextlib.suppress(KeyboardInterrupt):  # how one ends a server is no failure
        asyncio.run(serve(settings, embedder))


def main() -> int:
    """Run the command; one clear line on failure."""
    parser = argparse.ArgumentParser(prog="python -m worker.embed", description=__doc__)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--once", action="store_true", help="embed what has no vector, and end")
    how.add_argument("--again", action="store_true", help="embed anew what has another's vector")
    how.add_argument("--words", action="store_true", help="read the words anew, and end")
    asked = parser.parse_args()
    # As a container's first process it would not hear of SIGTERM by itself.
    signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(128 + signum))
    return exit_code_of(lambda: _work(asked))


if __name__ == "__main__":
    sys.exit(main())
