"""Reading many streams at one pace, so that a process wakes once for all of them.

A model gives a token every few milliseconds. Where each wakes the process by itself, waking costs
more than all that is done with the token, and nobody is told so often.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from weakref import WeakKeyDictionary

BEAT_SECONDS = 0.04
"""What comes between two beats is read at the second: so much later the end of an answer can be
seen. Far less than a person notices, or than relays collect text for."""

STREAMS_A_BEAT = 50
LONGEST_BEAT = 3
"""One beat for each so many streams, but no more: a process that reads hundreds of answers is to
have time to begin others. Text comes eight times a second then."""

FEW_STREAMS = 8
"""So many are read as they come: a process with little to do need not save."""

_paces: WeakKeyDictionary[asyncio.AbstractEventLoop, _Pace] = WeakKeyDictionary()


class PacedReading:
    """`with PacedReading() as reading:` reads a stream together with the others of its loop.

    What a transport is sent while it rests waits in the kernel, and holds its sender back where
    that is full.
    """

    __slots__ = ("_pace", "_transport")

    def __init__(self) -> None:
        self._transport: asyncio.ReadTransport | None = None

    def __enter__(self) -> PacedReading:
        self._pace = _pace_of(asyncio.get_running_loop())
        self._pace.streams += 1
        return self

    def rest(self, transport: asyncio.ReadTransport | None) -> None:
        """Read on at the next beat; None for what has ended or is not read from a socket."""
        if transport is not None and self._pace.streams > FEW_STREAMS:
            self._transport = transport
            self._pace.rest(transport)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pace.streams -= 1
        if self._transport is not None:
            self._pace.wake(self._transport)


class _Pace:
    """The streams that a loop reads, and those that rest until the next beat."""

    def __init__(self) -> None:
        self.streams = 0
        self._resting: set[asyncio.ReadTransport] = set()
        self._timed = False

    def rest(self, transport: asyncio.ReadTransport) -> None:
        if transport.is_closing() or transport in self._resting:
            return
        transport.pause_reading()
        self._resting.add(transport)
        if not self._timed:
            self._timed = True
            loop = asyncio.get_running_loop()
            beats = min(-(-self.streams // STREAMS_A_BEAT), LONGEST_BEAT)
            seconds = beats * BEAT_SECONDS
            loop.call_at((loop.time() // seconds + 1) * seconds, self._beat)

    def wake(self, transport: asyncio.ReadTransport) -> None:
        if transport in self._resting:
            self._resting.remove(transport)
            _read_on(transport)

    def _beat(self) -> None:
        self._timed = False
        resting, self._resting = self._resting, set()
        for transport in resting:
            _read_on(transport)


def _read_on(transport: asyncio.ReadTransport) -> None:
    if not transport.is_closing():
        transport.resume_reading()


def _pace_of(loop: asyncio.AbstractEventLoop) -> _Pace:
    pace = _paces.get(loop)
    if pace is None:
        pace = _paces[loop] = _Pace()
    return pace
