"""Judges a history: what was lost, doubled, out of order, missing from a log or never ended.

It knows the public contract and the names of tables, and nothing of the product's code: none of it
is imported here.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias, get_args

from tests.chaos.history import (
    BEGINNINGS,
    TERMINAL,
    Action,
    Connection,
    EventRow,
    Frame,
    History,
    MessageRow,
    SessionRow,
    TaskRow,
)

DefectKind: TypeAlias = Literal["lost", "doubled", "disordered", "gaps", "terminal_missing"]
KINDS: tuple[DefectKind, ...] = get_args(DefectKind)

LETTER_TOOL = "post_letter"
UNKNOWN = "unknown"
"""What the result of an external call says that may or may not have happened."""


@dataclass(frozen=True, slots=True, order=True)
class Defect:
    """One broken promise."""

    kind: DefectKind
    what: str


def check(history: History) -> list[Defect]:
    """All that is wrong with a history, each thing once."""
    case = _Case(history)
    found: set[Defect] = set()
    for session in history.tables.sessions:
        found.update(_log(case, session))
        found.update(_transcript(case, session))
        found.update(_order_of_ends(case, session))
        found.update(_order_of_interrupts(case, session))
        found.update(_counter(case, session))
        found.update(_notes(case, session))
    for task in history.tables.tasks:
        found.update(_end(case, task))
    for connection in history.connections:
        found.update(_connection(case, connection))
    for player, session_id in history.players.items():
        found.update(_told(case, session_id))
        found.update(_order_of_acceptance(case, player))
    for action in history.actions:
        found.update(_acceptance(case, action))
        found.update(_effects(case, action))
    known = {action.key for action in history.actions}
    found.update(
        Defect("doubled", f"a task that nobody sent: {task.client_action_id}")
        for task in history.tables.tasks
        if task.client_action_id is not None and task.client_action_id not in known
    )
    return sorted(found)


class _Case:
    """A history with what is often asked for at hand."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.actions = {action.key: action for action in history.actions}
        self.tasks = {task.id: task for task in history.tables.tasks}
        self.tasks_of_key: dict[str, list[TaskRow]] = defaultdict(list)
        self.tasks_of_session: dict[str, list[TaskRow]] = defaultdict(list)
        for task in sorted(history.tables.tasks, key=lambda task: task.seq):
            self.tasks_of_session[task.session_id].append(task)
            if task.client_action_id is not None:
                self.tasks_of_key[task.client_action_id].append(task)
        self.events: dict[str, list[EventRow]] = defaultdict(list)
        self.events_of_task: dict[str, list[EventRow]] = defaultdict(list)
        self.row: dict[tuple[str, int], EventRow] = {}
        for event in sorted(history.tables.events, key=lambda event: event.seq):
            self.events[event.session_id].append(event)
            self.row[event.session_id, event.seq] = event
            if event.task_id is not None:
                self.events_of_task[event.task_id].append(event)
        self.messages: dict[str, list[MessageRow]] = defaultdict(list)
        for message in sorted(history.tables.messages, key=lambda message: message.no):
            self.messages[message.session_id].append(message)
        self.joiners = self._joiners()

    def _joiners(self) -> dict[str, set[str]]:
        """The tasks that each run took in, whether it answered them or not."""
        found: dict[str, set[str]] = defaultdict(set)
        for task in self.tasks.values():
            if (root := self.root_of(task)) is not None:
                found[root].add(task.id)
        for event in self.history.tables.events:
            if event.type == "message_end" and event.task_id and "joined" in event.data:
                found[event.task_id].add(event.data["joined"])
        return found

    def action_of(self, task: TaskRow) -> Action | None:
        """The action that became a task; None for one that the server made."""
        return self.actions.get(task.client_action_id or "")

    def end_of(self, task: TaskRow) -> EventRow | None:
        """A task's terminal event, the first of them."""
        ends = (event for event in self.events_of_task[task.id] if event.type in TERMINAL)
        return next(ends, None)

    def root_of(self, task: TaskRow) -> str | None:
        """The task whose run answered this one, if it was another's."""
        end = self.end_of(task)
        if end is None:
            return None
        data: Frame = end.data.get("result") or end.data
        root = data.get("joined")
        return root if isinstance(root, str) else None

    def is_applied(self, task: TaskRow) -> bool:
        """Whether a task has done what it was accepted for."""
        root = self.tasks.get(self.root_of(task) or task.id)
        return task.status == "completed" and root is not None and root.status == "completed"

    def is_alone(self, task: TaskRow) -> bool:
        """Whether a task ran by itself, so that all it does is its own action's."""
        return self.root_of(task) is None and not self.joiners[task.id]

    def may_have_failed(self, task: TaskRow) -> bool:
        """Whether a model that ended the task as failed was told to."""
        run = {task.id, self.root_of(task) or task.id}
        for one in list(run):
            run |= self.joiners[one]
        told = (self.action_of(self.tasks[one]) for one in run if one in self.tasks)
        return any(action is not None and action.may_fail for action in told)

    def may_be_cancelled(self, task: TaskRow) -> bool:
        """Whether a client asked for a task's end, itself or by an interrupt."""
        for one in {task.id, self.root_of(task) or task.id}:
            row = self.tasks.get(one, task)
            action = self.action_of(row)
            if action is not None and action.is_cancelled:
                return True
            if any(
                other.on_busy == "interrupt" and other.seq > row.seq
                for other in self.tasks_of_session[row.session_id]
            ):
                return True
        return False


