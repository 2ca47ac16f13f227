"""What can be played: the agents and stories that workers announced, kept for a moment."""

from dataclasses import dataclass
from time import monotonic

from api.schemas import Priority
from shared.errors import InvalidRequest, StoreUnavailable
from shared.records import CatalogEntry
from shared.store import catalog
from shared.store.database import Database

_KEPT_SECONDS = 1.0

STORY_AGENT = "story"
"""The agent that plays a story whose entry names none."""


@dataclass(frozen=True, slots=True)
class AgentEntry:
    """An agent with the stories that it plays, by name."""

    entry: CatalogEntry
    stories: tuple[CatalogEntry, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """What a new session is to run: names that exist, and the version of the story."""

    agent: str
    agent_title: str
    story: str | None
    story_hash: str | None
    priority: Priority = "interactive"


class Catalog:
    """Reads the catalog, at most once a second.

    Args:
        offered: for so many seconds what no worker announces any more is still on offer.
    """

    def __init__(self, db: Database, default_story: str | None, *, offered: float) -> None:
        self._db = db
        self._offered = offered
        self._default_story = default_story
        self._agents: dict[str, AgentEntry] = {}
        self._read_at = float("-inf")

    async def agents(self) -> dict[str, AgentEntry]:
        """All agents, by name; raises StoreUnavailable."""
        if monotonic() - self._read_at > _KEPT_SECONDS:
            self._agents = _grouped(await catalog.entries(self._db, offered=self._offered))
            self._read_at = monotonic()
        return self._agents

    async def choose(self, agent: str, story: str | None) -> Choice:
        """Check what a client asks for; a story agent without a story gets the default one.

        Raises:
            InvalidRequest: there is no such agent, or it has no such story.
        """
        found = (await self.agents()).get(agent)
        if found is None:
            raise InvalidRequest("agent: there is no such agent")
        title = found.entry.title or agent
        if story is None:
            chosen = self._default_of(found)
            if chosen is None:
                return Choice(agent, title, None, None, _priority(found.entry))
        else:
            chosen = next((one for one in found.stories if one.name == story), None)
            if chosen is None:
                raise InvalidRequest("story: this agent has no such story")
        story_hash = chosen.details.get("hash")
        return Choice(agent, title, chosen.name, story_hash, _priority(found.entry))

    async def default_choice(self) -> Choice:
        """The default story, or else the first by name.

        Raises:
            StoreUnavailable: no worker has announced a story yet.
        """
        agents = await self.agents()
        offered = sorted(
            (one.name, agent.entry.name) for agent in agents.values() for one in agent.stories
        )
        if not offered:
            raise StoreUnavailable("no worker has announced a story yet")
        wanted = [pair for pair in offered if pair[0] == self._default_story]
        story, agent = (wanted or offered)[0]
        return await self.choose(agent, story)

    def _default_of(self, agent: AgentEntry) -> CatalogEntry | None:
        named = [one for one in agent.stories if one.name == self._default_story]
        return next(iter((*named, *agent.stories)), None)


def _priority(agent: CatalogEntry) -> Priority:
    """What the agent's entry says of its sessions, where they do not say it themselves."""
    return "background" if agent.details.get("priority") == "background" else "interactive"


def _grouped(entries: list[CatalogEntry]) -> dict[str, AgentEntry]:
    stories: dict[str, list[CatalogEntry]] = {}
    for entry in entries:
        if entry.kind == "story":
            stories.setdefault(entry.details.get("agent", STORY_AGENT), []).append(entry)
    return {
        entry.name: AgentEntry(entry, tuple(stories.get(entry.name, ())))
        for entry in entries
        if entry.kind == "agent"
    }
