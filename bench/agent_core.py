"""What an agent costs: `python -m bench.agent_core` prints memory and time per agent and turn."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc

from agent_core import Agent, AgentOptions, Message, ToolResultMessage, UserMessage
from agent_core.messages import text_result
from agent_core.testing import SCRIPTED_MODEL, Reply, ScriptedModel, answer, call, calls
from agent_core.tools import tool

AGENTS = 10_000
TURNS = 10
TEXT = "The keeper climbs the stairs to light the lamp before the ships come in at dusk. "


@tool(effect="pure")
async def look(place: str) -> str:
    """Look at a place."""
    return f"Nothing moves at the {place}."


OPTIONS = AgentOptions(
    initial_state={"system_prompt": "SP", "model": SCRIPTED_MODEL, "tools": [look]}
)


def transcript(number: int) -> list[Message]:
    """Return 50 messages: 10 turns with a call each; no text is shared between agents."""
    messages: list[Message] = []
    for turn in range(TURNS):
        said = f"{number} {turn} {TEXT}"
        messages += [
            UserMessage(f"{said}?"),
            calls(call(f"c{number}-{turn}", "look", place=f"mill {turn}"), text=f"{said}."),
            ToolResultMessage(f"c{number}-{turn}", "look", text_result(f"{said}!")),
            answer(f"{said}; {said}"),
            UserMessage(f"{said}, thanks"),
        ]
    return messages


def memory() -> None:
    gc.collect()
    tracemalloc.start()
    agents = []
    for number in range(AGENTS):
        agent = Agent(OPTIONS)
        agent.replace_messages(transcript(number))
        agents.append(agent)
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"idle agent with 50 messages: {used / len(agents) / 1024:.1f} KB")


def creation() -> None:
    began = time.perf_counter()
    for _ in range(AGENTS):
        Agent(OPTIONS)
    print(f"creating an agent: {(time.perf_counter() - began) / AGENTS * 1e6:.1f} us")


async def turns() -> None:
    rounds = 500
    words = " ".join(["word"] * 100)
    script: list[Reply] = [calls(call("c", "look", place="x")), words] * rounds
    agent = Agent(
        AgentOptions(
            initial_state={"model": SCRIPTED_MODEL, "tools": [look]},
            stream_fn=ScriptedModel(script),
        )
    )
    began = time.process_time()
    for _ in range(rounds):
        agent.clear_messages()
        await agent.prompt("hi")
    spent = (time.process_time() - began) / rounds
    print(f"a run of 2 turns, 1 call and 100 deltas: {spent * 1e3:.2f} ms of CPU")


if __name__ == "__main__":
    creation()
    memory()
    asyncio.run(turns())
