"""An agent that reads instructions when it needs them: `python -m examples.skills FOLDER MODEL`."""

import asyncio
from pathlib import Path

from agent_core import Agent, AgentOptions, PromptBuilder, StreamFn, get_model, load_skills
from examples.command import arguments, finish


async def work(
    folder: Path, request: str, model_id: str, stream_fn: StreamFn | None = None
) -> Agent:
    """Give the skills of a folder to an agent and ask it for something."""
    skills = load_skills(folder)
    for problem in skills.problems:
        print("left out:", problem)
    prompt = PromptBuilder(identity="You are an assistant.", skills=skills.listing())
    agent = Agent(
        AgentOptions(
            initial_state={
                "system_prompt": prompt.build(),
                "model": get_model("openai", model_id),
                "tools": [skills.tool()],
            },
            stream_fn=stream_fn,
        )
    )
    await agent.prompt(request)
    return agent


if __name__ == "__main__":
    skills_folder, model = arguments("FOLDER", "MODEL")
    done = asyncio.run(work(Path(skills_folder), "Draw me a map of a coast.", model))
    print(getattr(done.state.messages[-1], "text", ""))
    finish(done)
