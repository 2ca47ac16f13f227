"""An agent with a tool: `python -m examples.tools gpt-4o-mini`."""

import asyncio
import random
import sys

from agent_core import Agent, AgentOptions, StreamFn, ToolContext, get_model, tool


@tool(effect="pure")
async def roll(sides: int, times: int = 1, *, ctx: ToolContext) -> list[int]:
    """Roll dice with so many sides."""
    dice: random.Random = ctx.data
    return [dice.randint(1, sides) for _ in range(times)]


async def play(model_id: str, stream_fn: StreamFn | None = None, seed: int | None = None) -> str:
    """Ask for a roll of dice and return what the model says."""
    agent = Agent(
        AgentOptions(
            initial_state={
                "system_prompt": "You are the master of a game.",
                "model": get_model("openai", model_id),
                "tools": [roll],
            },
            stream_fn=stream_fn,
            tool_context=ToolContext(data=random.Random(seed)),
            max_turns=5,
        )
    )
    agent.subscribe(lambda event: print(event.type))
    await agent.prompt("I attack the troll: roll two dice with six sides.")
    return str(getattr(agent.state.messages[-1], "text", ""))


if __name__ == "__main__":
    print(asyncio.run(play(sys.argv[1])))
