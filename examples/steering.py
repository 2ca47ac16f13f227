"""Say something to an agent while it works: `python -m examples.steering gpt-4o-mini`."""

import asyncio
import sys

from agent_core import Agent, AgentEvent, AgentOptions, StreamFn, ToolExecutionEnd, get_model, tool


@tool(effect="pure")
async def look(place: str) -> str:
    """Look at a place."""
    return f"Nothing moves at the {place}."


async def patrol(model_id: str, stream_fn: StreamFn | None = None) -> Agent:
    """Send a guard around, and change its way after its first look."""
    agent = Agent(
        AgentOptions(
            initial_state={
                "system_prompt": "You are a guard. Look at each place you are told to.",
                "model": get_model("openai", model_id),
                "tools": [look],
            },
            stream_fn=stream_fn,
            steering_policy="skip",
            tool_execution="sequential",
        )
    )

    def interrupt(event: AgentEvent) -> None:
        if isinstance(event, ToolExecutionEnd) and not event.is_error:
            agent.steer("Stop! Come back to the gate.")

    agent.subscribe(interrupt)
    agent.follow_up("Now rest.")
    await agent.prompt("Look at the harbour, then at the mill.")
    return agent


if __name__ == "__main__":
    for message in asyncio.run(patrol(sys.argv[1])).state.messages:
        print(message.to_dict())
