"""Finding memories: the vector of a cue, if it can be had, and what the store has to that."""

from collections.abc import Sequence

from redis.asyncio import Redis

from shared.embedding import Embeddings
from shared.memories import Standing
from shared.store import memories
from shared.store.database import Database
from shared.store.memories import Cue


class Recollection:
    """What one worker process recalls with. `hear_for_ever` must run, or words alone find it."""

    def __init__(self, db: Database, redis: Redis) -> None:
        self._db = db
        self._embeddings = Embeddings(redis)

    async def recall(self, cue: Cue) -> Sequence[Standing]:
        """The memories that may bear on a cue; raises StoreUnavailable."""
        return await memories.recall(self._db, cue, await self._embeddings.of(cue.text))

    async def hear_for_ever(self) -> None:
        """Hear the embedding process until cancelled."""
        await self._embeddings.listen_for_ever()
