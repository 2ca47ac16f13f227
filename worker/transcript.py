"""The newest messages of a session's branch, as a worker holds them from one task to the next.

They are kept encoded. Objects would have to be copied for every task, lest an agent that changes
one changes what the next task sees, and the garbage collector would walk through all of them: a
full collection took 56 ms with 100,000 messages as objects, and nothing with the same as bytes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

from agent_core import Message, message_from_dict
from shared.encoding import JsonObject, dumps, loads
from shared.records import Claim, KnownBranch

HISTORY_MESSAGES = 200
"""How many messages of a session an attempt starts with at the most."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """The branch of a session up to `known`, or of one that has no message yet; frozen for ever."""

    known: KnownBranch | None
    messages: tuple[bytes, ...] = ()

    @property
    def history(self) -> "History":
        """What one task is given of it."""
        return History(self.messages)

    def ended(self, claim: Claim, committed: Sequence[JsonObject]) -> "Transcript":
        """With the messages that the end of this claim's task committed."""
        if not committed:
            return self
        head = claim.next_message + len(committed) - 1
        return _newest(claim, head, (*self.messages, *_encoded(committed)))


def transcript_of(claim: Claim, held: Transcript | None) -> Transcript:
    """The transcript that a claim found: what it read, behind what was held where that is its
    beginning."""
    read = _encoded(claim.messages)
    if held is None or held.known is None or claim.after != held.known.head:
        return _newest(claim, claim.head_message, read)
    return _newest(claim, claim.head_message, (*held.messages, *read))


def _newest(claim: Claim, head: int | None, messages: tuple[bytes, ...]) -> Transcript:
    known = None if head is None else KnownBranch(claim.generation, head)
    return Transcript(known, messages[-HISTORY_MESSAGES:])


def _encoded(messages: Iterable[JsonObject]) -> tuple[bytes, ...]:
    # In order, for Postgres gives an object's members in an order of its own: what a model is shown
    # must be the same bytes, wherever the message comes from, or its provider's cache misses.
    return tuple(dumps(message, in_order=True) for message in messages)


class History(Sequence[Message]):
    """Messages of one task's own, each of them read when it is first looked at.

    A part of it is looked at in the same way: whoever wants the newest few reads no others. Raises
    MalformedDataError where a message can't be read.
    """

    def __init__(self, encoded: Sequence[bytes]) -> None:
        self._encoded = encoded
        self._places = range(len(encoded))
        self._read: dict[int, Message] = {}

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> "History": ...
    def __getitem__(self, index: int | slice) -> "Message | History":
        if isinstance(index, slice):
            part = History(self._encoded)
            part._places, part._read = self._places[index], self._read
            return part
        place = self._places[index]
        if place not in self._read:
            self._read[place] = message_from_dict(loads(self._encoded[place]))
        return self._read[place]
