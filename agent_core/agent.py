"""The agent: a transcript, its queues and listeners, around the stateless loop."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, get_args

from agent_core.abort import AbortSignal
from agent_core.agent_context import AgentContext
from agent_core.content import ImageContent, TextContent
from agent_core.errors import AgentBusyError, MalformedDataError, NothingToContinueError
from agent_core.events import (
    AgentEnd,
    AgentEvent,
    MessageEnd,
    MessageStart,
    MessageUpdate,
    ToolExecutionEnd,
    ToolExecutionStart,
    TurnStart,
)
from agent_core.fields import items, json_object, maybe, one_of, require
from agent_core.hooks import GetMessages
from agent_core.interruption import ends_this_task
from agent_core.loop import run_loop
from agent_core.loop_config import AgentLoopConfig
from agent_core.messages import AssistantMessage, Message, UserMessage, message_from_dict
from agent_core.models import Model
from agent_core.options import AgentOptions
from agent_core.queues import MessageQueue, QueueMode
from agent_core.router import ModelRouter
from agent_core.streaming import THINKING_LEVELS, ThinkingLevel
from agent_core.tools import AgentTool, check_names

logger = logging.getLogger(__name__)

Listener: TypeAlias = Callable[[AgentEvent], Awaitable[None] | None]

_MODES: tuple[QueueMode, ...] = get_args(QueueMode)


@dataclass(slots=True)
class AgentState:
    """What an agent is and where it stands.

    `stream_message` is the answer that is being given, `pending_tool_calls` the ids of the
    calls that run, `error` what ended the last run early.
    """

    system_prompt: str = ""
    model: Model | None = None
    thinking_level: ThinkingLevel = "off"
    tools: list[AgentTool] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    is_streaming: bool = False
    stream_message: AssistantMessage | None = None
    pending_tool_calls: set[str] = field(default_factory=set)
    error: str | None = None
    model_router: ModelRouter | None = None


class Agent:
    """An agent takes one prompt at a time and tells its listeners what happens."""

    __slots__ = (
        "_follow_ups",
        "_idle",
        "_listeners",
        "_next_step",
        "_options",
        "_signal",
        "_steering",
        "state",
    )

    def __init__(self, options: AgentOptions | None = None) -> None:
        self._options = options or AgentOptions()
        initial = self._options.initial_state
        self.state = AgentState(
            system_prompt=initial.get("system_prompt", ""),
            model=initial.get("model"),
            thinking_level=initial.get("thinking_level", "off"),
            tools=list(initial.get("tools", ())),
            messages=list(initial.get("messages", ())),
            model_router=self._options.model_router,
        )
        check_names(self.state.tools)
        self._steering = MessageQueue(self._options.steering_mode)
        self._follow_ups = MessageQueue(self._options.follow_up_mode)
        self._listeners: tuple[Listener, ...] = ()
        self._signal: AbortSignal | None = None
        self._idle: asyncio.Event | None = None
        self._next_step = self._options.first_step

    # Running

    async def prompt(
        self,
        message: str | Message | list[Message],
        images: Sequence[ImageContent] = (),
    ) -> None:
        """Say something and run until the agent has nothing more to do.

        Images go with a text only. Raises AgentBusyError, and what a journal raises.
        """
        if self._signal is not None:
            raise AgentBusyError(
                "Agent is already processing a prompt. Use steer() or follow_up() to queue "
                "messages, or wait for completion."
            )
        await self._run(_as_messages(message, images))

    async def continue_(self) -> None:
        """Run on from the transcript as it is, or else from what is queued.

        Raises AgentBusyError, NothingToContinueError, and what a journal raises.
        """
        self._check_idle("continuing")
        if not self.state.messages:
            raise NothingToContinueError("No messages to continue from")
        last = self.state.messages[-1]
        if not isinstance(last, AssistantMessage) or last.tool_calls:
            await self._run([])
            return
        steering = self._steering.take()
        queued = steering or self._follow_ups.take()
        if not queued:
            raise NothingToContinueError("Cannot continue from message role: assistant")
        await self._run(queued, poll_steering=not steering)

    def abort(self) -> None:
        """Ask the run to end: no further model request is made, tools have a moment to stop."""
        if self._signal is not None:
            self._signal.set()

    async def wait_for_idle(self) -> None:
        """Return when no run is going on and all listeners have been told."""
        if self._signal is not None:
            self._idle = self._idle or asyncio.Event()
            await self._idle.wait()

    def reset(self) -> None:
        """Forget the transcript, the queues and the last error; raises AgentBusyError."""
        self._check_idle("resetting")
        self.state.messages = []
        self.state.error = None
        self.clear_all_queues()

    def _check_idle(self, doing: str) -> None:
        if self._signal is not None:
            raise AgentBusyError(
                f"Agent is already processing. Wait for completion before {doing}."
            )

    async def _run(self, prompts: Sequence[Message], *, poll_steering: bool = True) -> None:
        state = self.state
        signal = self._signal = AbortSignal()
        state.is_streaming = True
        state.error = None
        context = AgentContext(state.system_prompt, state.messages, state.tools)
        try:
            await run_loop(
                prompts,
                context,
                self._config(),
                self._tell,
                signal,
                self._options.stream_fn,
                poll_steering=poll_steering,
            )
        finally:
            state.is_streaming = False
            state.stream_message = None
            state.pending_tool_calls.clear()
            self._signal = None
            if self._idle is not None:
                self._idle.set()
                self._idle = None

    def _config(self) -> AgentLoopConfig:
        options = self._options
        return AgentLoopConfig(
            self.state.model,
            options.convert_to_llm,
            transform_context=options.transform_context,
            get_api_key=options.get_api_key,
            get_steering_messages=_either(self._steering, options.get_steering_messages),
            has_steering_messages=lambda: bool(self._steering),
            get_follow_up_messages=_either(self._follow_ups, options.get_follow_up_messages),
            before_tool_call=options.before_tool_call,
            after_tool_call=options.after_tool_call,
            prepare_next_turn=options.prepare_next_turn,
            finish_turn=options.finish_turn,
            steering_policy=options.steering_policy,
            tool_execution=options.tool_execution,
            max_parallel_tools=options.max_parallel_tools,
            max_turns=options.max_turns,
            tool_timeout=options.tool_timeout,
            abort_grace=options.abort_grace,
            tool_context=options.tool_context,
            journal=options.journal,
            first_step=self._next_step,
            reasoning=self.state.thinking_level,
            thinking_budgets=options.thinking_budgets,
            session_id=options.session_id,
            model_router=self.state.model_router,
            task=options.task,
            api_key=options.api_key,
            temperature=options.temperature,
            max_tokens=options.max_tokens,
            max_retry_delay=options.max_retry_delay,
            enable_credit_tracking=options.enable_credit_tracking,
        )

    # Events

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` for each event, after the state has changed; returns the way out.

        Listeners are awaited one after the other, and the run waits for them. One that raises
        is logged, and the run goes on.
        """
        heard = partial(listener)  # one of its own: a listener may be subscribed twice
        self._listeners = (*self._listeners, heard)

        def unsubscribe() -> None:
            self._listeners = tuple(each for each in self._listeners if each is not heard)

        return unsubscribe

    async def _tell(self, event: AgentEvent) -> None:
        self._apply(event)
        for listener in self._listeners:
            try:
                told = listener(event)
                if told is not None and inspect.isawaitable(told):
                    await told
            except BaseException as error:
                if ends_this_task(error):
                    raise
                logger.exception("a listener failed at %s", event.type)

    def _apply(self, event: AgentEvent) -> None:
        state = self.state
        if isinstance(event, MessageStart):
            if isinstance(event.message, AssistantMessage):
                state.stream_message = event.message
        elif isinstance(event, MessageUpdate):
            state.stream_message = event.message
        elif isinstance(event, MessageEnd):
            state.stream_message = None
            state.messages.append(event.message)
        elif isinstance(event, TurnStart):
            self._count(event.step)
        elif isinstance(event, ToolExecutionStart):
            self._count(event.step)
            state.pending_tool_calls.add(event.tool_call_id)
        elif isinstance(event, ToolExecutionEnd):
            state.pending_tool_calls.discard(event.tool_call_id)
        elif isinstance(event, AgentEnd):
            state.error = event.error

    def _count(self, step: int | None) -> None:
        # The next run goes on behind the steps of this one: a journal knows each number once.
        if step is not None:
            self._next_step = step + 1

    # Queues

    def steer(self, message: str | Message) -> None:
        """Have a message read before the next model call of the run."""
        self._steering.put(_as_message(message))

    def follow_up(self, message: str | Message) -> None:
        """Have a message read when the run would otherwise end."""
        self._follow_ups.put(_as_message(message))

    def clear_steering_queue(self) -> None:
        """Forget the steering messages that wait."""
        self._steering.clear()

    def clear_follow_up_queue(self) -> None:
        """Forget the follow-ups that wait."""
        self._follow_ups.clear()

    def clear_all_queues(self) -> None:
        """Forget everything that waits."""
        self.clear_steering_queue()
        self.clear_follow_up_queue()

    def has_queued_messages(self) -> bool:
        """Whether anything waits."""
        return bool(self._steering) or bool(self._follow_ups)

    # Settings; they count from the next run on, the queues' modes at once

    @property
    def signal(self) -> AbortSignal | None:
        """The abort signal of the run that is going on."""
        return self._signal

    def set_system_prompt(self, system_prompt: str) -> None:
        """Change the system prompt."""
        self.state.system_prompt = system_prompt

    def set_model(self, model: Model) -> None:
        """Change the model."""
        self.state.model = model

    def set_thinking_level(self, level: ThinkingLevel) -> None:
        """Change how much the model may think."""
        self.state.thinking_level = level

    def set_tools(self, tools: Iterable[AgentTool]) -> None:
        """Change the tools; raises DuplicateToolError."""
        tools = list(tools)
        check_names(tools)
        self.state.tools = tools

    def set_steering_mode(self, mode: QueueMode) -> None:
        """Change how many steering messages are read at once."""
        self._steering.mode = mode

    def set_follow_up_mode(self, mode: QueueMode) -> None:
        """Change how many follow-ups are read at once."""
        self._follow_ups.mode = mode

    # The transcript

    def append_message(self, message: Message) -> None:
        """Add a message without running."""
        self.state.messages.append(message)

    def replace_messages(self, messages: Iterable[Message]) -> None:
        """Put another transcript in place."""
        self.state.messages = list(messages)

    def clear_messages(self) -> None:
        """Forget the transcript."""
        self.state.messages = []

    # As JSON

    def to_dict(self) -> dict[str, Any]:
        """Return the whole agent as JSON: tools by their names, no functions, no keys."""
        state = self.state
        return {
            "system_prompt": state.system_prompt,
            "model": None if state.model is None else state.model.to_dict(),
            "thinking_level": state.thinking_level,
            "tools": [tool.name for tool in state.tools],
            "messages": [message.to_dict() for message in state.messages],
            "error": state.error,
            "steering_mode": self._steering.mode,
            "follow_up_mode": self._follow_ups.mode,
            "steering_queue": [message.to_dict() for message in self._steering.peek()],
            "follow_up_queue": [message.to_dict() for message in self._follow_ups.peek()],
        }

    @classmethod
    def from_dict(cls, data: object, options: AgentOptions | None = None) -> Agent:
        """Rebuild an agent; `options` brings what is code, such as the tools of those names.

        A model in the options' initial state goes before the stored one. Raises
        MalformedDataError, also for a tool that the options do not have.
        """
        fields = json_object(data, "an agent")
        agent = cls(options)
        state = agent.state
        state.system_prompt = require(fields, "system_prompt", str)
        stored_model = maybe(fields, "model", dict)
        if state.model is None and stored_model is not None:
            state.model = Model.from_dict(stored_model)
        state.thinking_level = one_of(fields, "thinking_level", THINKING_LEVELS, "off")
        state.tools = _tools_named(items(fields, "tools", str), state.tools)
        state.messages = items(fields, "messages", message_from_dict)
        state.error = maybe(fields, "error", str)
        agent.set_steering_mode(one_of(fields, "steering_mode", _MODES, "one-at-a-time"))
        agent.set_follow_up_mode(one_of(fields, "follow_up_mode", _MODES, "one-at-a-time"))
        for message in items(fields, "steering_queue", message_from_dict):
            agent.steer(message)
        for message in items(fields, "follow_up_queue", message_from_dict):
            agent.follow_up(message)
        return agent


def _either(queue: MessageQueue, elsewhere: GetMessages | None) -> GetMessages:
    """Give what the agent's own queue has next, or else what was said elsewhere."""
    if elsewhere is None:
        return queue.take
    return lambda: queue.take() or elsewhere()


def _tools_named(names: Sequence[str], tools: Sequence[AgentTool]) -> list[AgentTool]:
    by_name = {tool.name: tool for tool in tools}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise MalformedDataError(f"the options have no tool named {', '.join(missing)}")
    return [by_name[name] for name in names]


def _as_message(message: str | Message) -> Message:
    if isinstance(message, str):
        return UserMessage(message)
    # Anything else in the transcript would fail every later request.
    if isinstance(message, Message):
        return message
    raise TypeError(f"{type(message).__name__} is no message")


def _as_messages(
    message: str | Message | list[Message], images: Sequence[ImageContent]
) -> list[Message]:
    if isinstance(message, str):
        return [UserMessage([TextContent(message), *images] if images else message)]
    if images:
        raise TypeError("images go with a text; put them into the message itself")
    messages = message if isinstance(message, list) else [message]
    if not messages:
        raise ValueError("there is nothing to prompt with")
    return [_as_message(each) for each in messages]
