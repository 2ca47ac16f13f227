"""The route that lists agents and their stories."""

from fastapi import APIRouter
from starlette.responses import Response

from api import problems, replies
from api.access import User
from api.catalog import AgentEntry
from api.gateway import Parts
from api.schemas import AgentsBody
from shared.encoding import JsonObject
from shared.records import CatalogEntry

router = APIRouter(tags=["Agents"])


@router.get(
    "/v1/agents",
    response_model=AgentsBody,
    responses=problems.responses("unauthorized", "unavailable"),
)
async def list_agents(parts: Parts, _user: User) -> Response:
    """The registered agents and their stories."""
    agents = await parts.catalog.agents()
    return replies.ok({"agents": [_body(agent) for agent in agents.values()]})


def _body(agent: AgentEntry) -> JsonObject:
    return {
        **_common(agent.entry),
        "options": agent.entry.details.get("options"),
        "stories": [_common(story) for story in agent.stories],
    }


def _common(entry: CatalogEntry) -> JsonObject:
    return {"name": entry.name, "title": entry.title, "description": entry.description}
