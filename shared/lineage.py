"""Watching for a database that was put back, promoted or replaced, and lifting it then.

While the database is not in line, the gate of the process is closed: nothing is read or written.

`python -m shared.lineage` shows where the database stands; with `lift` it has it lifted.
"""

import asyncio
import contextlib
import sys
from dataclasses import asdict
from uuid import UUID

import psycopg
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.command import run_on_database, say
from shared.encoding import dumps, loads
from shared.ending import goes_on
from shared.errors import StoreUnavailable
from shared.redis_pool import redis_said
from shared.store import lineage
from shared.store.database import Database, RawConnection
from shared.store.lineage import Mark, Standing, why_changed
from shared.trouble import Trouble

log = structlog.get_logger(__name__)

EVERY_SECONDS = 1.0
"""How often a process looks. What was lost of less time than that may go unnoticed, if nothing
but the log's length could tell."""

BEAT_SECONDS = 5.0
_RETRY_SECONDS = 1.0
_TURN_SECONDS = 0.2
_REDIS_SECONDS = 1.0


def mark_key(lineage_id: UUID) -> str:
    """Where Redis keeps the newest mark of a database."""
    return f"fireside:lineage:{lineage_id}"


class Lineage:
    """Keeps one process from working on a database that is not in line.

    Its gate is closed until the first look, and from the moment on at which a new connection
    leads to a changed database. Whoever notices first lifts it; all others wait.

    Args:
        every: seconds between two looks; a pooler hides what a new connection would show.
        beat: seconds between two counts, of all processes together.
    """

    def __init__(
        self,
        db: Database,
        redis: Redis,
        *,
        every: float = EVERY_SECONDS,
        beat: float = BEAT_SECONDS,
    ) -> None:
        self._gate = db.gate
        self._db = db.beside_gate()
        self._redis = redis
        self._every = every
        self._beat = beat
        self._last: Standing | None = None
        self._suspicious = asyncio.Event()
        self._looked = asyncio.Event()
        self._warned = False
        self._unmarked = Trouble(log, "no mark of the database to compare with")
        self._gate.closed = "the database was not looked at yet"
        self._gate.inspect = self._inspect

    async def watch_for_ever(self) -> None:
        """Look again and again until cancelled."""
        trouble = Trouble(log, "lineage not checked")
        while goes_on():
            pause = _RETRY_SECONDS
            with trouble.catch():
                await self.look()
                pause = self._every
            self._looked.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._suspicious.wait()

    async def looked(self, seconds: float = 5.0) -> None:
        """Wait until the first look is over, whatever it found, but not for ever."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._looked.wait()

    async def look(self) -> None:
        """Look once, lift the database where that has to be, and open the gate.

        It stays closed where a new connection has meanwhile found something; look again then.

        Raises:
            StoreUnavailable: Postgres is away, a standby, or has an older schema.
        """
        self._suspicious.clear()
        last = self._last
        known = last or await lineage.look(self._db)
        told, mark = await self._read_mark(known.id)
        # In this order: what was marked before this look can't be newer than what it finds.
        standing = await lineage.look(self._db)
        if standing.id != known.id:
            self._last = None  # another database altogether: nothing of the one before counts
            self._suspicious.set()
            return
        self._warn_of_unknown(standing)
        seen = (None if last is None else last.mark, mark)
        reason = why_changed(standing, *seen)
        if reason is not None or standing.lifting:
            self._gate.closed = "the database is being brought in line after a restore"
            standing = await self._bring_in_line(standing, reason, *seen)
        if told and await lineage.beat(self._db, standing, every=self._beat):
            standing = await lineage.look(self._db)
        if told and standing.mark != mark:
            await self._note(standing.mark)
        self._last = standing
        if not self._suspicious.is_set():
            self._gate.closed = None

    async def _bring_in_line(
        self, standing: Standing, reason: str | None, *seen: Mark | None
    ) -> Standing:
        if reason is not None and not standing.lifting:
            generation = await lineage.begin_lift(self._db, standing, *seen)
            if generation is not None:
                log.error("the database changed", reason=reason, generation=generation)
        lifted = 0
        while (standing := await lineage.look(self._db)).lifting:
            count = await lineage.lift(self._db)
            if count is None:
                log.warning("another process brings the database in line")
                await asyncio.sleep(_TURN_SECONDS)
            lifted += count or 0
        if why_changed(standing) is not None:
            raise StoreUnavailable("the database changed again")
        log.error("the database is in line again", generation=standing.generation, lifted=lifted)
        return standing

    async def _inspect(self, connection: RawConnection) -> None:
        """Close the gate where a new connection leads to a database that has changed."""
        last = self._last
        if last is None:
            return  # the gate is closed still
        try:
            now = await lineage.look_at(connection)
        except (psycopg.ProgrammingError, StoreUnavailable) as error:
            self._close(str(error))
            return
        if now is None or now.id != last.id:
            self._close("the database is another one")
        elif now.lifting or why_changed(now, last.mark) is not None:
            self._close("the database has changed")

    def _close(self, reason: str) -> None:
        self._gate.closed = reason
        self._suspicious.set()

    def _warn_of_unknown(self, standing: Standing) -> None:
        if not self._warned and (standing.system == "unknown" or standing.timeline == 0):
            self._warned = True
            log.warning(
                "the server does not tell its system identifier or timeline to this user; "
                "a restore is then noticed by the mark in Redis alone",
                system=standing.system,
                timeline=standing.timeline,
            )

    async def _read_mark(self, lineage_id: UUID) -> tuple[bool, Mark | None]:
        """Whether Redis answered, and the mark that it keeps."""
        try:
            async with asyncio.timeout(_REDIS_SECONDS):
                kept = await self._redis.get(mark_key(lineage_id))
        except (RedisError, OSError) as error:
            self._unmarked.goes_on(redis_said(error))
            return False, None
        self._unmarked.is_over()
        return True, None if kept is None else _mark(kept)

    async def _note(self, mark: Mark) -> None:
        try:
            async with asyncio.timeout(_REDIS_SECONDS):
                await self._redis.set(mark_key(mark.id), dumps(asdict(mark)))
        except (RedisError, OSError) as error:
            log.warning("the database's mark was not noted", error=redis_said(error))


def _mark(kept: bytes | str) -> Mark | None:
    """The mark in what Redis kept; None where somebody else has written there."""
    try:
        match loads(kept):
            case {
                "id": str(lineage_id),
                "generation": int(generation),
                "beat": int(beat),
                "system": str(system),
                "timeline": int(timeline),
                "position": int() | None as position,
            }:
                return Mark(UUID(lineage_id), generation, beat, system, timeline, position)
    except ValueError:
        pass
    log.warning("the database's mark can't be read")
    return None


async def _show(db: Database, *, lift: bool) -> None:
    standing = await lineage.look(db)
    if lift:
        await lineage.begin_lift(db, standing)
        while (standing := await lineage.look(db)).lifting:
            if await lineage.lift(db) is None:
                await asyncio.sleep(_TURN_SECONDS)
    for name, value in asdict(standing).items():
        say(f"{name} {value}")


def main() -> int:
    """Run the command; one clear line on failure."""
    arguments = sys.argv[1:]
    if arguments not in ([], ["lift"]):
        sys.stderr.write("usage: python -m shared.lineage [lift]\n")
        return 2
    return run_on_database(lambda _, db: _show(db, lift=bool(arguments)))


if __name__ == "__main__":
    sys.exit(main())
