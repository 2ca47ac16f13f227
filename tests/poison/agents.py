"""An agent of the poison tests: it ends its own process at a word, or waits and answers.

`FIRESIDE_NOTES` names a file in which it writes down what it is about to do.
"""

import asyncio
import os
import signal
from pathlib import Path

from agent_core import StepRequest
from shared.records import CatalogEntry
from shared.settings import Settings
from worker.agents import Answer, RunningTask
from worker.narration import begin_turn, end_turn, tell, written

INNOCENT_SECONDS = 0.4


class Kitchen:
    """Serves what it is asked for; some of it is poison."""

    entry = CatalogEntry("agent", "kitchen", "Kitchen")

    def __init__(self) -> None:
        self._notes = Path(os.environ["FIRESIDE_NOTES"])

    async def run(self, task: RunningTask) -> Answer:
        order = str(task.action.get("text", "bread"))
        match order:
            case "exit":
                self._note(order, task)
                os._exit(1)
            case "exit once":
                if self._note(order, task) == 1:
                    os._exit(1)
            case "killed in a tool":
                step = StepRequest(0, "tool", "cook", "hash", "pure")
                await task.journal.begin(step)
                self._note(order, task)
                os.kill(os.getpid(), signal.SIGKILL)
            case "boil for ever":
                self._note(order, task)
                while True:
                    pass
            case "stew":
                self._note(order, task)
                await asyncio.Event().wait()
            case "the cheap one":
                order = task.resources.model_of("cheap").name
            case _:
                await asyncio.sleep(INNOCENT_SECONDS)
        answer = written(f"{order} is served", "kitchen")
        begin_turn(task)
        tell(task, answer)
        end_turn(task, [], answer)
        return Answer(text=answer.text, state={})

    def _note(self, order: str, task: RunningTask) -> int:
        """Write an order down; how often it was for this task."""
        line = f"{task.task_id} {order} {os.getpid()}\n"
        with self._notes.open("a") as file:
            file.write(line)
        return sum(
            one.startswith(str(task.task_id)) for one in self._notes.read_text().splitlines()
        )


def _kitchen(_: Settings) -> Kitchen:
    return Kitchen()


AGENTS = [_kitchen]
