"""Telling clients of messages: complete ones, and ones that a model streams."""

from collections.abc import Sequence
from contextlib import aclosing

from agent_core import (
    AgentEnd,
    AgentStart,
    AssistantMessage,
    LlmContext,
    Message,
    MessageEnd,
    MessageStart,
    MessageUpdate,
    StreamDone,
    StreamError,
    StreamOptions,
    TextContent,
    TurnEnd,
    TurnStart,
    stream_completion,
)
from worker.agents import RunningTask, TaskFailed


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


async def narrate(
    task: RunningTask, context: LlmContext, options: StreamOptions, *, step_no: int
) -> AssistantMessage:
    """Have the model write a message, streamed to clients as it grows.

    Raises:
        TaskFailed: `model_failed`, after clients were told of the message as far as it came.
    """
    events = stream_completion(
        task.resources.model,
        context,
        options,
        journal=task.journal,
        step_no=step_no,
        cancel=task.signal,
    )
    begun = False
    async with aclosing(events):
        async for event in events:
            if isinstance(event, StreamDone | StreamError):
                final = event.message if isinstance(event, StreamDone) else event.error
                if not begun:
                    task.emit(MessageStart(final))
                task.emit(MessageEnd(final))
                if isinstance(event, StreamError):
                    raise TaskFailed("model_failed", final.error_message or "the model failed")
                return final
            if not begun:
                task.emit(MessageStart(event.partial))
                begun = True
            task.emit(MessageUpdate(event.partial, event))
    raise AssertionError("a completion ends with its message")
