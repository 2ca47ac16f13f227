"""Where words are found: in any row of any table, in any key or value of Redis."""

from collections.abc import Iterable
from typing import Any

from redis.asyncio import Redis
from sqlalchemy import text

from shared.store.database import Database

_TABLES = text(
    """
    select table_name from information_schema.tables
    where table_schema = 'public' and table_type = 'BASE TABLE'
    """
)


async def tables_with(db: Database, words: Iterable[object]) -> set[str]:
    """The tables that have a row in which one of the words stands, as text of its JSON."""
    parameters = {"words": [f"%{word}%" for word in words]}
    found = set()
    for (table,) in await db.rows(_TABLES):
        row = await db.row(
            text(f"select 1 from {table} t where to_jsonb(t)::text like any(:words) limit 1"),
            parameters,
        )
        if row is not None:
            found.add(str(table))
    return found


async def keys_with(redis: Redis, words: Iterable[object]) -> set[bytes]:
    """The keys of Redis with one of the words in their names or in what they hold."""
    looked_for = [str(word).encode() for word in words]
    found = set()
    async for key in redis.scan_iter(count=1000):
        held = key + await _content(redis, key)
        if any(word in held for word in looked_for):
            found.add(key)
    return found


async def _content(redis: Redis, key: bytes) -> bytes:
    held: Any
    match await redis.type(key):
        case b"string":
            held = await redis.get(key)
        case b"list":
            held = await redis.lrange(key, 0, -1)
        case b"hash":
            held = await redis.hgetall(key)
        case b"set":
            held = await redis.smembers(key)
        case b"zset":
            held = await redis.zrange(key, 0, -1)
        case _:
            held = b""
    return held if isinstance(held, bytes) else repr(held).encode()
