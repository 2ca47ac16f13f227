"""The agent that chaos runs have beside the product's own: tools of each effect, to be counted.

The workers of a chaos fleet are told of this module, and of the recorder by an address in their
environment.
"""

import os

import aiohttp

from agent_core import (
    Agent,
    AgentOptions,
    AgentToolResult,
    ToolContext,
    ToolResultMessage,
    UserMessage,
    tool,
)
from agent_core.context_builder import ContextBuilder
from shared.records import CatalogEntry
from worker.agents import Answer, RunningTask
from worker.prompting import prompted

RECORDER = "FIRESIDE_CHAOS_RECORDER"
"""The variable with the address that letters are posted to."""


@tool(effect="external")
async def post_letter(mark: str, context: ToolContext) -> AgentToolResult:
    """Post a letter; whoever gets it knows it by the key."""
    letter = {"mark": mark, "key": context.idempotency_key}
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as http,
        http.post(os.environ[RECORDER], json=letter) as answer,
    ):
        answer.raise_for_status()
    return AgentToolResult.text("posted", details={"mark": mark})


@tool(effect="state")
async def take_note(mark: str) -> AgentToolResult:
    """Keep a note in the session's state."""
    return AgentToolResult.text("noted", details={"mark": mark})


@tool(effect="pure")
async def think_aloud(mark: str) -> str:
    """Say it to nobody."""
    return f"hm, {mark}"


class TinkerAgent:
    """Does what the model says with its tools. Its state is `{"notes": [marks]}`."""

    entry = CatalogEntry("agent", "tinker", "Tinker", "Has tools of each effect")

    async def run(self, task: RunningTask) -> Answer:
        """Answer an action; raises TaskFailed."""
        notes = list(task.state.get("notes", []))
        if task.action["type"] == "say":
            answer, taken = await _chat(task)
            notes += taken
        else:
            answer = "ready"
        return Answer(text=answer, state={"notes": notes}, public={"notes": len(notes)})


AGENTS = [lambda settings: TinkerAgent()]


async def _chat(task: RunningTask) -> tuple[str, list[str]]:
    resources = task.resources
    # By the history alone, which each attempt finds the same; no call is parted from its result.
    start, _ = ContextBuilder().shown(task.history)
    earlier = list(task.history[start:])
    agent = Agent(
        AgentOptions(
            initial_state={
                "system_prompt": "You tinker.",
                "model": resources.model,
                "tools": [post_letter, take_note, think_aloud],
                "messages": earlier,
            },
            journal=task.journal,
            session_id=str(task.session_id),
            get_api_key=lambda provider: resources.api_key,
            stream_fn=resources.stream_fn,
            max_turns=12,
            get_steering_messages=task.steering,
            get_follow_up_messages=task.follow_ups,
            tool_timeout=resources.tool_seconds,
        )
    )
    answer = await prompted(task, agent, UserMessage(task.action["text"]))
    # From the results, which the journal keeps, and not as the tool runs: it may not run again.
    notes = [
        one.details["mark"]
        for one in agent.state.messages[len(earlier) :]
        if isinstance(one, ToolResultMessage) and one.tool_name == "take_note" and not one.is_error
    ]
    return answer.text, notes
