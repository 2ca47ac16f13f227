"""Waiting for a model's slot is no hung call: the time-outs of an attempt stand still."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from agent_core import AbortSignal, CallReport, ModelCall
from agent_core.testing import SCRIPTED_MODEL, ScriptedModel
from tests.waiting import PATIENCE, within
from tests.worker.attempts import KeepingStore, claim
from worker.agents import RegisteredAgent, Resources
from worker.attempt import run_attempt
from worker.companion import CompanionAgent
from worker.deadlines import Deadlines
from worker.task_log import TaskLog


async def test_a_deadline_ends_what_takes_too_long() -> None:
    async def hang() -> None:
        async with Deadlines().within(0.05):
            await asyncio.Event().wait()

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        await within(hang())
    assert time.monotonic() - began < PATIENCE / 2


async def test_stopped_deadlines_go_on_with_what_was_left() -> None:
    deadlines = Deadlines()
    clock = asyncio.get_running_loop().time  # that of the deadlines
    stood = 0.0

    async def stop_and_hang() -> None:
        nonlocal stood
        async with deadlines.within(0.7), deadlines.within(600):
            await asyncio.sleep(0.1)
            with deadlines.stopped(), deadlines.stopped():
                stopped = clock()
                await asyncio.sleep(0.3)
                async with deadlines.within(0.01):
                    await asyncio.sleep(0.1)  # begun while they stand still
                stood = clock() - stopped
            await asyncio.Event().wait()

    began = clock()
    with pytest.raises(TimeoutError):
        await within(stop_and_hang())
    assert clock() - began > 0.7 + stood - 0.02


async def test_a_deadline_that_is_over_is_left_alone() -> None:
    deadlines = Deadlines()

    async def stop_too_late() -> None:
        async with deadlines.within(0.01):
            try:
                await asyncio.Event().wait()
            finally:
                with deadlines.stopped():
                    pass

    with pytest.raises(TimeoutError):
        await stop_too_late()


class Slow:
    """A limiter that lets a call wait for so long."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.users: list[str] = []

    @asynccontextmanager
    async def admit(self, call: ModelCall) -> AsyncIterator[CallReport]:
        self.users.append(call.user)
        await asyncio.sleep(self._seconds)
        yield lambda final: None


async def no_story(story_hash: str) -> str:
    raise AssertionError(story_hash)


async def test_an_attempt_may_wait_for_its_turn_for_longer_than_a_task_may_take() -> None:
    limiter, store = Slow(3.2), KeepingStore()
    of = claim(agent="companion")
    agents: dict[str, RegisteredAgent] = {"companion": CompanionAgent()}
    await within(
        run_attempt(
            of,
            TaskLog(of, store, on_lost=lambda: None),
            agents,
            resources=Resources(
                SCRIPTED_MODEL,
                None,
                no_story,
                stream_fn=ScriptedModel(["Hello."]),
                limiter=limiter,
            ),
            signal=AbortSignal(),
            task_seconds=3.0,  # all else has so long as well, on a busy machine
            max_attempts=5,
        )
    )

    assert store.kinds[-1] == "task_completed"
    assert limiter.users == ["user"]
