"""A router: `python -m examples.router` with OPENAI_API_KEY, ANTHROPIC_API_KEY, MISTRAL_API_KEY."""

import asyncio

from agent_core import Agent, AgentOptions, ModelRouter, StreamFn, Task, get_model
from examples.command import arguments, finish


def models() -> ModelRouter:
    """Return a cheap model for talk, a strong one for tasks and a spare one, in this order."""
    router = ModelRouter(cool_down=30, trip_after=2)
    router.register("cheap", get_model("openai", "gpt-4o-mini"), ["simple", "summarise"])
    router.register("strong", get_model("anthropic", "claude-sonnet-4-5"), ["deep", "judge"])
    router.register("spare", get_model("mistral", "mistral-large-latest"))
    return router


async def ask(question: str, task: Task, stream_fn: StreamFn | None = None) -> Agent:
    """Ask the model that fits the task."""
    agent = Agent(
        AgentOptions(
            initial_state={"system_prompt": "Answer briefly."},
            model_router=models(),
            task=task,
            session_id="session-1",
            stream_fn=stream_fn,
        )
    )
    await agent.prompt(question)
    answer = agent.state.messages[-1]
    print(f"{getattr(answer, 'model', '')}: {getattr(answer, 'text', '')}")
    return agent


if __name__ == "__main__":
    arguments()
    finish(asyncio.run(ask("Who keeps the light?", "simple")))
    finish(asyncio.run(ask("Why does the light turn?", "deep")))
