"""Reading server-sent events out of bytes."""

from __future__ import annotations

from agent_core.errors import ProviderError

# Far above any chunk of an answer; a server that sends more without an end is broken.
_MAX_EVENT_BYTES = 8 * 1024 * 1024


class SseReader:
    """Takes bytes as they come and gives the data of each event that is complete.

    A body that is a JSON object, as of a server that does not stream, is one event.
    """

    def __init__(self) -> None:
        self._buffer = b""
        self._data: list[str] = []
        self._size = 0  # bytes of the event so far
        self._is_json: bool | None = None  # not known before the first byte that is no space

    def feed(self, piece: bytes) -> list[str]:
        """Add bytes; raises ProviderError if an event has no end."""
        self._buffer += piece
        if self._is_json is None and (begun := self._buffer.lstrip()):
            self._is_json = begun.startswith(b"{")
        complete: list[str] = []
        if not self._is_json:
            *lines, self._buffer = self._buffer.split(b"\n")
            for line in lines:
                self._take(line.rstrip(b"\r"), complete)
        if self._size + len(self._buffer) > _MAX_EVENT_BYTES:
            raise ProviderError("The server sent an event of more than 8 MiB")
        return complete

    def end(self) -> list[str]:
        """End the body: give the event whose blank line never came, if there is one."""
        rest, self._buffer = self._buffer, b""
        if self._is_json:
            return [rest.decode("utf-8", "replace")]
        complete: list[str] = []
        for line in (rest.rstrip(b"\r"), b""):
            self._take(line, complete)
        return complete

    def _take(self, line: bytes, complete: list[str]) -> None:
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" ").decode("utf-8", "replace"))
            self._size += len(line)
        elif not line and self._data:
            complete.append("\n".join(self._data))
            self._data = []
            self._size = 0
