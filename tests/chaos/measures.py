"""What a history says about cost and speed: model calls paid for, and time to recover."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.chaos.history import TERMINAL, Call, EventRow, History, Strike

PROGRESS = "task_restarted"
WRITTEN_SECONDS = 0.5
"""How long writing an answer down may take; a fault within it may have lost the answer."""
UNREAD = "unread, frozen"
"""What lost an answer that came to its end at a worker that stood frozen, for longer than its
lease or until it was killed."""
KILLS = frozenset({"kill", "freeze"})


@dataclass(frozen=True, slots=True)
class Paid:
    """Model calls that were answered whole, and how many of them a faultless run needs.

    `unread` counts apart those whose end came to a worker that stood frozen: nobody could have
    kept them. A provider would bill them all the same.
    """

    completed: int
    needed: int
    unread: int = 0

    @property
    def ratio(self) -> float:
        """What was paid over what was needed; 1 where nothing was needed."""
        return self.completed / self.needed if self.needed else 1.0


def paid(history: History) -> Paid:
    """Each turn of each action is needed once; an answer that a fault spoilt was not paid for."""
    answered = _answered(history)
    unread = sum(_lost_by(history, call) == UNREAD for call in _again(answered))
    return Paid(sum(map(len, answered.values())) - unread, len(answered), unread)


def wasted(history: History) -> Counter[str]:
    """Answers that were had once more than needed, by what lost them.

    It is the fault that held or struck the worker, or Postgres, when the answer should have been
    written down; "other" where there was none.
    """
    return Counter(_lost_by(history, call) for call in _again(_answered(history)))


def _answered(history: History) -> dict[tuple[str, int], list[Call]]:
    """The calls that were answered whole, by action and turn."""
    known = {action.key for action in history.actions}
    answered: dict[tuple[str, int], list[Call]] = defaultdict(list)
    for call in history.calls:
        if call.end == "completed" and call.rule.partition("/")[0] in known:
            answered[call.rule, call.turn].append(call)
    return answered


def _again(answered: Mapping[tuple[str, int], Sequence[Call]]) -> Iterator[Call]:
    """All answers but the last of each turn."""
    for calls in answered.values():
        yield from sorted(calls, key=_ended)[:-1]


def _ended(call: Call) -> float:
    return call.began if call.ended is None else call.ended


def _lost_by(history: History, call: Call) -> str:
    ended = _ended(call)
    if any(_kept_unread(history, strike, call) for strike in history.strikes):
        return UNREAD
    struck = [
        strike.kind
        for strike in history.strikes
        if strike.target in {call.worker, "postgres"}
        and strike.at - WRITTEN_SECONDS < ended <= _lasts(strike, ended) + WRITTEN_SECONDS
    ]
    return struck[-1] if struck else "other"


def _kept_unread(history: History, strike: Strike, call: Call) -> bool:
    """Whether a worker stood frozen when the call ended, and lost its lease or its life with it."""
    ended = _ended(call)
    until = _lasts(strike, ended)
    if strike.target != call.worker or not strike.at < ended < until:
        return False
    return strike.kind == "freeze" or (
        strike.kind == "blackout"
        and any(
            other.kind == "kill"
            and other.target == call.worker
            and until <= other.at < until + WRITTEN_SECONDS
            for other in history.strikes
        )
    )


def _lasts(strike: Strike, at: float) -> float:
    return at if strike.until is None else strike.until


@dataclass(frozen=True, slots=True)
class Recovery:
    """A task that a struck worker was running, and how long until another attempt went on.

    `clear`: another worker served all the while, and neither Postgres nor Redis was struck.
    """

    kind: str
    target: str
    task_id: str
    at: float
    seconds: float
    clear: bool


def recoveries(history: History) -> list[Recovery]:
    """Each task that a worker was running when it was killed or frozen.

    A worker has a key of its own, so the model's log says which of them ran a task last.
    """
    tasks = {t.client_action_id: t.id for t in history.tables.tasks if t.client_action_id}
    events: dict[str, list[EventRow]] = defaultdict(list)
    for event in sorted(history.tables.events, key=lambda event: event.seq):
        if event.task_id is not None:
            events[event.task_id].append(event)
    calls: dict[str, list[Call]] = defaultdict(list)
    for call in sorted(history.calls, key=lambda call: call.began):
        if (task_id := tasks.get(call.rule.partition("/")[0])) is not None:
            calls[task_id].append(call)
    found = []
    for strike in history.strikes:
        if strike.kind in KILLS and strike.target in history.workers:
            for task_id, made in calls.items():
                if _ran(strike, made, events[task_id]):
                    after = [event for event in events[task_id] if event.at > strike.at]
                    again = next((event for event in after if event.type == PROGRESS), None)
                    if again is not None:
                        found.append(_recovery(history, strike, task_id, again.at))
    return found


def _ran(strike: Strike, calls: Sequence[Call], events: Sequence[EventRow]) -> bool:
    """Whether the struck worker had the task: its last call before was that worker's, no attempt
    began after it, and the task had not ended."""
    before = [call for call in calls if call.began <= strike.at]
    if not before or before[-1].worker != strike.target:
        return False
    call = before[-1]
    return not any(
        event.type in TERMINAL or (event.type == PROGRESS and event.at > call.began)
        for event in events
        if event.at <= strike.at
    )


def _recovery(history: History, strike: Strike, task_id: str, until: float) -> Recovery:
    others = [worker for worker in history.workers if worker != strike.target]
    struck = [
        other.target
        for other in history.strikes
        if other is not strike
        and other.at < until
        and (other.until is None or other.until > strike.at)
    ]
    clear = any(worker not in struck for worker in others) and not {"postgres", "redis"} & set(
        struck
    )
    return Recovery(
        strike.kind, strike.target, task_id, strike.at, round(until - strike.at, 3), clear
    )


def percentile(values: Sequence[float], share: int) -> float:
    """The value below which `share` percent lie, 0 where there is none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * share // 100)] if ordered else 0.0
