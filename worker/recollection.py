"""Finding memories: the vector of a cue, if it can be had, and what the store has to that."""

import asyncio
from uuid import UUID

import structlog
from redis.asyncio import Redis

from shared.embedding import Embeddings
from shared.errors import FiresideError
from shared.memories import MemoryMatches
from shared.store import vectors
from shared.store.database import Database
from shared.store.recall import Cue, recall
from worker.agent_cache import AgentCache

log = structlog.get_logger(__name__)


class Recollection:
    """What one worker process recalls with. `hear_for_ever` must run, or words alone find it, and
    `tend_for_ever`, or of characters with very many memories only the newest are found."""

    def __init__(self, db: Database, redis: Redis, cache: AgentCache) -> None:
        self._db = db
        self._cache = cache
        self._embeddings = Embeddings(redis)
        self._grown: dict[UUID, str] = {}
        self._has_grown = asyncio.Event()

    async def recall(self, cue: Cue) -> MemoryMatches:
        """The memories that may bear on a cue; raises StoreUnavailable."""
        vector = await self._embeddings.of(cue.text)
        held = self._cache.take_memories(cue.character_id)
        recalled = await recall(self._db, cue, vector, held)
        self._cache.keep_memories(cue.character_id, held)
        if recalled.grown:
            self._grown[cue.character_id] = cue.user_id
            self._has_grown.set()
        return recalled.matches

    async def hear_for_ever(self) -> None:
        """Hear the embedding process until cancelled."""
        await self._embeddings.listen_for_ever()

    async def tend_for_ever(self) -> None:
        """See to the characters whose recall found very many memories, until cancelled.

        Mostly the embedding process has done so; there may be none.
        """
        while True:
            await self._has_grown.wait()
            self._has_grown.clear()
            for character_id, user_id in list(self._grown.items()):
                try:
                    await vectors.tend(self._db, user_id, character_id)
                except FiresideError as error:  # the next recall tells of it again
                    log.warning("a character is left with many memories", error=str(error))
                del self._grown[character_id]
