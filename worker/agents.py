"""What a registered agent is: the seam between the task runner and the agents of a deployment."""

import importlib
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias
from uuid import UUID

from agent_core import (
    AbortSignal,
    AgentEvent,
    CallLimiter,
    Message,
    Model,
    StepJournal,
    StreamFn,
    UserMessage,
    limited,
)
from shared.consolidation import Material
from shared.encoding import JsonObject
from shared.errors import FiresideError, SettingsError
from shared.memories import MemoryMatches
from shared.records import NOTHING_LASTING, CatalogEntry, Lasting
from shared.settings import Settings
from shared.store.batches import Answered
from shared.store.recall import Cue
from worker.deadlines import Deadlines
from worker.known_answers import KnownAnswers
from worker.metering import Meter, Tariff
from worker.tiers import ModelTiers, Tier


class TaskFailed(FiresideError):
    """A task can't be done, for a reason that the client may be told; the session goes on.

    Args:
        code: stable, for programs.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


ReadMaterial: TypeAlias = Callable[[str, UUID, int, int], Awaitable[Material | None]]
"""Gives what a consolidation reads: of this user's session, from one message to another; None
where the session is gone."""

ReadAnswer: TypeAlias = Callable[[str, UUID], Awaitable[Answered | None]]
"""Gives what a batch has brought for a line of this user's; None where there is nothing."""

ReadStory: TypeAlias = Callable[[str], Awaitable[str]]
"""Gives the compiled JSON of a story's version by its hash; raises NotFound."""


Recollect: TypeAlias = Callable[[Cue], Awaitable[MemoryMatches]]
"""Gives the memories that may bear on a cue; raises StoreUnavailable."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What a deployment gives all of its agents: the model with its key, the kept stories.

    Without a `stream_fn` the model is called in the way that it says itself. `tool_seconds` is the
    longest run of one tool call. Model calls pass the `limiter`, where there is one, and cost what
    the `tariff` says. Without `recollect` nothing is kept beside the transcript. `tiers` are the
    models beside the one, if there are any. What is among the `answers` is not asked again.
    """

    model: Model
    api_key: str | None
    read_story: ReadStory
    stream_fn: StreamFn | None = None
    tool_seconds: float = 30.0
    limiter: CallLimiter | None = None
    recollect: Recollect | None = None
    read_material: ReadMaterial | None = None
    read_answer: ReadAnswer | None = None
    tariff: Tariff = field(default_factory=Tariff)
    tiers: ModelTiers | None = None
    answers: KnownAnswers | None = None

    def model_of(self, tier: Tier) -> Model:
        """The model of a tier: the one and only where there are no tiers."""
        return self.model if self.tiers is None else self.tiers.model(tier)

    def for_user(
        self,
        user_id: str,
        waiting: Callable[[], AbstractContextManager[object]],
        meter: Meter,
    ) -> "Resources":
        """The same for one user's task: its model calls are counted by the `meter`, and wait for
        their turn inside `waiting`."""
        stream_fn = meter.counted(self.stream_fn)
        if self.limiter is not None:
            stream_fn = limited(stream_fn, self.limiter, user_id, waiting=waiting)
        stream_fn = meter.guarded(stream_fn)
        if self.tiers is not None:
            stream_fn = self.tiers.stream_fn(stream_fn)
        if self.answers is not None:
            # Before all else: what is known costs nothing, waits for no turn, and says nothing of
            # how a model is doing.
            stream_fn = self.answers.before(stream_fn, user_id)
        return replace(self, stream_fn=stream_fn)


TakeIn: TypeAlias = Callable[[], Awaitable[Sequence[UserMessage]]]
"""Gives what the user has said since the task began, each message once."""


async def _nothing_said() -> Sequence[UserMessage]:
    return ()


@dataclass(frozen=True, slots=True)
class RunningTask:
    """All that an agent may know and use while it answers one action.

    `state` is the session's private state as the last task left it, `history` the newest messages
    of the current branch, `earlier` how many the session has before them. What an agent tells
    `emit` reaches clients; `journal` keeps its model and tool calls; `signal` is set when the user
    cancels. An agent that asks `steering` at the beginning of its turns, or `follow_ups` where it
    would end, is given what the user has said meanwhile, and answers it with this task. Time-outs
    of `deadlines` stand still while a model call waits for its turn. `told` are the messages that
    earlier attempts of the task have told, the user's own first: they will not be told again.
    With `economy` most of a budget is
    spent: cheaper models should answer.
    """

    user_id: str
    session_id: UUID
    task_id: UUID
    action: JsonObject
    story: str | None
    story_hash: str | None
    character: JsonObject
    metadata: JsonObject
    state: JsonObject
    view: JsonObject
    history: Sequence[Message]
    resources: Resources
    emit: Callable[[AgentEvent], None]
    journal: StepJournal
    signal: AbortSignal
    earlier: int = 0
    steering: TakeIn = _nothing_said
    follow_ups: TakeIn = _nothing_said
    deadlines: Deadlines = field(default_factory=Deadlines)
    told: Sequence[Message] = ()
    economy: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of an action.

    `state` is kept for the next task; `public` and `choices` are what a client may see.
    `lasting` is what it changes beyond the session.
    """

    text: str
    state: JsonObject
    public: JsonObject = field(default_factory=dict)
    choices: Sequence[JsonObject] = ()
    decision: JsonObject | None = None
    lasting: Lasting = NOTHING_LASTING


class RegisteredAgent(Protocol):
    """A named behaviour that sessions are made with."""

    @property
    def entry(self) -> CatalogEntry:
        """What clients are shown of it."""

    async def run(self, task: RunningTask) -> Answer:
        """Answer one action; may raise TaskFailed."""


AgentFactory: TypeAlias = Callable[[Settings], RegisteredAgent]
"""Builds an agent once per worker process; may raise SettingsError."""


def load_agents(settings: Settings) -> Mapping[str, RegisteredAgent]:
    """Build the agents that the modules of FIRESIDE_AGENT_MODULES list as `AGENTS`, by name.

    Raises:
        SettingsError: a module can't be imported or lists none, or a name is taken twice.
    """
    agents: dict[str, RegisteredAgent] = {}
    for module in settings.agent_modules:
        try:
            factories: Sequence[AgentFactory] = importlib.import_module(module).AGENTS
        except (ImportError, AttributeError) as error:
            said = str(error)
            if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
                folders = os.environ.get("PYTHONPATH") or "not set"
                said += f" in {os.getcwd()} or in PYTHONPATH ({folders})"
            raise SettingsError(f"FIRESIDE_AGENT_MODULES: {module}: {said}") from error
        for factory in factories:
            agent = factory(settings)
            if agent.entry.name in agents:
                raise SettingsError(f"two agents are named {agent.entry.name}")
            agents[agent.entry.name] = agent
    return agents
