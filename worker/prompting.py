"""Having an agent of the library answer a running task: its events, its end, the user's cancel."""

from agent_core import Agent, AssistantMessage, Message
from worker.agents import RunningTask, TaskFailed


async def prompted(task: RunningTask, agent: Agent, message: Message) -> AssistantMessage:
    """Say something to an agent and tell what it does until it has answered; a cancel aborts it.

    Raises:
        TaskFailed: the model gave no answer.
    """
    agent.subscribe(task.emit)
    task.signal.add_callback(agent.abort)
    if task.signal.is_set():
        agent.abort()
    await agent.prompt(message)
    answer = agent.state.messages[-1]
    if not isinstance(answer, AssistantMessage) or agent.state.error is not None:
        raise TaskFailed("model_failed", agent.state.error or "the model gave no answer")
    return answer
