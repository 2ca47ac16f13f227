"""What one attempt of a task says: the entries that an agent's events become, and its messages.

What earlier attempts wrote into the log is not said again. When entries leave, and what is written
with them, is up to the log (`worker/task_log.py`); here is only said how soon they should.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from agent_core import AgentEvent, AssistantMessage, TextContent, TextDelta
from shared.encoding import JsonObject
from shared.events import Delta
from shared.records import Claim, NewEvent
from worker.joining import Joining
from worker.takeover import told_before

GROUP_SECONDS = 0.02
"""How long a durable entry may wait for others, where nobody waits for it."""

DELTA_SECONDS = 0.1
DELTA_PIECES = 40
"""Deltas leave after this long or this many pieces, whichever comes first."""


class AttemptEvents:
    """The entries of one attempt that have not left yet, and all of its messages.

    What takes an event gives the seconds within which the entries should leave, or None where it
    has become none.

    Args:
        claim: the session and the task; its events are what earlier attempts left.

    `messages` are the transcript's, those first that earlier attempts told. `joining` knows which
    of them are of actions that joined.
    """

    def __init__(self, claim: Claim) -> None:
        told = told_before(claim.events)
        self._settled, self.messages = told.settled, told.messages
        self.joining = Joining(claim, told.joined)
        self.entries: list[NewEvent | Delta] = []
        self._first_id = claim.next_message
        self._ordinals: Counter[str] = Counter()
        self._number = -1
        self._open: _OpenMessage | None = None
        self._pieces = 0

    def __call__(self, event: AgentEvent) -> float | None:
        """Take an event of the agent."""
        match event.type:
            case "message_start":
                return self._message_start(event.message)
            case "message_update":
                if isinstance(event.assistant_message_event, TextDelta):
                    return self._delta(event.assistant_message_event.delta)
                return None
            case "message_end":
                joined = self.joining.task_of(event.message)
                return self._message_end(event.message.to_dict(), joined)
            case "agent_start" | "turn_start" | "turn_end" | "agent_end":
                # What a turn's end and a run's end repeat stands in the messages already.
                return self.record(event.type, {})
            case "tool_execution_start" | "tool_execution_update" | "tool_execution_end":
                data = event.to_dict()
                del data["type"]
                return self._append(event.type, data, event.tool_call_id)

    def record(self, kind: str, data: JsonObject) -> float | None:
        """Take an event of the task itself."""
        self._ordinals[kind] += 1
        return self._append(kind, data, self._ordinals[kind])

    def cut_off(self) -> None:
        """End a message that has only begun, should there be one: log and transcript keep what
        clients have seen of it."""
        if self._open is not None:
            text = TextContent("".join(self._open.pieces))
            self._message_end(AssistantMessage([text], stop_reason="aborted").to_dict())

    def leave(self) -> list[NewEvent | Delta]:
        """Give the entries, in their order; they are somebody else's from now on."""
        entries, self.entries = self.entries, []
        self._pieces = 0
        return entries

    def message_ids(self) -> list[int]:
        """The ids that the messages will have in the transcript."""
        return list(range(self._first_id, self._first_id + len(self.messages)))

    def _message_start(self, message: Any) -> float | None:
        self._number += 1
        self._open = _OpenMessage(self._number)
        data: JsonObject = message.to_dict()
        if isinstance(message, AssistantMessage):
            # Its text comes as deltas, and whole at its end: not twice.
            data["content"] = []
        # What was noted on the user's message comes with its end, once.
        data.pop("details", None)
        told = _message_data(data, self._number, self.joining.task_of(message))
        return self._append("message_start", told, self._number)

    def _delta(self, text: str) -> float | None:
        message = self._open
        if message is None or not text:
            return None
        last = self.entries[-1] if self.entries else None
        if isinstance(last, Delta) and last.message == message.number:
            self.entries[-1] = Delta(last.message, last.offset, last.text + text)
        else:
            self.entries.append(Delta(message.number, message.length, text))
        first = message.length == 0
        message.pieces.append(text)
        message.length += len(text)
        self._pieces += 1
        return 0.0 if first or self._pieces >= DELTA_PIECES else DELTA_SECONDS

    def _message_end(self, data: JsonObject, joined: UUID | None = None) -> float | None:
        number = self._number
        self._open = None
        seconds = self._append("message_end", _message_data(data, number, joined), number)
        if seconds is not None:
            if joined is not None:
                self.joining.told(joined, len(self.messages))
            self.messages.append(data)
        return seconds

    def _append(self, kind: str, data: JsonObject, key: object) -> float | None:
        """Say an event, unless an earlier attempt has written it already."""
        if self._settled[kind, key] > 0:
            self._settled[kind, key] -= 1
            return None
        self.entries.append(NewEvent(kind, data))
        return GROUP_SECONDS


@dataclass(slots=True)
class _OpenMessage:
    """A message between its start and its end, with the text that clients have seen of it."""

    number: int
    pieces: list[str] = field(default_factory=list)
    length: int = 0


def _message_data(message: JsonObject, number: int, joined: UUID | None) -> JsonObject:
    data: JsonObject = {"message": message, "number": number}
    return data if joined is None else data | {"joined": str(joined)}
