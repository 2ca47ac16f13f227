"""Talk with a model: `python -m examples.chat gpt-4o-mini` (the key is in OPENAI_API_KEY)."""

import asyncio

import agent_core as ac
from examples.command import arguments, finish


def show(event: ac.AgentEvent) -> None:
    """Print the text as it comes."""
    if isinstance(event, ac.MessageUpdate):
        print(getattr(event.assistant_message_event, "delta", ""), end="", flush=True)


async def chat(lines: list[str], model_id: str, stream_fn: ac.StreamFn | None = None) -> ac.Agent:
    """Say the lines one after the other."""
    agent = ac.Agent(
        ac.AgentOptions(
            initial_state={
                "system_prompt": "You are a friendly lighthouse keeper. Answer in a sentence.",
                "model": ac.get_model("openai", model_id),
            },
            stream_fn=stream_fn,
        )
    )
    agent.subscribe(show)
    for line in lines:
        print(f"\n> {line}")
        await agent.prompt(line)
        print()
        if agent.state.error:
            break
    return agent


if __name__ == "__main__":
    finish(asyncio.run(chat(["Hello!", "What did I just say?"], arguments("MODEL")[0])))
