"""Hosts that run agents of a test, on the real Postgres and Valkey."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any

from pydantic import SecretStr

from agent_core import AgentStart, MessageEnd, MessageStart, Model, StepRequest, UserMessage
from shared.records import CatalogEntry
from shared.settings import Settings, load_settings
from tests.waiting import within
from worker.agents import Answer, RunningTask
from worker.host import Host
from worker.narration import tell, written

Run = Callable[[RunningTask], Coroutine[Any, Any, Answer]]


class Flag:
    """An event that any thread may set and any loop may await."""

    def __init__(self) -> None:
        self._future: Future[None] = Future()

    def set(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    def is_set(self) -> bool:
        return self._future.done()

    async def wait(self) -> None:
        await asyncio.shield(asyncio.wrap_future(self._future))


class Companion:
    """An agent, mostly under the name that the sessions of tests have; its `run` is the test's."""

    def __init__(self, run: Run, name: str = "companion") -> None:
        self.entry = CatalogEntry("agent", name, name.title())
        self.run = run


def step(no: int = 0, effect: str = "pure") -> StepRequest:
    return StepRequest(no, "tool", "look", f"hash-{no}", effect)  # type: ignore[arg-type]


def say(task: RunningTask, text: str) -> Answer:
    """Answer with one message."""
    task.emit(AgentStart())
    heard = UserMessage(str(task.action.get("text")), timestamp=0)
    task.emit(MessageStart(heard))
    task.emit(MessageEnd(heard))
    tell(task, written(text, "test"))
    return Answer(text=text, state={"said": text}, public={"said": text})


async def echo(task: RunningTask) -> Answer:
    """Answer at once with what was said."""
    return say(task, str(task.action.get("text", "hello")))


class Hosts:
    """Starts hosts on one database; all are drained at the end of a test."""

    def __init__(self, postgres_url: str, redis_url: str) -> None:
        urls = {"database_url": SecretStr(postgres_url), "redis_url": SecretStr(redis_url)}
        # No sweep comes to help: what is late here would be late by a sweep in production. And no
        # lease runs out because the machine stood still for some seconds.
        quiet = {
            "sweep_seconds": 60.0,
            "drain_seconds": 0.0,
            "database_pool": 5,
            "lease_seconds": 30.0,
        }
        self.settings: Settings = load_settings().model_copy(update={**urls, **quiet})
        self._hosts: list[Host] = []

    def start(
        self,
        run: Run,
        *,
        agent: str = "companion",
        announced: Sequence[CatalogEntry] = (),
        **changed: object,
    ) -> Host:
        settings = self.settings.model_copy(update=changed)
        agents = {agent: Companion(run, agent)}
        host = Host(settings, agents, Model("m", "openai"), None, announced=announced)
        host.start()
        self._hosts.append(host)
        return host

    async def drain(self) -> None:
        for host in self._hosts:
            await within(asyncio.to_thread(host.drain))
