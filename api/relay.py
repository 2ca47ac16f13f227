"""One client's view of a session: what the log has after `after`, then what comes, each once."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from uuid import UUID

from api.gateway import Gateway
from api.identity import Caller
from shared.encoding import dumps
from shared.errors import QueueUnavailable
from shared.events import Delta, Line, decode_delta, delta_frame, event_frame, text_so_far
from shared.follow import Subscription
from shared.records import Event
from shared.store import sessions

_PAGE = 200
_ATTEMPTS_KEPT = 16
_TEXT_SECONDS = 1.0
_STARTS = {"task_started", "task_restarted"}

IDLE: Sequence[Line] = ()
"""What `relay` gives where nothing came for a while."""


async def relay(
    parts: Gateway, caller: Caller, session_id: UUID, after: int | None
) -> AsyncGenerator[Sequence[Line], None]:
    """The lines for one client, until the process stops or the client's API key or token is no
    more; `IDLE` after a while without any.

    The first lines, perhaps none, come as soon as the client's place in the log is found.

    The subscription stands before the log is read, so that nothing falls between the two.

    Args:
        after: the last number that the client has; None for only what comes from now on.

    Raises:
        NotFound: the user has no such session, or it was deleted meanwhile.
        StoreUnavailable: Postgres did not answer.
    """
    key_is_gone = asyncio.Event()
    async with parts.follower.follow(session_id) as subscription:

        def end() -> None:
            key_is_gone.set()
            subscription.mark_stale()  # it may wait for news

        view = View(parts, caller.user_id, session_id, subscription)
        with parts.keyed.one(caller, end):
            yield await view.join(after)
            while not (parts.stopping or key_is_gone.is_set()):
                if lines := await view.next_lines():
                    yield lines
                elif not await subscription.wait(parts.settings.ping_seconds):
                    yield IDLE


class View:
    """Where one client stands: the last number it has seen, and each task's newest attempt.

    While it is behind, the log has more, which goes before anything that was published.
    """

    __slots__ = (
        "_attempts",
        "_behind",
        "_has_joined_text",
        "_head",
        "_missed",
        "_parts",
        "_published",
        "_seen",
        "_session_id",
        "_subscription",
        "_text_is_due",
        "_told",
        "_user_id",
    )

    def __init__(
        self, parts: Gateway, user_id: str, session_id: UUID, subscription: Subscription
    ) -> None:
        self._behind = False
        self._head = 0
        self._parts = parts
        self._user_id = user_id
        self._session_id = session_id
        self._subscription = subscription
        self._seen = 0
        self._published: list[Line] = []
        self._attempts: dict[str, int] = {}
        self._text_is_due = False
        self._told: Line | None = None
        self._has_joined_text = False
        self._missed = 0

    def has_to_ask(self) -> bool:
        """Whether what comes next is not with us: `next_lines` has to wait for it."""
        return self._behind or self._text_is_due or self._subscription.is_stale

    async def next_lines(self) -> Sequence[Line]:
        """The lines that come next, from wherever they are; none where there are none yet.

        Raises:
            NotFound: the session was deleted meanwhile.
            StoreUnavailable: Postgres did not answer.
        """
        lines: Sequence[Line] = ()
        while not lines:
            if self._subscription.take_stale():
                lines = await self._rejoin()
            elif self._behind:
                lines = await self._page_of_log()
            elif self._text_is_due:
                lines = await self._unfinished_text()
            elif not (lines := self.fresh_lines()) and not self._behind:
                break
        return lines

    async def join(self, after: int | None) -> Sequence[Line]:
        """Find the place in the log; a gap where what comes next in it is no longer kept."""
        session = await sessions.get(self._parts.db, self._user_id, self._session_id)
        self._head = session.head_seq
        self._see(session.head_seq if after is None else min(after, session.head_seq))
        gap = self._gap_before(session.first_seq)
        self._text_is_due = session.status == "running"
        self._has_joined_text = False
        self._behind = session.head_seq > self._seen
        return gap

    async def _rejoin(self) -> Sequence[Line]:
        """Find the place again after lines were lost."""
        return await self.join(self._seen)

    async def _page_of_log(self) -> Sequence[Line]:
        """The next page of what the log has, and a gap for each hole that is in it.

        Numbers may be missing anywhere after a restore, which makes them jump; behind the last
        event, too, for the session's head was read before the log.
        """
        events = await sessions.events_after(
            self._parts.db, self._user_id, self._session_id, after=self._seen, limit=_PAGE
        )
        self._behind = len(events) == _PAGE
        lines: list[Line] = []
        for event in events:
            lines += [*self._gap_before(event.seq), self._line(event)]
        return lines if self._behind else [*lines, *self._gap_before(self._head + 1)]

    def fresh_lines(self) -> Sequence[Line]:
        """What was published since the last time, as far as nothing is missing in between."""
        published = [*self._published, *self._subscription.take()]
        lines: list[Line] = []
        for index, line in enumerate(published):
            if line.seq is not None and line.seq > self._seen + 1:
                # Two publishers overtook each other, or a publication was lost: the log has it.
                # Should it not, somebody has published what was never committed.
                self._behind = line.seq != self._missed
                self._missed = line.seq
                if self._behind:
                    self._published = published[index:]
                    return lines
            if self._is_new(line):
                lines.append(line)
        self._published = []
        return lines

    def _is_new(self, line: Line) -> bool:
        if line.seq is None:
            if line.attempt < self._attempts.get(line.task_id, 0):
                return False
            if not (self._has_joined_text or self._joins_text(line)):
                return False
            self._told = line
            return True
        if line.seq != self._seen + 1:
            return False
        self._see(line.seq)
        self._note_attempt(line.task_id, line.attempt)
        return True

    def _line(self, event: Event) -> Line:
        self._see(event.seq)
        task_id = str(event.task_id or "")
        attempt = event.data.get("attempt", 0) if event.type in _STARTS else 0
        self._note_attempt(task_id, attempt)
        return Line(event.seq, task_id, attempt, event_frame(event))

    def _gap_before(self, first: int) -> Sequence[Line]:
        if first <= self._seen + 1:
            return []
        frame = dumps({"type": "gap", "from": self._seen + 1, "to": first - 1})
        self._see(first - 1)
        return [Line(None, "", 0, frame)]

    def _joins_text(self, line: Line) -> bool:
        """Whether a delta goes on where the client's text ends; from it on all do, in their order.

        Others were in the text so far already, or there was none, and the message's end has it.
        """
        delta = decode_delta(line.frame)
        if delta is None or delta.offset != self._end_of_text(line, delta.message):
            return False
        self._has_joined_text = True
        return True

    def _end_of_text(self, line: Line, message: int) -> int:
        """How much the client has of a message of the line's attempt, in code points."""
        told = self._told
        if told is None or (told.task_id, told.attempt) != (line.task_id, line.attempt):
            return 0
        last = decode_delta(told.frame)
        return last.offset + len(last.text) if last and last.message == message else 0

    async def _unfinished_text(self) -> Sequence[Line]:
        """What the client does not have of the message that streams now, where there is one."""
        running = await sessions.running_task(self._parts.db, self._user_id, self._session_id)
        self._text_is_due = False
        text = None if running is None else await self._text_so_far(*running)
        if text is None or await self._is_to_begin():
            return []
        return self._rest_of(text)

    async def _is_to_begin(self) -> bool:
        """Whether a message began behind what the client has seen: then all of it is to come."""
        events = await sessions.events_after(
            self._parts.db, self._user_id, self._session_id, after=self._seen, limit=_PAGE
        )
        return any(event.type == "message_start" for event in events)

    async def _text_so_far(self, task_id: UUID, attempt: int) -> Line | None:
        self._note_attempt(str(task_id), attempt)
        with contextlib.suppress(QueueUnavailable, TimeoutError):
            async with asyncio.timeout(_TEXT_SECONDS):
                return await text_so_far(self._parts.redis, task_id, attempt)
        return None

    def _rest_of(self, text: Line) -> Sequence[Line]:
        """A text so far without what the client has of it."""
        whole = decode_delta(text.frame)
        if whole is None or (had := self._end_of_text(text, whole.message)) >= len(whole.text):
            return []
        if had:
            rest = Delta(whole.message, had, whole.text[had:])
            frame = delta_frame(UUID(text.task_id), text.attempt, rest)
            text = Line(None, text.task_id, text.attempt, frame)
        self._told = text
        return [text]

    def _see(self, seq: int) -> None:
        self._seen = seq
        self._subscription.seen = seq

    def _note_attempt(self, task_id: str, attempt: int) -> None:
        if attempt <= self._attempts.get(task_id, 0):
            return
        self._attempts[task_id] = attempt
        if len(self._attempts) > _ATTEMPTS_KEPT:
            del self._attempts[next(iter(self._attempts))]
