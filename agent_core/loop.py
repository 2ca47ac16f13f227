"""The stateless engine: prompts and a context in, events and new messages out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from agent_core.abort import AbortSignal, CancelEvent, signal_from
from agent_core.agent_context import AgentContext
from agent_core.asking import (
    ask,
    key_or_none,
    llm_message_list,
    message_list,
    message_list_or_none,
    next_turn_or_none,
    verdict_or_none,
)
from agent_core.completion import stream_completion
from agent_core.errors import (
    AbortedError,
    HookError,
    NothingToContinueError,
    UnknownModelError,
)
from agent_core.event_stream import AgentEventStream
from agent_core.events import (
    AgentEnd,
    AgentStart,
    Emit,
    MessageEnd,
    MessageStart,
    MessageUpdate,
    TurnEnd,
    TurnStart,
)
from agent_core.hooks import FinishedTurn, GetMessages, UpcomingTurn
from agent_core.loop_config import AgentLoopConfig
from agent_core.messages import (
    AssistantMessage,
    Message,
    StopReason,
    ToolResultMessage,
    Usage,
)
from agent_core.models import Model
from agent_core.redaction import error_text
from agent_core.repair import open_results, repaired
from agent_core.streaming import (
    FinalEvent,
    LlmContext,
    StreamDone,
    StreamError,
    StreamFn,
    StreamOptions,
    StreamStart,
    ThinkingLevel,
)
from agent_core.tool_calls import ToolBatch
from agent_core.tools import check_names


def agent_loop(
    prompts: Sequence[Message],
    context: AgentContext,
    config: AgentLoopConfig,
    cancel: CancelEvent | None = None,
    stream_fn: StreamFn | None = None,
) -> AgentEventStream:
    """Run the agent on new messages; raises DuplicateToolError."""
    check_names(context.tools)
    return AgentEventStream(
        lambda emit: run_loop(prompts, context, config, emit, cancel, stream_fn)
    )


def agent_loop_continue(
    context: AgentContext,
    config: AgentLoopConfig,
    cancel: CancelEvent | None = None,
    stream_fn: StreamFn | None = None,
) -> AgentEventStream:
    """Run the agent on the context as it is; raises NothingToContinueError, DuplicateToolError.

    Calls without a result at its end get one that says they were interrupted.
    """
    if not context.messages:
        raise NothingToContinueError("No messages to continue from")
    last = context.messages[-1]
    if isinstance(last, AssistantMessage) and not last.tool_calls:
        raise NothingToContinueError("Cannot continue from message role: assistant")
    return agent_loop([], context, config, cancel, stream_fn)


async def run_loop(
    prompts: Sequence[Message],
    context: AgentContext,
    config: AgentLoopConfig,
    emit: Emit,
    cancel: CancelEvent | None = None,
    stream_fn: StreamFn | None = None,
    *,
    poll_steering: bool = True,
) -> list[Message]:
    """Run to the end, awaiting `emit` for each event, and return the new messages.

    Raises only what the journal or `emit` raises; everything else becomes an error message.
    `poll_steering` says whether the first turn takes steering messages, too.
    """
    async with signal_from(cancel) as signal:
        run = _Run(context, config, signal, emit, stream_fn)
        return await run.run(_Plan(prompts, poll_steering=poll_steering))


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the next turn begins with; `failure` is a hook's that keeps it from being asked."""

    messages: Sequence[Message] = ()
    failure: HookError | None = None
    poll_steering: bool = False


@dataclass(frozen=True, slots=True)
class _Turn:
    """A turn that is over; `unanswered` if there are tool results the model has not seen."""

    number: int
    message: AssistantMessage
    tool_results: list[ToolResultMessage]
    unanswered: bool


T = TypeVar("T")
_Request: TypeAlias = tuple[Model, LlmContext, StreamOptions]


