"""Streams that were opened with an API key, which end soon after the key was taken back, or with a
JWT, which end when it runs out."""

import asyncio
import time
from collections.abc import Callable

import structlog

from api.identity import Caller
from shared.store import api_keys
from shared.store.database import Database
from shared.trouble import Trouble

log = structlog.get_logger(__name__)

ASK_SECONDS = 5.0
"""How often it is asked whether the keys are still good; so much longer a stream may go on."""


class KeyedStreams:
    """The open streams of this process by the API key that each was opened with."""

    def __init__(self) -> None:
        self._by_key: dict[str, set[Callable[[], None]]] = {}

    def one(self, caller: Caller, on_gone: Callable[[], None]) -> "Keyed":
        """A stream, kept by a `with` for as long as it is open.

        Args:
            caller: who opened it; without a key it is not kept.
            on_gone: ends the stream; it is called in each round that finds it open still, and
                once where a token runs out.
        """
        return Keyed(self, caller, on_gone)

    def add(self, key_id: str, on_gone: Callable[[], None]) -> None:
        """Keep a stream."""
        self._by_key.setdefault(key_id, set()).add(on_gone)

    def remove(self, key_id: str, on_gone: Callable[[], None]) -> None:
        """Forget a stream."""
        streams = self._by_key[key_id]
        streams.discard(on_gone)
        if not streams:
            del self._by_key[key_id]

    async def watch_for_ever(self, db: Database, *, every: float) -> None:
        """End the streams of keys that are no more, until cancelled: one statement for them all,
        and none while no stream is open.

        Args:
            every: seconds between two questions.
        """
        trouble = Trouble(log, "keys of open streams not looked for")
        while True:
            await asyncio.sleep(every)
            with trouble.catch():
                await self._look(db)

    async def _look(self, db: Database) -> None:
        if not (asked := list(self._by_key)):
            return
        good = await api_keys.still_good(db, asked)
        for gone in set(asked) - good:
            streams = tuple(self._by_key.get(gone, ()))
            log.info("streams of a key that is no more", key=gone, streams=len(streams))
            for end in streams:
                end()


class Keyed:
    """One stream's place among them; as small as can be, for thousands are held at once."""

    __slots__ = ("_caller", "_on_gone", "_running_out", "_streams")

    def __init__(self, streams: KeyedStreams, caller: Caller, on_gone: Callable[[], None]) -> None:
        self._streams = streams
        self._caller = caller
        self._on_gone = on_gone
        self._running_out: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        if self._caller.key_id:
            self._streams.add(self._caller.key_id, self._on_gone)
        if self._caller.until is not None:
            left = self._caller.until - time.time()
            self._running_out = asyncio.get_running_loop().call_later(left, self._on_gone)

    def __exit__(self, *_: object) -> None:
        if self._caller.key_id:
            self._streams.remove(self._caller.key_id, self._on_gone)
        if self._running_out is not None:
            self._running_out.cancel()
