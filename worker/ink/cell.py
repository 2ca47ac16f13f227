"""A process of its own, with limits, for one piece of work on a story that may kill its process.

The parent's side; the child's is `worker.ink.inside`. They speak JSON, one message a line:
the parent sends the request, then an answer to each call; the child sends any number of
`{"note": ...}` and `{"call": [name, arguments]}`, then one `{"done": ...}` or `{"error": ...}`.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal, cast

from worker.ink.errors import EngineCrashedError, InkError, Problem, StoryInvalidError
from worker.ink.machine import ExternalFunction

Work = Literal["compile", "explore", "turn"]

_ROOT: Final = Path(__file__).parents[2]
# All that a child needs of the environment: it must not see a secret.
_KEPT_ENVIRONMENT: Final = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR")
_COMPLAINTS: Final = 4_000  # characters of the child's stderr that are looked at


@dataclass(frozen=True)
class CellLimits:
    """What the child may use: wall-clock and CPU seconds, and bytes of address space."""

    seconds: float = 120.0
    cpu_seconds: int = 120
    memory_bytes: int = 1 << 30


def run(
    work: Work,
    request: Mapping[str, Any],
    *,
    limits: CellLimits,
    functions: Mapping[str, ExternalFunction] | None = None,
    note: Callable[[Any], None] | None = None,
) -> Any:
    """Have `work` done by a child and return what it made of `request`.

    The child may call `functions` and tells `note` how far it is. Blocks until it is done. Raises
    EngineCrashedError when it dies or uses up its limits, else the InkError that it raised.
    """
    command = [sys.executable, "-P", "-X", "utf8", "-m", "worker.ink.inside"]
    environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=environment | {"PYTHONPATH": str(_ROOT), "RUST_BACKTRACE": "0"},
            encoding="utf-8",
        ) as child,
    ):
        overdue = threading.Event()
        timer = threading.Timer(limits.seconds, _end, (child, overdue))
        timer.start()
        try:
            asked = {"work": work, "request": request, "limits": asdict(limits)}
            conversation = _Conversation(child, functions or {}, note)
            if conversation.held(asked):
                return conversation.result()
            reason = _cause_of_death(child.wait(), overdue.is_set(), complaints, limits)
        finally:
            timer.cancel()
            child.kill()
    raise EngineCrashedError(reason)


class _Conversation:
    """What parent and child say to each other."""

    def __init__(
        self,
        child: "subprocess.Popen[str]",
        functions: Mapping[str, ExternalFunction],
        note: Callable[[Any], None] | None,
    ) -> None:
        self._said = cast("IO[str]", child.stdin)
        self._heard = cast("IO[str]", child.stdout)
        self._functions = functions
        self._note = note
        self._last: dict[str, Any] = {}
        self._cause: Exception | None = None

    def held(self, request: Mapping[str, Any]) -> bool:
        """Speak until the child is done; False when it went silent before that."""
        try:
            self._send(request)
            for line in self._heard:
                self._last = json.loads(line)
                if "done" in self._last or "error" in self._last:
                    return True
                self._hear(self._last)
        except (BrokenPipeError, ValueError):  # gone, or killed in the middle of a message
            return False
        return False

    def result(self) -> Any:
        """What the child has done, or its error raised."""
        if "done" in self._last:
            return self._last["done"]
        raise _error(self._last["error"]) from self._cause

    def _hear(self, message: dict[str, Any]) -> None:
        if "call" in message:
            self._send(self._called(*message["call"]))
        elif self._note is not None:
            self._note(message["note"])

    def _called(self, name: str, arguments: list[Any]) -> dict[str, Any]:
        try:
            return {"value": self._functions[name](*map(_value, arguments))}
        except Exception as error:  # noqa: BLE001 - any code of the caller's; becomes the cause of what is raised
            self._cause = self._cause or error
            return {"failed": str(error)}

    def _send(self, message: Mapping[str, Any]) -> None:
        self._said.write(json.dumps(message) + "\n")
        self._said.flush()


def _end(child: "subprocess.Popen[str]", overdue: threading.Event) -> None:
    overdue.set()
    child.kill()


def _cause_of_death(code: int, overdue: bool, complaints: IO[bytes], limits: CellLimits) -> str:
    complaints.seek(0)
    said = complaints.read(_COMPLAINTS).decode(errors="replace")
    if overdue:
        return f"ended after {limits.seconds:g} s"
    if -code == signal.SIGXCPU:
        return f"ended after {limits.cpu_seconds} s of CPU time"
    if "memory allocation" in said or "MemoryError" in said:
        return f"it wanted more than {limits.memory_bytes >> 20} MiB of memory"
    if code < 0:
        return f"the process under the story died ({signal.Signals(-code).name})"
    last = said.strip().splitlines()[-1:] or ["it said nothing"]
    return f"the process under the story gave up ({last[0]})"


def _error(told: Mapping[str, Any]) -> InkError:
    if told["type"] == StoryInvalidError.__name__:
        return StoryInvalidError(told["message"], tuple(Problem(**p) for p in told["problems"]))
    types = {kind.__name__: kind for kind in InkError.__subclasses__()}
    return types[told["type"]](told["message"])


def _value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