# -- the log -------------------------------------------------------------------------------------


def _log(case: _Case, session: SessionRow) -> Iterator[Defect]:
    """A session's log is 1, 2, 3, ..., and tells nothing twice."""
    events = case.events[session.id]
    yield from _numbers([event.seq for event in events], session.next_event - 1, "the log")
    told: Counter[tuple[object, ...]] = Counter()
    attempts: dict[str | None, int] = defaultdict(int)
    for event in events:
        if event.type == "message_end":
            told[event.task_id, "message", event.data["number"]] += 1
        elif event.type == "tool_execution_end":
            told[event.task_id, "call", event.data["tool_call_id"]] += 1
        elif event.type in {"task_queued", "agent_start", "agent_end"}:
            told[event.task_id, event.type] += 1
        elif event.type in BEGINNINGS:
            if event.data["attempt"] <= attempts[event.task_id]:
                yield Defect("doubled", f"attempt {event.data['attempt']} of {event.task_id}")
            attempts[event.task_id] = event.data["attempt"]
    yield from (Defect("doubled", f"told twice: {what}") for what, n in told.items() if n > 1)


def _numbers(numbers: list[int], last: int, where: str) -> Iterator[Defect]:
    for number, count in Counter(numbers).items():
        if count > 1:
            yield Defect("doubled", f"{where} has {number} {count} times")
    missing = set(range(1, last + 1)) - set(numbers)
    if missing:
        yield Defect("gaps", f"{where} lacks {sorted(missing)[:5]}")
    if numbers and max(numbers) > last:
        yield Defect("gaps", f"{where} goes on behind its end {last}")


def _end(case: _Case, task: TaskRow) -> Iterator[Defect]:
    """A task has one terminal event, which is its last and says what its row says."""
    name = f"task {task.client_action_id or task.id}"
    events = case.events_of_task[task.id]
    ends = [event for event in events if event.type in TERMINAL]
    if [event.type for event in ends] != [f"task_{task.status}"]:
        found = [event.type for event in ends]
        yield Defect("terminal_missing", f"{name} is {task.status} with {found}")
    elif events[-1] != ends[0]:
        yield Defect("disordered", f"{name} goes on after its end")
    if not events or (events[0].type, events[0].seq) != ("task_queued", task.queued_seq):
        yield Defect("disordered", f"{name} does not begin with its task_queued")
    if not ends:
        yield Defect("lost", f"{name} never ended")
    if task.status == "dead":
        yield Defect("lost", f"{name} was given up")
    if task.status == "failed" and not case.may_have_failed(task):
        yield Defect("lost", f"{name} failed: {ends[0].data if ends else None}")
    if task.status == "cancelled" and not case.may_be_cancelled(task):
        yield Defect("lost", f"{name} was cancelled by nobody")


# -- what clients saw ----------------------------------------------------------------------------


def _connection(case: _Case, connection: Connection) -> Iterator[Defect]:
    """Each number once, in order, none left out unsaid, and each as it stands in the log."""
    name = f"a client of {connection.session_id}"
    expected = None if connection.after is None else connection.after + 1
    seen: set[int] = set()
    for frame in connection.frames:
        if frame["type"] == "gap":
            if expected is not None and frame["from"] > expected:
                yield Defect("gaps", f"{name}: {expected} is in no gap")
            expected = frame["to"] + 1
            continue
        seq = frame.get("seq")
        if seq is None:
            continue
        if seq in seen:
            yield Defect("doubled", f"{name} saw {seq} twice")
        elif expected is not None and seq < expected:
            yield Defect("disordered", f"{name} saw {seq} after {expected - 1}")
        elif expected is not None and seq > expected:
            yield Defect("gaps", f"{name} saw {seq} after {expected - 1}")
        seen.add(seq)
        expected = max(expected or 0, seq + 1)
        row = case.row.get((connection.session_id, seq))
        if row is None or (row.type, row.task_id, row.data) != (
            frame["type"],
            frame["task_id"],
            frame["data"],
        ):
            yield Defect("lost", f"{name} saw {seq} {frame['type']}, which is not in the log")


