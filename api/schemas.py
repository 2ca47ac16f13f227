"""What clients send and get, as JSON: checked on the way in, described on the way out."""

from datetime import date, datetime
from typing import Annotated, Any, Literal, TypeAlias, get_args
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter

from api.texts import CHECKED, ClientId, Text, check_object, not_beyond
from shared.allowance import Period
from shared.encoding import JsonObject, dumps
from shared.records import MAX_SAY, MAX_SOUL, NewAction, OnBusy, SessionStatus, TaskStatus

_MAX_METADATA = 16_384


MAX_NUMBER = 2**53
"""The largest number that every client can count to."""


class Strict(BaseModel):
    """A body in which a field that is not known is an error, for it may be a slip of the pen."""

    model_config = ConfigDict(extra="forbid")


# Actions


def _check_not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


ChoiceId = Annotated[str, Field(min_length=1, max_length=500), CHECKED]
"""As the session offered it: a path in the story's own words."""

SayText = Annotated[Text, not_beyond(MAX_SAY), AfterValidator(_check_not_blank)]


class _Action(Strict):
    on_busy: OnBusy = "enqueue"
    client_action_id: ClientId | None = None


class Say(_Action):
    """The user says something; `deep` asks for the stronger model from now on."""

    type: Literal["say"]
    text: SayText
    deep: Literal[True] | None = None


class Choose(_Action):
    """The user takes one of the choices that the session offers."""

    type: Literal["choose"]
    choice_id: ChoiceId


class Continue(_Action):
    """The user lets things go on without saying anything."""

    type: Literal["continue"]


Action = Annotated[Say | Choose | Continue, Field(discriminator="type")]
"""What a client may send; more types will come."""


def new_action(action: Say | Choose | Continue, key: str | None, key_id: str = "") -> NewAction:
    """The action as the store takes it; two that mean the same are the same there.

    Args:
        key: the idempotency key.
        key_id: the API key's id.
    """
    content = action.model_dump(exclude={"on_busy", "client_action_id"}, exclude_none=True)
    return NewAction(content, action.on_busy, key, key_id)


# Frames of a client


class AuthFrame(Strict):
    """The first frame where access control is on."""

    type: Literal["auth"]
    ticket: Annotated[str, Field(max_length=200)]


class ActionFrame(Strict):
    """An action; `id` is the client's own id for it."""

    type: Literal["action"]
    id: ClientId
    action: Action


class CancelFrame(Strict):
    """Cancels a task, by its id or by the client's own id of the action."""

    type: Literal["cancel"]
    task_id: UUID | None = None
    client_action_id: ClientId | None = None


class PongFrame(Strict):
    """Answers a ping."""

    type: Literal["pong"]


ClientFrame: TypeAlias = AuthFrame | ActionFrame | CancelFrame | PongFrame

CLIENT_FRAME: TypeAdapter[ClientFrame] = TypeAdapter(
    Annotated[ClientFrame, Field(discriminator="type")]
)


# Bodies of requests

Priority: TypeAlias = Literal["interactive", "background"]

PRIORITIES: tuple[Priority, ...] = get_args(Priority)
"""By their numbers in the store."""

SessionKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")]
STORY_KEY = r"^[A-Za-z0-9_-]{1,64}$"
StoryKey = Annotated[str, Field(pattern=STORY_KEY)]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"\S"), CHECKED]
Title = Annotated[str, Field(max_length=200), CHECKED]
SoulText = Annotated[Text, not_beyond(MAX_SOUL)]


def _check_size(value: JsonObject) -> JsonObject:
    if len(dumps(value)) > _MAX_METADATA:
        raise ValueError(f"must have at most {_MAX_METADATA} bytes as JSON")
    return value


Metadata = Annotated[dict[str, Any], AfterValidator(check_object), AfterValidator(_check_size)]


class SessionRequest(Strict):
    """A session to be made; `priority` is what the agent says where none is given."""

    agent: Name
    story: Name | None = None
    character_id: UUID | None = None
    key: SessionKey | None = None
    title: Title = ""
    metadata: Metadata = {}
    priority: Priority | None = None


class CharacterRequest(Strict):
    """A character to be made."""

    agent: Name
    name: Name
    soul: SoulText = ""


class CharacterPatch(Strict):
    """What to change of a character."""

    name: Name | None = None
    soul: SoulText | None = None


class CancelRequest(Strict):
    """Which action to cancel; it need not have arrived yet."""

    client_action_id: ClientId


class StoryAction(BaseModel):
    """An action of the story routes."""

    session_id: StoryKey
    user_input: SayText


# Bodies of answers


class StoryBody(BaseModel):
    """A story that an agent plays."""

    name: str
    title: str
    description: str


