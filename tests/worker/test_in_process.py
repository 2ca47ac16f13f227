"""Sessions in memory: what an agent may do to them, and one task after the other."""

import asyncio

from agent_core import Model
from tests.worker.hosts import Companion, Run, say
from worker.agents import Answer, Resources, RunningTask
from worker.in_process import InProcess, MemorySession


async def no_story(story_hash: str) -> str:
    raise AssertionError(story_hash)


def runner(run: Run) -> InProcess:
    resources = Resources(Model("m", "openai"), None, no_story)
    return InProcess({"companion": Companion(run)}, resources)


async def test_an_agent_that_fails_leaves_the_session_as_it_was() -> None:
    async def spoil(task: RunningTask) -> Answer:
        task.state["spoilt"] = task.view["spoilt"] = task.character["name"] = "x"
        raise ValueError

    session = MemorySession("companion", state={"n": 1})
    terminal = await runner(spoil).act(session, {"type": "say", "text": "hi"})

    assert terminal.type == "task_failed"
    assert session.state == {"n": 1}
    assert session.view == {"state": {}, "choices": []}
    assert session.character["name"] == ""


async def test_actions_of_a_session_run_one_after_the_other() -> None:
    running = 0

    async def run(task: RunningTask) -> Answer:
        nonlocal running
        running += 1
        await asyncio.sleep(0)
        assert running == 1
        running -= 1
        return say(task, str(task.action["text"]))

    session, runs = MemorySession("companion"), runner(run)
    ended = await asyncio.gather(*(runs.act(session, {"type": "say", "text": t}) for t in "abc"))

    assert [event.data["result"]["text"] for event in ended] == ["a", "b", "c"]
    assert [event.seq for event in session.events] == list(range(1, len(session.events) + 1))
    assert ended[-1].data["result"]["messages"] == [5, 6]
    assert len(session.messages) == 6
