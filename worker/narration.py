"""Telling clients of a run of one turn and of messages that are complete."""

from collections.abc import Sequence

from agent_core import (
    AgentEnd,
    AgentStart,
    AssistantMessage,
    Message,
    MessageEnd,
    MessageStart,
    TextContent,
    TurnEnd,
    TurnStart,
)
from worker.agents import RunningTask


def begin_turn(task: RunningTask, *said: Message) -> None:
    """Open a run of one turn, and tell what the user said."""
    task.emit(AgentStart())
    task.emit(TurnStart())
    for message in said:
        tell(task, message)


def end_turn(task: RunningTask, messages: Sequence[Message], answer: AssistantMessage) -> None:
    """Close the run that `begin_turn` opened."""
    task.emit(TurnEnd(answer, []))
    task.emit(AgentEnd([*messages, answer]))


def tell(task: RunningTask, message: Message) -> None:
    """Tell a message that is complete already."""
    task.emit(MessageStart(message))
    task.emit(MessageEnd(message))


def written(text: str, author: str) -> AssistantMessage:
    """A message that no model wrote; `author` stands where a model's name would."""
    return AssistantMessage([TextContent(text)], model=author, provider="fireside")