class AgentBody(BaseModel):
    """An agent and its stories; `options` describes what `metadata` it takes."""

    name: str
    title: str
    description: str
    options: JsonObject | None
    stories: list[StoryBody]


class AgentsBody(BaseModel):
    """What can be played here."""

    agents: list[AgentBody]


class ChoiceBody(BaseModel):
    """A choice that a session offers."""

    id: str
    text: str
    tags: list[str] = []


class SessionBody(BaseModel):
    """A session; `state` and `choices` are as its last finished task left them."""

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
    state: JsonObject
    choices: list[ChoiceBody]
    priority: Priority
    created_at: datetime
    updated_at: datetime


class NewSessionBody(SessionBody):
    """The same, with the task that opens it."""

    task_id: UUID


class SessionsBody(BaseModel):
    """A page of sessions, newest first; `next` is the `before` of the next page."""

    sessions: list[SessionBody]
    next: UUID | None


class AcceptedBody(BaseModel):
    """An action that became a task; `position` counts the tasks before it."""

    task_id: UUID
    session_id: UUID
    status: str
    seq: int
    position: int


class TaskBody(BaseModel):
    """A task."""

    task_id: UUID
    session_id: UUID
    status: TaskStatus
    result: JsonObject | None
    error: JsonObject | None
    usage: JsonObject | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class CancelledBody(BaseModel):
    """The task that was told to stop; null while its action has not arrived."""

    task_id: UUID | None
    session_id: UUID


class EventBody(BaseModel):
    """An entry of a session's log."""

    seq: int
    type: str
    task_id: UUID | None
    at: datetime
    data: JsonObject


class GapBody(BaseModel):
    """Numbers, `from` and `to` included, that no event of the log has (any more)."""

    model_config = ConfigDict(populate_by_name=True)

    first: int = Field(alias="from")
    last: int = Field(alias="to")


class EventsBody(BaseModel):
    """A page of the log, with its holes; `first_seq` is the oldest number that is still kept."""

    events: list[EventBody]
    gaps: list[GapBody]
    head_seq: int
    first_seq: int


class MessageBody(BaseModel):
    """An entry of a transcript."""

    id: int
    parent: int | None
    task_id: UUID
    message: JsonObject
    created_at: datetime


class MessagesBody(BaseModel):
    """Messages of the current branch, oldest first; `next` is the `before` of what was earlier."""

    messages: list[MessageBody]
    next: int | None


class CharacterBody(BaseModel):
    """A character with the newest version of its soul."""

    id: UUID
    agent: str
    name: str
    is_default: bool
    soul: str
    soul_version: int
    created_at: datetime
    updated_at: datetime


class CharactersBody(BaseModel):
    """A user's characters, newest first."""

    characters: list[CharacterBody]


class UsageSumBody(BaseModel):
    """What some model calls used and cost; tokens are those that providers reported.

    `input` is without what was read from or written to a cache. `cost_usd` is by the table of
    prices, null where no call had a price; `estimated_usd` is for calls that broke off before
    their provider had reported them; `billed_usd` is both with the mark-up of their time.
    """

    calls: int
    unreported_calls: int
    unpriced_calls: int
    input: int
    output: int
    cache_read: int
    cache_write: int
    cost_usd: float | None
    estimated_usd: float | None
    billed_usd: float | None


class UsageRowBody(UsageSumBody):
    """The same of one day, agent, model or purpose: of those that were asked for."""

    day: date | None = None
    agent: str | None = None
    model: str | None = None
    purpose: str | None = None


class BudgetBody(BaseModel):
    """A budget that the caller's actions are paid from, in dollars as they are billed.

    `reserved_usd` is for tasks that are open; `renews_at` is null for a budget that does not.
    """

    of: Literal["user", "key"]
    period: Period
    limit_usd: float
    spent_usd: float
    reserved_usd: float
    left_usd: float
    renews_at: datetime | None


class UsageBody(BaseModel):
    """What was used from `since` to `until`, both included, with days as `zone` has them."""

    since: date
    until: date
    zone: str
    total: UsageSumBody
    rows: list[UsageRowBody]
    budgets: list[BudgetBody]


class TicketBody(BaseModel):
    """A ticket, good for `expires_in` seconds."""

    ticket: str
    expires_in: int


StoryTaskStatus: TypeAlias = Literal["PENDING", "STARTED", "RETRY", "SUCCESS", "FAILURE", "REVOKED"]


class StoryAccepted(BaseModel):
    """An action of the story routes that became a task."""

    task_id: UUID
    status: Literal["processing"]


class StoryResult(BaseModel):
    """What a story task gave."""

    response: str
    decision: JsonObject | None
    updated_state: JsonObject


class StoryStatus(BaseModel):
    """How far a story task is."""

    status: StoryTaskStatus
    result: StoryResult | None


class HealthBody(BaseModel):
    """All is well."""

    status: Literal["ok"]
