"""The model calls of one story task: under fixed numbers of the journal, capped, counted.

A call that failed is recorded, too. An attempt that takes the task over must decide what the first
one decided, or its later calls would be other ones than those in the journal.
"""

import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Literal, TypeAlias

from agent_core import (
    AbortedError,
    AssistantMessage,
    AssistantMessageEvent,
    LlmContext,
    MessageEnd,
    MessageStart,
    MessageUpdate,
    Model,
    StepRequest,
    StreamDone,
    StreamError,
    StreamOptions,
    TextContent,
    TextDelta,
    UserMessage,
    stream_completion,
)
from agent_core.journal import model_step_hash
from agent_core.streaming import PartialEvent
from shared.encoding import JsonObject
from worker.agents import RunningTask
from worker.deadlines import Deadlines
from worker.model_errors import FORM_REFUSED

Purpose: TypeAlias = Literal["referee", "narrator", "judge"]

STEP_NUMBERS: Mapping[Purpose, int] = {"referee": 0, "narrator": 1, "judge": 2}

REPLY_CHARACTERS = 4_000
NARRATION_CHARACTERS = 6_000
"""A longer answer is cut off while it is still being written."""

REPLY_TOKENS = 300
NARRATION_TOKENS = 1_000
THINKING_TOKENS = 4_000
"""What a model that thinks may use beside: its thoughts count as output."""

REPLY_SECONDS = 30.0
NARRATION_SECONDS = 120.0


class StoryCalls:
    """Makes the calls of a task.

    `made` tells of each call its purpose, tokens and milliseconds, `failed` whether any failed.

    Args:
        reply_seconds, narration_seconds: how long a call may take as a whole.
    """

    def __init__(
        self,
        task: RunningTask,
        *,
        reply_seconds: float = REPLY_SECONDS,
        narration_seconds: float = NARRATION_SECONDS,
    ) -> None:
        self._task = task
        self._reply_seconds = reply_seconds
        self._narration_seconds = narration_seconds
        self.made: list[JsonObject] = []
        self.failed = False

    async def ask(
        self, purpose: Purpose, system_prompt: str, question: str, schema: Mapping[str, Any]
    ) -> str | None:
        """Ask for a short answer in JSON; what came, or None where nothing came.

        Raises AbortedError, and what the journal raises.
        """
        model = self._task.resources.model_of("cheap")
        brief = replace(
            model,
            max_attempts=min(model.max_attempts, 2),
            first_token_timeout=min(model.first_token_timeout, 15.0),
        )
        form = {"type": "json_schema", "json_schema": {"name": purpose, "schema": dict(schema)}}
        message = await self._call(
            purpose,
            [replace(brief, extra={**model.extra, "response_format": form}), brief],
            LlmContext(system_prompt, [UserMessage(question)]),
            self._options(model, REPLY_TOKENS, temperature=0.0),
            characters=REPLY_CHARACTERS,
            seconds=self._reply_seconds,
        )
        return message.text if _is_usable(message) else None

    async def narrate(
        self, context: LlmContext, otherwise: AssistantMessage, model: Model | None = None
    ) -> AssistantMessage:
        """Have the narrator write a message, streamed to clients as it grows.

        What is told in the end is `otherwise` where the model fails: clients take a message as it
        ends, whatever they have seen of it. Raises as `ask` does.
        """
        task, begun = self._task, False

        def stream(event: PartialEvent) -> None:
            nonlocal begun
            if not begun:
                task.emit(MessageStart(event.partial))
                begun = True
            task.emit(MessageUpdate(event.partial, event))

        model = model or task.resources.model
        message = await self._call(
            "narrator",
            [replace(model, max_attempts=1) if self.failed else model],
            context,
            self._options(model, NARRATION_TOKENS),
            characters=NARRATION_CHARACTERS,
            seconds=self._narration_seconds,
            listen=stream,
        )
        told = message if _is_usable(message) else otherwise
        if not begun:
            task.emit(MessageStart(told))
        task.emit(MessageEnd(told))
        return told

    def _options(
        self, model: Model, tokens: int, temperature: float | None = None
    ) -> StreamOptions:
        return StreamOptions(
            api_key=self._task.resources.api_key,
            session_id=str(self._task.session_id),
            temperature=temperature,
            max_tokens=tokens + (THINKING_TOKENS if model.reasoning else 0),
        )

    async def _call(
        self,
        purpose: Purpose,
        models: Sequence[Model],
        context: LlmContext,
        options: StreamOptions,
        *,
        characters: int,
        seconds: float,
        listen: Callable[[PartialEvent], None] = lambda event: None,
    ) -> AssistantMessage:
        """Call the first model; the next one only where the form of the answer was refused."""
        begun, task, no = time.monotonic(), self._task, STEP_NUMBERS[purpose]
        options = replace(options, purpose=purpose)
        message, recorded = AssistantMessage([]), False
        for model in models:
            events = stream_completion(
                model,
                context,
                options,
                stream_fn=task.resources.stream_fn,
                journal=task.journal,
                step_no=no,
                cancel=task.signal,
            )
            message, recorded = await _read(events, characters, task.deadlines, seconds, listen)
            if not FORM_REFUSED.search(message.error_message or ""):
                break
        if message.stop_reason == "aborted":
            raise AbortedError
        if not recorded:
            digest = model_step_hash(models[0], context, options)
            step = StepRequest(no, "model", models[0].name, digest, "pure")
            await task.journal.finish(step, message.to_dict())
        self.failed = self.failed or message.stop_reason == "error"
        self.made.append(
            {
                "purpose": purpose,
                "tokens": message.usage.total_tokens,
                "ms": round((time.monotonic() - begun) * 1000),
            }
        )
        return message


async def _read(
    events: AsyncGenerator[AssistantMessageEvent, None],
    characters: int,
    deadlines: Deadlines,
    seconds: float,
    listen: Callable[[PartialEvent], None],
) -> tuple[AssistantMessage, bool]:
    """The call's message, cut off at a length or a time; and whether the journal has it."""
    partial, length = AssistantMessage([]), 0
    try:
        async with deadlines.within(seconds), aclosing(events):
            async for event in events:
                if isinstance(event, StreamDone):
                    return event.message, True
                if isinstance(event, StreamError):
                    return event.error, False
                partial = event.partial
                if isinstance(event, TextDelta):
                    length += len(event.delta)
                    if length > characters:
                        text = TextContent(partial.text[:characters])
                        return replace(partial, content=[text], stop_reason="length"), False
                listen(event)
    except TimeoutError:
        error = f"no answer within {seconds:g} seconds"
        return replace(partial, stop_reason="error", error_message=error), False
    raise AssertionError("a completion ends with its message")


def _is_usable(message: AssistantMessage) -> bool:
    return message.stop_reason in {"stop", "length"} and bool(message.text.strip())
