"""Running tools without a model: one, several, or a chain in which each feeds the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from agent_core.abort import CancelEvent, signal_from
from agent_core.agent_context import AgentContext
from agent_core.content import ToolCall
from agent_core.events import AgentEvent
from agent_core.loop_config import AgentLoopConfig
from agent_core.messages import AssistantMessage, ToolResultMessage
from agent_core.registry import ToolRegistry
from agent_core.tool_calls import ToolBatch
from agent_core.tools import ToolContext

LinkArguments: TypeAlias = Mapping[str, Any] | Callable[[list[ToolResultMessage]], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class ChainLink:
    """A tool and its arguments, or a function that makes them of the results so far."""

    tool: str
    arguments: LinkArguments


class ToolExecutor:
    """Runs a registry's tools with the checks, caps and guarantees of the agent loop.

    `config` sets the caps and hooks; its model is not used. With a journal the steps are counted
    on, from the config's `first_step`, over all that the executor runs.
    """

    def __init__(self, registry: ToolRegistry, config: AgentLoopConfig | None = None) -> None:
        self._registry = registry
        self._config = config or AgentLoopConfig(None)
        self._next_step = self._config.first_step

    async def execute(
        self, call: ToolCall, context: ToolContext, cancel: CancelEvent | None = None
    ) -> ToolResultMessage:
        """Run one call; what goes wrong is in its result."""
        return (await self.execute_all([call], context, cancel))[0]

    async def execute_all(
        self,
        calls: Sequence[ToolCall],
        context: ToolContext,
        cancel: CancelEvent | None = None,
    ) -> list[ToolResultMessage]:
        """Run calls side by side and return their results in the order of the calls."""
        message = AssistantMessage(list(calls), stop_reason="tool_use")
        config = replace(self._config, tool_context=context)
        tools = AgentContext(tools=self._registry.for_context(context))
        step = self._next_step
        self._next_step += len(calls)
        async with signal_from(cancel) as signal:
            batch = ToolBatch(message, tools, config, signal, _nobody_listens, step)
            return (await batch.run()).messages

    async def chain(
        self,
        links: Sequence[ChainLink],
        context: ToolContext,
        cancel: CancelEvent | None = None,
    ) -> list[ToolResultMessage]:
        """Run tools one after the other, up to the first that fails."""
        results: list[ToolResultMessage] = []
        for number, link in enumerate(links):
            arguments = link.arguments
            made = arguments(results) if callable(arguments) else dict(arguments)
            call = ToolCall(f"link_{number}", link.tool, made)
            results.append(await self.execute(call, context, cancel))
            if results[-1].is_error:
                break
        return results


async def _nobody_listens(event: AgentEvent) -> None:
    pass
