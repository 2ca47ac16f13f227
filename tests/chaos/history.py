"""What a run leaves behind, as plain data: all that the checker judges by.

It comes from outside the product: what clients sent and got, the model's log, the recorder's log,
the driver's own deeds, and the tables as plain SQL gives them. Times are in seconds since 1970.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Frame: TypeAlias = dict[str, Any]

TERMINAL = frozenset({"task_completed", "task_failed", "task_cancelled", "task_dead"})

BEGINNINGS = frozenset({"task_started", "task_restarted"})
"""What an attempt begins with. One that dies before its first write has told nothing: then the
first that is heard of its task is a restart."""


@dataclass(frozen=True, slots=True)
class Action:
    """What a client meant to do, once.

    Args:
        key: its client_action_id, which is also the name of the model's rule for it.
        player: whose; each player has one session.
        mark: what stands in its text and nowhere else; "" for a choice.
        turns: how many model calls answer it where nothing goes wrong.
        letters: marks of what its tools do outside, each once.
        notes: marks of what its tools do to the session's state, each once.
        may_fail: its model is told to break in a way that ends the task as failed.
        is_cancelled: its client asks to cancel it.
    """

    key: str
    player: str
    kind: Literal["say", "choose"]
    on_busy: str
    mark: str
    turns: int
    letters: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    may_fail: bool = False
    is_cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What one way of sending an action came to.

    `refused` is a 409 to an action that does not wait; `doubtful` says that an earlier try of the
    same way may have been accepted all the same. `wrong` is an answer that no client deserves.
    """

    key: str
    sent: float
    at: float
    verdict: Literal["accepted", "refused", "wrong"]
    task_id: str | None = None
    doubtful: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Connection:
    """One WebSocket: the `after` that it was opened with, and each frame in the order it came."""

    session_id: str
    after: int | None
    frames: list[Frame] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Call:
    """A call that the model got: from which worker, for which action, at which turn of it."""

    worker: str
    rule: str
    turn: int
    began: float
    ended: float | None
    end: str | None


@dataclass(frozen=True, slots=True)
class Letter:
    """A request that the recorder got; it has its effect once for each idempotency key."""

    mark: str
    key: str


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault: what was struck and when; `until` is when it served again, None if it never did."""

    kind: str
    target: str
    at: float
    until: float | None = None


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session's row, as far as it matters."""

    id: str
    next_event: int
    open_tasks: int
    head_message: int | None
    state: Frame
    view: Frame


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A task's row; `seq` numbers a session's tasks as they were accepted."""

    session_id: str
    seq: int
    id: str
    client_action_id: str | None
    status: str
    on_busy: str
    queued_seq: int
    cancel_requested: bool = False


@dataclass(frozen=True, slots=True)
class EventRow:
    """A row of the log."""

    session_id: str
    seq: int
    task_id: str | None
    type: str
    data: Frame
    at: float


@dataclass(frozen=True, slots=True)
class MessageRow:
    """A row of a transcript."""

    session_id: str
    no: int
    parent: int | None
    task_id: str
    message: Frame


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables at the end."""

    sessions: list[SessionRow] = field(default_factory=list)
    tasks: list[TaskRow] = field(default_factory=list)
    events: list[EventRow] = field(default_factory=list)
    messages: list[MessageRow] = field(default_factory=list)


@dataclass(slots=True)
class History:
    """Everything. `players` gives each player's session; `workers` names those that can be struck.

    `counter` is a public variable that each completed choice of a story raises by one from zero.
    """

    players: dict[str, str] = field(default_factory=dict)
    workers: list[str] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    letters: list[Letter] = field(default_factory=list)
    strikes: list[Strike] = field(default_factory=list)
    tables: Tables = field(default_factory=Tables)
    counter: str = "depth"
