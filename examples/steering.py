"""Say something to an agent while it works: `python -m examples.steering gpt-4o-mini`."""

import asyncio

import agent_core as ac
from examples.command import arguments, finish


@ac.tool(effect="pure", execution_mode="sequential")
async def look(place: str) -> str:
    """Look at a place."""
    return f"Nothing moves at the {place}."


async def patrol(model_id: str, stream_fn: ac.StreamFn | None = None) -> ac.Agent:
    """Send a guard around, and change its way after its first look."""
    model = ac.get_model("openai", model_id)
    agent = ac.Agent(
        ac.AgentOptions(
            initial_state={"system_prompt": "You are a guard.", "model": model, "tools": [look]},
            stream_fn=stream_fn,
            steering_policy="skip",
        )
    )

    def interrupt(event: ac.AgentEvent) -> None:
        if isinstance(event, ac.ToolExecutionEnd) and not event.is_error:
            agent.steer("Stop! Come back to the gate.")

    agent.subscribe(interrupt)
    agent.follow_up("Now rest.")
    await agent.prompt("Look at the harbour, then at the mill.")
    return agent


if __name__ == "__main__":
    guard = asyncio.run(patrol(arguments("MODEL")[0]))
    print(*(message.to_dict() for message in guard.state.messages), sep="\n")
    finish(guard)