def _told(case: _Case, session_id: str) -> Iterator[Defect]:
    """A client that came back each time has seen everything up to the last end."""
    seen: set[int] = set()
    for connection in case.history.connections:
        if connection.session_id == session_id:
            for frame in connection.frames:
                if frame["type"] == "gap":
                    seen.update(range(frame["from"], frame["to"] + 1))
                elif "seq" in frame:
                    seen.add(frame["seq"])
    ends = [end.seq for task in case.tasks_of_session[session_id] if (end := case.end_of(task))]
    missing = set(range(1, max(ends, default=0) + 1)) - seen
    if missing & set(ends):
        yield Defect("lost", f"clients of {session_id} saw no end at {sorted(missing)[:5]}")
    if missing - set(ends):
        yield Defect("gaps", f"clients of {session_id} never saw {sorted(missing)[:5]}")


# -- acceptance ----------------------------------------------------------------------------------


def _acceptance(case: _Case, action: Action) -> Iterator[Defect]:
    """One action is one task, whichever way and however often it was sent."""
    answers = [answer for answer in case.history.answers if answer.key == action.key]
    rows = {task.id for task in case.tasks_of_key[action.key]}
    accepted = {answer.task_id for answer in answers if answer.verdict == "accepted"}
    if len(accepted) > 1 or len(rows) > 1:
        yield Defect("doubled", f"{action.key} is {len(accepted | rows)} tasks")
    elif accepted - rows:
        yield Defect("lost", f"{action.key} was accepted and is no task")
    refused = [answer for answer in answers if answer.verdict == "refused"]
    if refused and not accepted and rows and not any(answer.doubtful for answer in refused):
        yield Defect("doubled", f"{action.key} was refused and is a task")
    for answer in answers:
        if answer.verdict == "wrong":
            yield Defect("lost", f"{action.key} was answered {answer.detail}")


def _order_of_acceptance(case: _Case, player: str) -> Iterator[Defect]:
    """What was sent after another action's answer comes behind it."""
    sent: dict[str, float] = {}
    answered: dict[str, float] = {}
    for answer in case.history.answers:
        if case.actions[answer.key].player == player and answer.verdict == "accepted":
            sent[answer.key] = min(answer.sent, sent.get(answer.key, answer.sent))
            answered[answer.key] = min(answer.at, answered.get(answer.key, answer.at))
    place = {key: case.tasks_of_key[key][0].seq for key in sent if case.tasks_of_key[key]}
    for earlier, at in answered.items():
        for later, began in sent.items():
            if at < began and place.get(earlier, 0) > place.get(later, 0) > 0:
                yield Defect("disordered", f"{later} was accepted before {earlier}")


def _order_of_ends(case: _Case, session: SessionRow) -> Iterator[Defect]:
    """Tasks end in the order in which they were accepted, but for those that jump the queue."""
    waiting = [
        (end.seq, task)
        for task in case.tasks_of_session[session.id]
        if (end := case.end_of(task)) is not None
        and task.on_busy != "interrupt"
        and task.status != "cancelled"
        and not task.cancel_requested
        and case.root_of(task) is None
    ]
    waiting.sort(key=lambda pair: pair[0])
    for (_, one), (_, other) in pairwise(waiting):
        if one.seq > other.seq:
            yield Defect("disordered", f"{_name(one)} ended before {_name(other)}")


def _order_of_interrupts(case: _Case, session: SessionRow) -> Iterator[Defect]:
    """An interrupt ends before all that had not begun when it was accepted."""
    tasks = case.tasks_of_session[session.id]
    for interrupt in (task for task in tasks if task.on_busy == "interrupt"):
        end = case.end_of(interrupt)
        if end is None or interrupt.status == "cancelled" or interrupt.cancel_requested:
            continue
        for task in tasks:
            began = next((e for e in case.events_of_task[task.id] if e.type in BEGINNINGS), end)
            other = case.end_of(task)
            late = began.seq > interrupt.queued_seq and not task.cancel_requested
            if other is None or task.seq > interrupt.seq or task.on_busy == "interrupt":
                continue
            if late and other.seq < end.seq and case.is_alone(task):
                yield Defect("disordered", f"{_name(task)} ran before {_name(interrupt)}")


def _name(task: TaskRow) -> str:
    return task.client_action_id or f"the opening of {task.session_id}"


# -- effects -------------------------------------------------------------------------------------


