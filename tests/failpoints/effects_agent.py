"""The agent of the failpoints: it calls one tool and answers; a recorder counts what happened.

The session's metadata say which tool, by its class of effect, and where the recorder is.
"""

import os

import aiohttp

from agent_core import Agent, AgentOptions, AgentTool, UserMessage, tool
from agent_core.messages import ToolResultMessage
from shared.records import CatalogEntry
from worker.agents import Answer, RunningTask
from worker.prompting import prompted

EFFECTS = ("pure", "state", "external", "undeclared")
"""The tools; one that does not declare its effect is taken for an external one."""


class EffectsAgent:
    """Counts in its state what its `state` tool has done."""

    entry = CatalogEntry("agent", "effects", "Effects")

    async def run(self, task: RunningTask) -> Answer:
        """Answer what was said; raises TaskFailed."""
        recorder = task.metadata.get("recorder")
        turns = 0

        def key(_: str) -> str:
            # One key for each model call of a task: so the model counts them one by one.
            nonlocal turns
            turns += 1
            return f"{task.task_id}.{turns}"

        agent = Agent(
            AgentOptions(
                initial_state={
                    "model": task.resources.model,
                    "tools": [] if recorder is None else [_tool(one, recorder) for one in EFFECTS],
                    "messages": list(task.history),
                },
                journal=task.journal,
                session_id=str(task.session_id),
                get_api_key=key,
            )
        )
        message = UserMessage(task.action.get("text", "Begin."), timestamp=0)
        answer = await prompted(task, agent, message)
        changes = [
            message
            for message in agent.state.messages[len(task.history) :]
            if isinstance(message, ToolResultMessage)
            and message.tool_name == "state"
            and not message.is_error
        ]
        if recorder is not None:
            await _post(f"{recorder}/gate/{os.getpid()}")
        state = {"seals": task.state.get("seals", 0) + len(changes)}
        return Answer(text=answer.text, state=state, public=state)


AGENTS = [lambda settings: EffectsAgent()]


def _tool(effect: str, recorder: str) -> AgentTool:
    async def run() -> str:
        """Have the recorder count a run."""
        return await _post(f"{recorder}/ran/{effect}")

    if effect == "undeclared":
        return tool(name=effect)(run)
    return tool(name=effect, effect=effect)(run)  # type: ignore[call-overload, no-any-return]


async def _post(url: str) -> str:
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout) as http, http.post(url) as answer:
        return await answer.text()
