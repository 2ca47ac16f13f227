"""An agent with a tool: `python -m examples.tools gpt-4o-mini`."""

import asyncio
import random

from agent_core import Agent, AgentOptions, StreamFn, ToolContext, get_model, tool
from examples.command import arguments, finish


@tool(effect="pure")
async def roll(sides: int, times: int = 1, *, ctx: ToolContext) -> list[int]:
    """Roll dice with so many sides."""
    dice: random.Random = ctx.data
    return [dice.randint(1, sides) for _ in range(times)]


async def play(model_id: str, stream_fn: StreamFn | None = None, seed: int | None = None) -> Agent:
    """Ask for a roll of dice; the model answers in the last message."""
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
    return agent


if __name__ == "__main__":
    done = asyncio.run(play(arguments("MODEL")[0]))
    print(getattr(done.state.messages[-1], "text", ""))
    finish(done)
