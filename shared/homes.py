"""Homes: where a session is hinted at first, for that worker may have the session in memory.

Each worker that has room says so in Redis several times a second. A session's home is the one of
these workers that a hash of both names chooses, so that nobody need keep who had which session: as
long as the same workers are there it stays the same, and when one comes or goes, only the sessions
of that one move. Losing Redis, or a hint on this way, loses nothing: the common queue and the sweep
are there for every session.
"""

from collections.abc import Sequence
from typing import TypeAlias
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from shared.levels import as_level

ANNOUNCE_SECONDS = 0.15
"""How often a worker says that it is there."""

GONE_SECONDS = 0.5
"""Who has not said so for this long is passed over; what such a worker was told is told again."""

Hint: TypeAlias = tuple[UUID, int]
"""A session, and the level of its hint."""

# Redis's own clock: workers of several machines need not agree about the time.
_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

_ANNOUNCE = f"""{_NOW}
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
return redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. now)
"""

# The highest of the hashes of session and worker wins: "rendezvous hashing".
_SEND = f"""{_NOW}
local workers = redis.call('ZRANGEBYSCORE', KEYS[1], now, '+inf')
local unheard = {{}}
for place, hint in ipairs(ARGV) do
    local session, highest, home = string.sub(hint, 3), '', nil
    for _, worker in ipairs(workers) do
        local hash = redis.sha1hex(worker .. session)
        if hash > highest then
            highest, home = hash, worker
        end
    end
    if home == nil or redis.call('PUBLISH', KEYS[1] .. ':' .. home, hint) == 0 then
        unheard[#unheard + 1] = place - 1
    end
end
return unheard
"""


class Homes:
    """The workers of one hint queue that say they have room.

    Args:
        queue: the queue's name.
    """

    def __init__(self, redis: Redis, queue: str) -> None:
        self._redis = redis
        self._key = f"fireside:homes:{queue}"
        self._announce = redis.register_script(_ANNOUNCE)
        self._send = redis.register_script(_SEND)

    async def send(self, hints: Sequence[Hint]) -> Sequence[Hint]:
        """Hint at the homes of these sessions, in one round trip; gives back what nobody heard.

        Raises what redis-py raises.
        """
        if not hints:
            return ()
        try:
            unheard = await self._send([self._key], [f"{level} {one}" for one, level in hints])
        except ResponseError:
            return hints  # a server that runs no scripts
        return [hints[place] for place in unheard]

    async def announce(self, worker: str) -> bool:
        """Say that a worker is there and has room; whether another one was found to be silent.

        Only the first who could find it does. Raises what redis-py raises.
        """
        gone = await self._announce([self._key], [worker, int(GONE_SECONDS * 1000)])
        return int(gone) > 0

    async def leave(self, worker: str) -> None:
        """Say that it has none; raises what redis-py raises."""
        await self._redis.zrem(self._key, worker)

    def channel(self, worker: str) -> str:
        """The Redis channel on which a worker hears the hints for it."""
        return f"{self._key}:{worker}"


def heard(data: object) -> Hint | None:
    """The hint that a worker heard; None where it is none, for anyone may publish."""
    if not isinstance(data, bytes):
        return None
    level, _, session = data.decode(errors="replace").partition(" ")
    try:
        return UUID(session), as_level(int(level))
    except ValueError:
        return None
