"""The child's side of `worker.ink.cell`: takes one request, limits itself, works, answers."""

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final

from worker.ink.compiler import compile_story
from worker.ink.engine import InkEngine
from worker.ink.errors import EngineCrashedError, ExternalFailedError, InkError, StoryInvalidError
from worker.ink.explore import explore
from worker.ink.machine import Budget


def main() -> None:
    """Answer the one request on standard input."""
    asked = json.loads(sys.stdin.readline())
    _limit_self(asked["limits"])
    try:
        _send({"done": _WORK[asked["work"]](asked["request"])})
    except InkError as error:
        _send({"error": _told(error)})
    except MemoryError:
        megabytes = asked["limits"]["memory_bytes"] >> 20
        _send(
            {"error": _told(EngineCrashedError(f"it wanted more than {megabytes} MiB of memory"))}
        )


def _limit_self(limits: Mapping[str, Any]) -> None:
    try:
        import resource  # noqa: PLC0415 - does not exist on Windows, where only the wall clock limits
    except ImportError:
        return
    memory, cpu = limits["memory_bytes"], limits["cpu_seconds"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    with suppress(ValueError, OSError):  # macOS knows this limit and refuses it
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def _compile(request: Mapping[str, Any]) -> dict[str, Any]:
    return asdict(compile_story(request["files"], request["main"]))


def _explore(request: Mapping[str, Any]) -> dict[str, Any]:
    return asdict(explore(note=lambda at: _send({"note": at}), **request))


def _turn(request: Mapping[str, Any]) -> dict[str, Any]:
    engine = InkEngine(
        request["compiled"],
        story_hash=request["story_hash"],
        budget=Budget(**request["budget"]),
        contained=False,
    )
    turn = dict(request["turn"])
    variables = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in (turn.pop("variables") or {}).items()
    }
    functions = {name: _Remote(name) for name in request["functions"]}
    return asdict(engine.advance(**turn, variables=variables, functions=functions))


class _Remote:
    """A function of the parent's."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *arguments: Any) -> Any:
        _send({"call": [self._name, arguments]})
        answer = json.loads(sys.stdin.readline())
        if "failed" in answer:
            raise ExternalFailedError(answer["failed"])
        return answer["value"]


_WORK: Final[Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    "compile": _compile,
    "explore": _explore,
    "turn": _turn,
}


def _told(error: InkError) -> dict[str, Any]:
    problems = error.problems if isinstance(error, StoryInvalidError) else ()
    return {
        "type": type(error).__name__,
        "message": str(error),
        "problems": [asdict(problem) for problem in problems],
    }


def _send(message: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
