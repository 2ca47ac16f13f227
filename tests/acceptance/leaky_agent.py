"""An agent that fails with the user's words on its lips, as agents of other people may."""

import logging

from shared.records import CatalogEntry
from shared.settings import Settings
from worker.agents import Answer, RunningTask


class LeakyAgent:
    """Raises an error that quotes what was said, with what was said as its cause."""

    entry = CatalogEntry("agent", "leaky", "Leaky")

    async def run(self, task: RunningTask) -> Answer:
        """Fail; only the opening goes well."""
        if task.action["type"] == "start":
            return Answer("", {})
        words = task.action["text"]
        try:
            int(words)
        except ValueError as error:
            raise RuntimeError(f"no number: {words!r} of {task.user_id}") from error
        raise AssertionError(words)


def _make(settings: Settings) -> LeakyAgent:
    logging.getLogger("httpx").setLevel(logging.WARNING)
    return LeakyAgent()


AGENTS = [_make]