class _Run:
    def __init__(
        self,
        context: AgentContext,
        config: AgentLoopConfig,
        signal: AbortSignal,
        emit: Emit,
        stream_fn: StreamFn | None,
    ) -> None:
        self._context = AgentContext(
            context.system_prompt, list(context.messages), list(context.tools)
        )
        self._config = config
        self._signal = signal
        self._emit = emit
        self._stream_fn = stream_fn
        self._model = config.model
        self._pinned = False  # a hook's choice of a model goes before the router's
        # Whose the static key is; of a router's models, the one that it prefers at the first turn.
        self._began_with = config.model if config.model_router is None else None
        self._thinking: ThinkingLevel = config.reasoning or "off"
        self._new: list[Message] = []
        self._step = config.first_step
        self._error: str | None = None

    async def run(self, plan: _Plan | None) -> list[Message]:
        await self._emit(AgentStart())
        number = 0
        while plan is not None:
            number += 1
            plan = await self._plan_after(await self._turn(number, plan))
        usage = self._usage() if self._config.enable_credit_tracking else None
        await self._emit(AgentEnd(list(self._new), self._error, usage))
        return self._new

    async def _turn(self, number: int, plan: _Plan) -> _Turn:
        step = self._step
        await self._emit(TurnStart(step))
        if number == 1:
            # Calls that a crash left without a result, before anything else is said.
            await self._add(open_results(self._context.messages))
        await self._add(plan.messages)
        message = await self._answer(plan)
        batch = ToolBatch(
            message, self._context, self._config, self._signal, self._emit, self._step
        )
        self._step += len(message.tool_calls)
        done = await batch.run()
        self._context.messages.extend(done.messages)
        self._new.extend(done.messages)
        await self._emit(TurnEnd(message, done.messages, step))
        return _Turn(number, message, done.messages, bool(done.messages) and not done.terminate)

    async def _plan_after(self, turn: _Turn) -> _Plan | None:
        """Decide whether there is a further turn, and with which messages."""
        if turn.message.stop_reason in {"error", "aborted"}:
            self._error = turn.message.error_message
            return None
        config = self._config
        further = turn.unanswered
        messages: Sequence[Message] = ()
        try:
            if config.finish_turn is not None:
                asked = self._finished(turn)
                verdict = await self._ask("finish_turn", verdict_or_none, config.finish_turn, asked)
                if verdict == "end":
                    return None
                further = further or verdict == "continue"
            # Before the queues are read: what is queued stays queued.
            if config.max_turns is not None and turn.number >= config.max_turns:
                self._error = f"Turn limit of {config.max_turns} reached" if further else None
                return None
            messages = await self._poll("get_steering_messages", config.get_steering_messages)
            if not further and not messages:
                messages = await self._poll("get_follow_up_messages", config.get_follow_up_messages)
            if not further and not messages:
                return None
            await self._prepare(turn.number + 1)
        except HookError as failure:
            return _Plan(messages, failure)
        except AbortedError:
            return _Plan(messages) if further or messages else None
        return _Plan(messages)

    def _finished(self, turn: _Turn) -> FinishedTurn:
        return FinishedTurn(
            turn.number, turn.message, turn.tool_results, tuple(self._context.messages)
        )

    async def _prepare(self, number: int) -> None:
        hook = self._config.prepare_next_turn
        if hook is None:
            return
        upcoming = UpcomingTurn(number, tuple(self._context.messages), self._model, self._thinking)
        changes = await self._ask("prepare_next_turn", next_turn_or_none, hook, upcoming)
        if changes is None:
            return
        if changes.model is not None:
            self._model = changes.model
            self._pinned = True
        if changes.thinking_level is not None:
            self._thinking = changes.thinking_level
        if changes.messages is not None:
            self._context.messages = list(changes.messages)

    # The model

    async def _answer(self, plan: _Plan) -> AssistantMessage:
        try:
            if plan.failure is not None:
                raise plan.failure
            if plan.poll_steering:
                queue = self._config.get_steering_messages
                await self._add(await self._poll("get_steering_messages", queue))
            request = await self._request()
        except HookError as error:
            return await self._fail("error", error)
        except AbortedError as error:
            return await self._fail("aborted", error)
        return await self._stream(*request)

    async def _request(self) -> _Request:
        config = self._config
        messages = self._context.messages
        if config.transform_context is not None:
            messages = await self._ask(
                "transform_context",
                message_list,
                config.transform_context,
                list(messages),
                self._signal,
            )
        converted = await self._ask(
            "convert_to_llm", llm_message_list, config.convert_to_llm, list(messages)
        )
        permitted = [tool for tool in self._context.tools if config.tool_context.allows(tool)]
        model = self._chosen_model(has_tools=bool(permitted))
        options = StreamOptions(
            signal=self._signal,
            api_key=await self._key_of(model),
            session_id=config.session_id,
            reasoning=None if self._thinking == "off" else self._thinking,
            thinking_budgets=config.thinking_budgets,
            max_retry_delay=config.max_retry_delay,
            temperature=config.temperature,
            max_tokens=config.max_tokens,
        )
        context = LlmContext(self._context.system_prompt, repaired(converted), permitted)
        return model, context, options

    def _chosen_model(self, *, has_tools: bool) -> Model:
        """Return the model to call; raises HookError."""
        config = self._config
        if config.model_router is not None and not self._pinned:
            try:
                router = config.model_router
                self._began_with = self._began_with or router.preferred(
                    has_tools=has_tools, task=config.task
                )
                return router.get_model(has_tools, task=config.task, session_id=config.session_id)
            except UnknownModelError as error:
                raise HookError(str(error)) from error
        if self._model is None:
            raise HookError("No model is set")
        return self._model

    async def _stream(
        self, model: Model, context: LlmContext, options: StreamOptions
    ) -> AssistantMessage:
        step = self._step
        self._step += 1
        started = False
        final: FinalEvent | None = None
        stream_fn, route = self._stream_fn, None
        router = self._config.model_router
        if router is not None and not self._pinned:
            stream_fn = router.stream_fn(stream_fn, task=self._config.task, key_of=self._key_of)
            route = f"route/{self._config.task}"
        events = stream_completion(
            model,
            context,
            options,
            stream_fn=stream_fn,
            journal=self._config.journal,
            step_no=step,
            route=route,
        )
        async with aclosing(events):
            async for event in events:
                if isinstance(event, (StreamDone, StreamError)):
                    final = event
                    break
                if not started:
                    started = True
                    await self._emit(MessageStart(event.partial, step))
                if not isinstance(event, StreamStart):
                    await self._emit(MessageUpdate(event.partial, event, step))
        if final is None:
            raise RuntimeError("stream_completion ended without a final event")
        message = final.message if isinstance(final, StreamDone) else final.error
        await self._add([message], started=started, step=step)
        return message

    async def _fail(self, reason: StopReason, error: Exception) -> AssistantMessage:
        message = AssistantMessage(
            [],
            model=self._model.id if self._model else "",
            provider=self._model.provider if self._model else "",
            stop_reason=reason,
            error_message=error_text(error, self._config.api_key),
        )
        await self._add([message])
        return message

    async def _add(
        self, messages: Sequence[Message], *, started: bool = False, step: int | None = None
    ) -> None:
        for message in messages:
            if not started:
                await self._emit(MessageStart(message, step))
            self._context.messages.append(message)
            self._new.append(message)
            await self._emit(MessageEnd(message, step))

    # The caller's functions

    async def _ask(
        self,
        name: str,
        may_be: Callable[[object], T],
        hook: Callable[..., Any],
        *arguments: object,
    ) -> T:
        return await ask(name, may_be, hook, *arguments, until=self._signal)

    async def _poll(self, name: str, queue: GetMessages | None) -> Sequence[Message]:
        return [] if queue is None else await self._ask(name, message_list_or_none, queue)

    async def _key_of(self, model: Model) -> str | None:
        hook, own = self._config.get_api_key, self._began_with
        key = None
        if hook is not None:
            key = await self._ask("get_api_key", key_or_none, hook, model.provider)
        if not key and own is not None and model.shares_keys_with(own):
            key = self._config.api_key
        return key

    def _usage(self) -> Usage:
        answers = (message for message in self._new if isinstance(message, AssistantMessage))
        return sum((answer.usage for answer in answers), Usage())