def _effects(case: _Case, action: Action) -> Iterator[Defect]:
    """An action's words stand in the transcript once; what it did outside was done once."""
    rows = case.tasks_of_key[action.key]
    session_id = case.history.players.get(action.player, "")
    said = sum(_said(message.message).count(action.mark) for message in case.messages[session_id])
    if action.mark and said > 1:
        yield Defect("doubled", f"the words of {action.key} stand there {said} times")
    if action.mark and said < 1 and rows and case.is_applied(rows[0]):
        yield Defect("lost", f"the words of {action.key} are not in the transcript")
    for mark in action.letters:
        keys = {letter.key for letter in case.history.letters if letter.mark == mark}
        if len(keys) > 1:
            yield Defect("doubled", f"the letter {mark} was posted {len(keys)} times")
    if rows:
        yield from _letters(case, action, rows[0])


def _said(message: Frame) -> str:
    if message["role"] != "user":
        return ""
    content = message["content"]
    return content if isinstance(content, str) else "".join(p.get("text", "") for p in content)


def _letters(case: _Case, action: Action, task: TaskRow) -> Iterator[Defect]:
    """What a tool says it posted was posted; what it does not say it calls unknown."""
    results = [
        message.message
        for message in case.messages[task.session_id]
        if message.message["role"] == "tool_result" and message.message["tool_name"] == LETTER_TOOL
    ]
    posted = {one["details"]["mark"] for one in results if not one["is_error"]}
    arrived = {letter.mark for letter in case.history.letters}
    for mark in action.letters:
        if mark in posted and mark not in arrived:
            yield Defect("lost", f"the letter {mark} was posted and never came")
    if case.is_alone(task) and case.is_applied(task):
        unknown = sum(
            message.task_id == task.id and message.message in results and _is_unknown(message)
            for message in case.messages[task.session_id]
        )
        left = set(action.letters) - posted
        if len(left) > unknown:
            yield Defect("lost", f"the letters {sorted(left)} of {action.key} were not posted")


def _is_unknown(message: MessageRow) -> bool:
    content = message.message["content"]
    return bool(message.message["is_error"]) and any(UNKNOWN in p.get("text", "") for p in content)


def _notes(case: _Case, session: SessionRow) -> Iterator[Defect]:
    """What tools changed in the state is there once for each completed task, in their order."""
    notes: list[str] = session.state.get("notes", [])
    counts = Counter(notes)
    owner: dict[str, int] = {}
    for task in case.tasks_of_session[session.id]:
        action, end = case.action_of(task), case.end_of(task)
        if action is None or end is None:
            continue
        owner.update(dict.fromkeys(action.notes, end.seq))
        for mark in action.notes:
            applied = case.is_applied(task)
            if counts[mark] > 1 or (counts[mark] and not applied):
                yield Defect("doubled", f"the note {mark} of {task.status} {action.key}")
            if not counts[mark] and applied and case.is_alone(task):
                yield Defect("lost", f"the note {mark} of {action.key}")
    ends = [owner[mark] for mark in notes if mark in owner]
    if ends != sorted(ends):
        yield Defect("disordered", f"the notes of {session.id} are {notes}")


def _counter(case: _Case, session: SessionRow) -> Iterator[Defect]:
    """A story's counter is the number of choices that were taken."""
    variables = session.view.get("state", {}).get("variables", {})
    if case.history.counter not in variables:
        return
    value = variables[case.history.counter]
    taken = sum(
        task.status == "completed" and action is not None and action.kind == "choose"
        for task in case.tasks_of_session[session.id]
        for action in [case.action_of(task)]
    )
    if value != taken:
        kind: DefectKind = "lost" if value < taken else "doubled"
        yield Defect(kind, f"{session.id} counts {value} choices, {taken} were taken")


def _transcript(case: _Case, session: SessionRow) -> Iterator[Defect]:
    """The current branch holds all messages, task after task as the tasks ended."""
    messages = case.messages[session.id]
    yield from _numbers([m.no for m in messages], len(messages), f"the transcript of {session.id}")
    parents = {message.no: message.parent for message in messages}
    path: list[int] = []
    no = session.head_message
    while no is not None and no in parents and len(path) <= len(parents):
        path.append(no)
        no = parents[no]
    if set(path) != set(parents):
        yield Defect("lost", f"messages of {session.id} are on no branch")
    ends = [case.end_of(case.tasks[m.task_id]) for m in messages if m.task_id in case.tasks]
    order = [end.seq for end in ends if end is not None]
    if order != sorted(order):
        yield Defect("disordered", f"the transcript of {session.id}")


def count(defects: Iterable[Defect]) -> dict[DefectKind, int]:
    """How many defects there are of each kind."""
    found = Counter(defect.kind for defect in defects)
    return {kind: found[kind] for kind in KINDS}
