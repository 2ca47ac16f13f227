"""What the store gives and takes: frozen records, one per thing of the glossary."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Literal, TypeAlias
from uuid import UUID

from shared.consolidation import Consolidated
from shared.encoding import JsonObject

TaskStatus: TypeAlias = Literal["queued", "running", "completed", "failed", "cancelled", "dead"]
SessionStatus: TypeAlias = Literal["idle", "queued", "running"]
OnBusy: TypeAlias = Literal["enqueue", "steer", "follow_up", "interrupt", "collect", "reject"]
"""What becomes of an action while a task of its session is open."""

MAX_SAY = 16_000
"""Characters of what one action may say."""

MAX_SOUL = 20_000
"""Characters of a soul, which goes into every request of its character."""

JoinMode: TypeAlias = Literal["steer", "follow_up"]
"""How an action may join a task that runs: at its next turn, or where it would end."""

TERMINAL_EVENTS = {
    "completed": "task_completed",
    "failed": "task_failed",
    "cancelled": "task_cancelled",
    "dead": "task_dead",
}
"""The event that ends a task of each final status; each task gets exactly one."""


EVENT_VERSION = 1
STEP_VERSION = 1
"""What this release writes into the rows of events and of the journal, and the highest that it can
read. It is raised where an older worker would misread such a row when it takes a task over."""


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a session's log; `seq` counts 1, 2, 3, ... without gaps."""

    seq: int
    type: str
    task_id: UUID | None
    at: datetime
    data: JsonObject


@dataclass(frozen=True, slots=True)
class Session:
    """One conversation or playthrough, as its owner may see it."""

    id: UUID
    key: str | None
    agent: str
    story: str | None
    character_id: UUID
    title: str
    metadata: JsonObject
    status: SessionStatus
    head_seq: int
    first_seq: int
    view: JsonObject
    created_at: datetime
    updated_at: datetime
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Task:
    """The durable record of one accepted action.

    `leased`: whether a worker holds its session now; a running task without one waits for the
    next attempt.
    """

    id: UUID
    session_id: UUID
    status: TaskStatus
    claims: int
    result: JsonObject | None
    error: JsonObject | None
    usage: JsonObject | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    leased: bool = False


@dataclass(frozen=True, slots=True)
class NewAction:
    """An action as a client sent it, already validated; `key_id` is the API key's, if any."""

    action: JsonObject
    on_busy: OnBusy = "enqueue"
    client_action_id: str | None = None
    key_id: str = ""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of an action: its task, and the events to publish now that it is committed.

    `fresh` is false where the same key had been accepted before; `events` is empty then.
    `interrupts` is the running task that was told to make way; `joins` says that the action may
    join one that runs; `level` is where in the queue its session is to be hinted.
    """

    task_id: UUID
    session_id: UUID
    seq: int
    position: int
    status: TaskStatus
    fresh: bool
    events: tuple[Event, ...] = ()
    interrupts: UUID | None = None
    joins: bool = False
    level: int = 0


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session to be made; `story` and its hash are from the catalog.

    `priority` is 0 where somebody waits for the answers, 1 in the background. `key` is the
    caller's own name for it; `key_id` names the API key that it is made with, '' for none.
    """

    agent: str
    story: str | None = None
    story_hash: str | None = None
    character_id: UUID | None = None
    key: str | None = None
    title: str = ""
    metadata: JsonObject = field(default_factory=dict)
    priority: int = 0
    key_id: str = ""


@dataclass(frozen=True, slots=True)
class Character:
    """A durable persona of a user, with the newest version of its soul."""

    id: UUID
    agent: str
    name: str
    is_default: bool
    soul: str
    soul_version: int
    created_at: datetime
    updated_at: datetime


SoulSource: TypeAlias = Literal["user", "agent", "restored"]
"""Who wrote a version of a soul: its user, the agent by its tool, or an undo or a rollback."""


@dataclass(frozen=True, slots=True)
class SoulVersion:
    """One version of a character's soul, 1, 2, 3, ...; none is ever changed.

    `task_id` is the task whose agent wrote it, `restored` the version whose text it took back.
    """

    version: int
    soul: str
    source: SoulSource
    task_id: UUID | None
    restored: int | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class SoulEdit:
    """A section of a soul by its heading, and its new text; an empty one takes the section out."""

    section: str
    text: str


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key as far as it is kept: not the key itself."""

    id: UUID
    user_id: str
    label: str
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """An agent or a story as a worker announced it; `details` holds what its kind has beside."""

    kind: Literal["agent", "story"]
    name: str
    title: str
    description: str = ""
    details: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Message:
    """One entry of a transcript; `no` numbers the messages of a session."""

    no: int
    parent: int | None
    task_id: UUID
    message: JsonObject
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Fence:
    """A worker's right to write to one session; every write of a worker names it."""

    session_id: UUID
    epoch: int
    token: UUID


