"""What keeps going wrong in a loop that goes on: told at once, then now and then, and its end."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from shared.errors import FiresideError

SAY_SECONDS = 10.0
"""How often an error that comes again and again is told."""

_NUMBERS = re.compile(r"[0-9]+")
"""What differs between two errors of one kind: ports, counts, times."""


class Trouble:
    """The errors of one loop that goes on in spite of them.

    Args:
        log: the loop's module's.
        event: what the log says of an error.
    """

    def __init__(self, log: structlog.typing.FilteringBoundLogger, event: str) -> None:
        self._log = log
        self._event = event
        self._said: dict[str, float] = {}
        self._began: float | None = None

    @contextmanager
    def catch(self) -> Iterator[None]:
        """Hear how it goes inside: a FiresideError is told and goes no further."""
        try:
            yield
        except FiresideError as error:
            self.goes_on(error)
        else:
            self.is_over()

    def goes_on(self, error: Exception | str) -> None:
        """Hear of an error; one that was told within SAY_SECONDS is not told again."""
        now = time.monotonic()
        if self._began is None:
            self._began = now
        kind = _NUMBERS.sub("", str(error))
        if now - self._said.get(kind, float("-inf")) >= SAY_SECONDS:
            self._said[kind] = now
            self._log.warning(self._event, error=str(error))

    def is_over(self) -> None:
        """Hear that it went well this time."""
        if self._began is not None:
            seconds = round(time.monotonic() - self._began, 1)
            self._log.info("works again", after=self._event, seconds=seconds)
            self._began = None
            self._said.clear()
