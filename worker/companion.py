"""The `companion` agent: a character that chats, with its soul in the system prompt."""

import random
from datetime import UTC, datetime

from agent_core import Agent, AgentOptions, AssistantMessage, UserMessage, tool
from shared.records import CatalogEntry
from worker.agents import Answer, RunningTask, TaskFailed
from worker.narration import begin_turn, end_turn, tell, written

RECENT_MESSAGES = 50

DEFAULT_SOUL = """\
You are warm, curious and playful. You remember what you are told, ask after it, and keep your
answers short, as one does in a chat."""


@tool(effect="pure")
async def roll_dice(sides: int = 6) -> str:
    """Throw one die and tell the number; `sides` is how many sides it has, 2 to 1000."""
    if not 2 <= sides <= 1000:
        raise ValueError("a die has 2 to 1000 sides")
    return str(random.randint(1, sides))  # noqa: S311 - a game


@tool(effect="pure")
async def current_time() -> str:
    """Tell the date and time in UTC."""
    return datetime.now(UTC).strftime("%A, %d %B %Y, %H:%M UTC")


class CompanionAgent:
    """Chats as its character. It keeps no state beside the transcript."""

    entry = CatalogEntry("agent", "companion", "Companion", "A character to chat with")

    async def run(self, task: RunningTask) -> Answer:
        """Answer an action; raises TaskFailed."""
        kind = task.action["type"]
        if kind == "start":
            return _greet(task)
        if kind == "say":
            return await _chat(task)
        raise TaskFailed("action_unknown", f"a companion has no action {kind!r}")


AGENTS = [lambda settings: CompanionAgent()]


def _greet(task: RunningTask) -> Answer:
    greeting = written(f"Hello! I am {task.character['name']}. How are you today?", "greeting")
    begin_turn(task)
    tell(task, greeting)
    end_turn(task, [], greeting)
    return Answer(text=greeting.text, state={})


async def _chat(task: RunningTask) -> Answer:
    agent = Agent(
        AgentOptions(
            initial_state={
                "system_prompt": _system_prompt(task),
                "model": task.resources.model,
                "tools": [roll_dice, current_time],
                "messages": list(task.history[-RECENT_MESSAGES:]),
            },
            journal=task.journal,
            session_id=str(task.session_id),
            get_api_key=lambda provider: task.resources.api_key,
            max_turns=8,
        )
    )
    agent.subscribe(task.emit)
    task.signal.add_callback(agent.abort)
    if task.signal.is_set():
        agent.abort()
    await agent.prompt(UserMessage(task.action["text"]))
    answer = agent.state.messages[-1]
    if not isinstance(answer, AssistantMessage) or agent.state.error is not None:
        raise TaskFailed("model_failed", agent.state.error or "the model gave no answer")
    return Answer(text=answer.text, state={})


def _system_prompt(task: RunningTask) -> str:
    soul = task.character["soul"] or DEFAULT_SOUL
    return f"You are {task.character['name']}, a companion.\n\n{soul}"