@dataclass(frozen=True, slots=True)
class Step:
    """One journalled model or tool call of a task."""

    no: int
    kind: str
    name: str
    effect: str
    input_hash: str
    status: Literal["started", "done", "unknown"]
    output: JsonObject | None = None


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event that has no number yet; of the running task, unless another is named."""

    type: str
    data: JsonObject
    task_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Joined:
    """An accepted `say` that a running task took in, and answers with its own.

    `no` says where: 0 for one that was collected into the task before it began, else the number
    of the place, 1, 2, ..., at which the run asked for more.
    """

    task_id: UUID
    text: str
    no: int


@dataclass(frozen=True, slots=True)
class KnownBranch:
    """How much of a session's transcript a caller holds: the branch up to the message `head`.

    `generation` is that of the claim it is from: after a restore the same number may be of another
    message, and the generation is a new one.
    """

    generation: int
    head: int


@dataclass(frozen=True, slots=True)
class Claim:
    """A session under lease, and its head-of-line task: all that a run starts from.

    `messages` are the newest of the current branch; where `after` is a number they follow at once
    on that message, which the caller said it holds, and may be none.

    `steps`, `events` and `joined` are those that earlier attempts of the task left behind; the
    texts of joined tasks with the number 0 are in `action` already. `open_tasks` counts all of the
    session's, this one among them. `key_id` names the API key that it came with, '' for none;
    `left_usd` is what may still be spent on it, None for anything; with `economy` cheaper models
    should answer, for most of a budget is spent.
    """

    fence: Fence
    user_id: str
    agent: str
    story: str | None
    story_hash: str | None
    character: JsonObject
    metadata: JsonObject
    state: JsonObject
    view: JsonObject
    next_message: int
    head_message: int | None
    task_id: UUID
    task_seq: int
    action: JsonObject
    attempt: int
    attempts: int
    cancel_requested: bool
    messages: Sequence[JsonObject]
    steps: Sequence[Step] = ()
    events: Sequence[Event] = ()
    joined: Sequence[Joined] = ()
    open_tasks: int = 1
    generation: int = 1
    after: int | None = None
    key_id: str = ""
    left_usd: Decimal | None = None
    economy: bool = False


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One call of a model, as the ledger keeps it.

    `no` counts the calls of an attempt: 0, 1, 2, ...; `step` is the journal's number, if the call
    has one. The tokens are those that the provider reported; `reported` says whether it did.
    `lost` is a call of an earlier attempt that nobody heard the end of. `usd` is what the tokens
    cost by the table of prices that `prices` names, None where that does not know the model;
    `estimated_usd` what a call cost, about, that broke off before the provider reported.
    """

    no: int
    model: str
    purpose: str
    outcome: Literal["done", "error", "aborted", "lost"]
    reported: bool
    step: int | None = None
    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    usd: Decimal | None = None
    estimated_usd: Decimal = Decimal(0)
    prices: str | None = None
    mark_up: Decimal = Decimal(1)


@dataclass(frozen=True, slots=True)
class Lasting:
    """What a completed task leaves for other sessions, and for the memory of its own.

    `soul_edits` go into the newest version of the character's soul. With `window_cut` the session
    takes that version from its next task on; else it keeps the one that it has. With `remembers`
    the session is to be read for what is worth knowing; `consolidated` is what came of doing so.
    """

    soul_edits: Sequence[SoulEdit] = ()
    window_cut: bool = False
    remembers: bool = False
    consolidated: Consolidated | None = None


NOTHING_LASTING = Lasting()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a task ended, and all that its end changes, in one transaction.

    `joined` are the tasks that end with it; their terminal events are among `events`. `ledger` are
    calls of models that no write before has entered.
    """

    status: Literal["completed", "failed", "cancelled", "dead"]
    events: Sequence[NewEvent]
    messages: Sequence[JsonObject] = ()
    steps: Sequence[Step] = ()
    state: JsonObject | None = None
    view: JsonObject | None = None
    result: JsonObject | None = None
    error: JsonObject | None = None
    usage: JsonObject | None = None
    joined: Sequence[UUID] = ()
    lasting: Lasting = NOTHING_LASTING
    ledger: Sequence[LedgerEntry] = ()


@dataclass(frozen=True, slots=True)
class Written:
    """The numbers and the time that a fenced write gave to its events."""

    first_seq: int
    at: datetime
    open_tasks: int
