"""What users say while a task runs: where it joined the run, and whether the run answered it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from uuid import UUID

from agent_core import UserMessage
from shared.encoding import JsonObject
from shared.records import Claim, Joined

_FINISHED = {"stop", "length", "tool_use"}
"""Reasons for which a model's message that has them answers what was said before it."""


class Joining:
    """The actions that join one task.

    A run asks for them at places that it numbers, 1, 2, ...: a later attempt is given at each
    place what an earlier one was given there, for the journal holds answers to just that.

    Args:
        claim: its `joined` are what the task was joined by already.
        told: for each of them whose message stands in the log, its index in the transcript.
    """

    def __init__(self, claim: Claim, told: Mapping[UUID, int]) -> None:
        self._collected = [one.task_id for one in claim.joined if one.no == 0]
        self._known: defaultdict[int, list[Joined]] = defaultdict(list)
        for one in claim.joined:
            self._known[one.no].append(one)
        self._count = len(claim.joined)
        self._places = 0
        self._told = dict(told)
        self._delivered: list[tuple[UserMessage, UUID]] = []
        self.may_wait = False
        self.note(claim.open_tasks)

    def note(self, open_tasks: int) -> None:
        """Note how many tasks of the session are open: whether one may wait to join."""
        self.may_wait = open_tasks > 1 + self._count

    def nudge(self) -> None:
        """Note that one came just now."""
        self.may_wait = True

    def next_place(self) -> tuple[int, Sequence[Joined]]:
        """The number of the place at which the run asks now, and what is known to have joined."""
        self._places += 1
        return self._places, self._known.get(self._places, ())

    def deliver(self, joined: Sequence[Joined], *, new: bool) -> list[UserMessage]:
        """The messages that the run is given."""
        if new:
            self._count += len(joined)
        messages = [UserMessage(one.text) for one in joined]
        self._delivered += zip(messages, (one.task_id for one in joined), strict=True)
        return messages

    def task_of(self, message: object) -> UUID | None:
        """The task whose message this is; None where it is the run's own."""
        return next((task for mine, task in self._delivered if mine is message), None)

    def told(self, task_id: UUID, index: int) -> None:
        """Note at which index of the transcript the message of a task stands."""
        self._told.setdefault(task_id, index)

    def answered(self, messages: Sequence[JsonObject], *, completed: bool) -> list[UUID]:
        """The tasks that end with this one.

        Those that were collected into it share its fate. One that came later was answered if the
        model finished a message after it; else it waits on, for a run of its own.
        """
        last = max((no for no, message in enumerate(messages) if _finished(message)), default=-1)
        return self._collected + [
            task for task, index in self._told.items() if completed or index < last
        ]

    def without_unanswered(
        self, messages: Sequence[JsonObject], answered: Sequence[UUID]
    ) -> list[JsonObject]:
        """The transcript without what tasks said that will say it again."""
        left = {index for task, index in self._told.items() if task not in answered}
        return [message for no, message in enumerate(messages) if no not in left]


def _finished(message: JsonObject) -> bool:
    return message["role"] == "assistant" and message.get("stop_reason") in _FINISHED
