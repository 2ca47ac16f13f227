"""Running the tool calls of one answer: each call gets exactly one result, whatever happens.

A call is prepared (found, permitted, arguments checked, the hook asked), executed (journalled,
timed, abortable), and finished (the hook asked, the result recorded). Calls are prepared one by
one and executed side by side, unless the batch is sequential.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

from agent_core.abort import AbortSignal, UntilAbort, signal_after
from agent_core.agent_context import AgentContext
from agent_core.arguments import validated_arguments
from agent_core.asking import ask, block_or_none, override_or_none
from agent_core.content import ToolCall
from agent_core.errors import AbortedError, HookError, ToolArgumentsError
from agent_core.events import (
    Emit,
    MessageEnd,
    MessageStart,
    ToolExecutionEnd,
    ToolExecutionStart,
    ToolExecutionUpdate,
)
from agent_core.hooks import AfterToolCall, BeforeToolCall, ToolResultOverride
from agent_core.interruption import ends_this_task
from agent_core.journal import StepRequest, tool_step_hash
from agent_core.loop_config import AgentLoopConfig
from agent_core.messages import AssistantMessage, ToolResultMessage
from agent_core.partial_json import whole_number
from agent_core.redaction import error_text
from agent_core.results import AgentToolResult
from agent_core.tools import AgentTool, ToolContext

logger = logging.getLogger(__name__)

ABORTED = "Operation aborted"
SKIPPED = "Skipped due to queued user message."
UNKNOWN_OUTCOME = (
    "The outcome of this call is unknown: an earlier attempt was interrupted and may or may not "
    "have taken effect. It was not run again. Check before you repeat it."
)


@dataclass(slots=True)
class _Call:
    """A call on its way through the batch; `step` is its number in the journal."""

    call: ToolCall
    step: int
    tool: AgentTool | None = None
    params: Any = None
    result: AgentToolResult | None = None
    duration: float = 0.0


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The results in the order of the calls; `terminate` if all of them ask for it."""

    messages: list[ToolResultMessage]
    terminate: bool


_Report: TypeAlias = ToolExecutionUpdate | _Call | BaseException


class ToolBatch:
    """The tool calls of one assistant message."""

    def __init__(
        self,
        message: AssistantMessage,
        context: AgentContext,
        config: AgentLoopConfig,
        signal: AbortSignal,
        emit: Emit,
        first_step: int,
    ) -> None:
        self._message = message
        self._context = context
        self._config = config
        self._signal = signal
        self._emit = emit
        self._tools = {tool.name: tool for tool in context.tools}
        self._slots = asyncio.Semaphore(max(1, config.max_parallel_tools))
        self._calls = [
            _Call(call, first_step + index) for index, call in enumerate(message.tool_calls)
        ]

    async def run(self) -> BatchResult:
        """Run the calls and emit their events and messages."""
        groups = [[call] for call in self._calls] if self._is_sequential() else [self._calls]
        messages: list[ToolResultMessage] = []
        for group in groups:
            await self._run_group(group)
            messages.extend([await self._tell_result(call) for call in group])
        terminate = bool(self._calls) and all(_result_of(call).terminate for call in self._calls)
        return BatchResult(messages, terminate)

    def _is_sequential(self) -> bool:
        if self._config.tool_execution == "sequential":
            return True
        called = (self._tools.get(call.call.name) for call in self._calls)
        return any(tool is not None and tool.execution_mode == "sequential" for tool in called)

    async def _run_group(self, group: Sequence[_Call]) -> None:
        ready = []
        for call in group:
            await self._emit(
                ToolExecutionStart(call.call.id, call.call.name, call.call.arguments, call.step)
            )
            call.result = await self._prepare(call)
            if call.result is None:
                ready.append(call)
            else:
                await self._tell_end(call)
        if ready:
            await self._execute_all(ready)

    async def _tell_end(self, call: _Call) -> None:
        result = _result_of(call)
        await self._emit(
            ToolExecutionEnd(
                call.call.id, call.call.name, result, result.is_error, call.duration, call.step
            )
        )

    async def _tell_result(self, call: _Call) -> ToolResultMessage:
        result = _result_of(call)
        message = ToolResultMessage(
            call.call.id, call.call.name, result.content, result.details, result.is_error
        )
        await self._emit(MessageStart(message, call.step))
        await self._emit(MessageEnd(message, call.step))
        return message

    # Prepare

    async def _prepare(self, call: _Call) -> AgentToolResult | None:
        """Return why the call is not to run, or None."""
        refusal = self._refusal(call.call)
        if refusal is not None:
            return AgentToolResult.error(refusal)
        tool = self._tools.get(call.call.name)
        if tool is None:
            return AgentToolResult.error(f"Tool {call.call.name} not found")
        if not self._config.tool_context.allows(tool):
            return AgentToolResult.error(f"Tool {call.call.name} is not permitted here")
        try:
            call.params = validated_arguments(tool, call.call)
        except ToolArgumentsError as error:
            return AgentToolResult.error(str(error))
        except BaseException as error:
            if ends_this_task(error):
                raise
            text = f'The arguments of tool "{tool.name}" could not be checked: {error_text(error)}'
            return AgentToolResult.error(text)
        call.tool = tool
        return await self._ask_before(call)

    def _refusal(self, call: ToolCall) -> str | None:
        if self._message.stop_reason == "length":
            return (
                f'Tool call "{call.name}" was not executed: the response hit the output token '
                "limit, so its arguments may be truncated. Re-issue the tool call with complete "
                "arguments."
            )
        if self._message.stop_reason == "error":
            return f'Tool call "{call.name}" was not executed: the response ended with an error.'
        if self._message.stop_reason == "aborted" or self._signal.is_set():
            return ABORTED
        return None

    async def _ask_before(self, call: _Call) -> AgentToolResult | None:
        hook = self._config.before_tool_call
        if hook is None:
            return None
        asked = BeforeToolCall(call.call, call.params, self._context)
        try:
            block = await ask(
                "before_tool_call", block_or_none, hook, asked, self._signal, until=self._signal
            )
        except AbortedError:
            return AgentToolResult.error(ABORTED)
        except HookError as error:  # a call that cannot be judged is not run
            return AgentToolResult.error(str(error))
        if block is None:
            return None
        result = AgentToolResult.error(block.reason or "Tool execution was blocked")
        result.terminate = block.terminate
        return result

    # Execute

    async def _execute_all(self, calls: Sequence[_Call]) -> None:
        reports: asyncio.Queue[_Report] = asyncio.Queue()
        supervisors = [asyncio.create_task(self._supervise(call, reports)) for call in calls]
        for supervisor in supervisors:
            supervisor.add_done_callback(partial(_report_failure, reports))
        try:
            running = len(supervisors)
            while running:
                report = await reports.get()
                if isinstance(report, BaseException):
                    raise report
                if isinstance(report, _Call):
                    running -= 1
                    await self._tell_end(report)
                else:
                    await self._emit(report)
        finally:
            for supervisor in supervisors:
                supervisor.cancel()
            await asyncio.wait(supervisors)

    async def _supervise(self, call: _Call, reports: asyncio.Queue[_Report]) -> None:
        try:
            with UntilAbort(self._signal):
                await self._slots.acquire()
        except AbortedError:
            call.result = AgentToolResult.error(ABORTED)
        else:
            try:
                call.result = await self._execute(call, reports)
            finally:
                self._slots.release()
        reports.put_nowait(call)

    async def _execute(self, call: _Call, reports: asyncio.Queue[_Report]) -> AgentToolResult:
        if self._signal.is_set():
            return AgentToolResult.error(ABORTED)
        journal = self._config.journal
        if journal is None:
            return self._skipped() or await self._run_tool(call, None, reports)
        tool = _tool_of(call)
        step = StepRequest(
            call.step, "tool", call.call.name, tool_step_hash(call.call), tool.effect
        )
        start = await journal.begin(step)
        if start.outcome == "done":
            return AgentToolResult.from_dict(start.output)
        if start.outcome == "unknown":
            return AgentToolResult.error(UNKNOWN_OUTCOME)
        # Asked only now: what the journal knows of the call goes before what is said meanwhile.
        skipped = self._skipped()
        if skipped is not None:
            await journal.finish(step, skipped.to_dict())
            return skipped
        result = await self._run_tool(call, start.idempotency_key, reports)
        # What an abort cut short is not the call's result: the next attempt runs it again.
        if not (self._signal.is_set() and result.is_error):
            await journal.finish(step, result.to_dict())
        return result

    def _skipped(self) -> AgentToolResult | None:
        """Return the result of a call that a waiting message keeps from running, or None."""
        has_steering = self._config.has_steering_messages
        if self._config.steering_policy != "skip" or has_steering is None:
            return None
        try:
            steered = has_steering()
        except Exception as error:  # noqa: BLE001 - a call that cannot be judged is not run
            return AgentToolResult.error(error_text(error))
        return AgentToolResult.error(SKIPPED) if steered else None

    async def _run_tool(
        self, call: _Call, idempotency_key: str | None, reports: asyncio.Queue[_Report]
    ) -> AgentToolResult:
        began = time.perf_counter()
        context = self._config.tool_context.for_call(self._signal, idempotency_key)
        updates = _Updates(call, reports)
        try:
            ran = await self._watched(call, context, updates)
            return ran if ran is not None else AgentToolResult.error(ABORTED)
        finally:
            updates.close()
            call.duration = time.perf_counter() - began

    async def _watched(
        self, call: _Call, context: ToolContext, updates: _Updates
    ) -> AgentToolResult | None:
        tool = _tool_of(call)
        limit = self._config.tool_timeout if tool.timeout is None else tool.timeout
        grace = self._config.abort_grace
        task = asyncio.ensure_future(_invoke(tool, call, context, updates))
        task.add_done_callback(_retrieve)
        try:
            try:
                with UntilAbort(self._signal):
                    done, _ = await asyncio.wait({task}, timeout=limit)
                cut = f'Tool "{tool.name}" timed out after {limit:g} seconds' if not done else None
            except AbortedError:
                done, _ = await asyncio.wait({task}, timeout=grace)
                cut = ABORTED if not done else None
        finally:
            # Also when we are cancelled. A tool that does not heed its cancellation is left
            # behind after the grace: nothing may hang.
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=grace)
        if cut is not None:
            result = AgentToolResult.error(cut)
            return result if cut is ABORTED else await self._ask_after(call, result)
        if task.cancelled():
            stopped = ABORTED if self._signal.is_set() else f'Tool "{tool.name}" was cancelled'
            return AgentToolResult.error(stopped)
        return await self._ask_after(call, task.result())

    # Finish

    async def _ask_after(self, call: _Call, result: AgentToolResult) -> AgentToolResult:
        hook = self._config.after_tool_call
        if hook is None:
            return result
        asked = AfterToolCall(call.call, call.params, result, result.is_error, self._context)
        # The hook may be what keeps a result from being seen, so it is asked after an abort, too,
        # but then it has no longer than a tool has.
        grace = signal_after(self._config.abort_grace)
        try:
            with grace if self._signal.is_set() else nullcontext(self._signal) as signal:
                override = await ask(
                    "after_tool_call", override_or_none, hook, asked, self._signal, until=signal
                )
        except AbortedError:
            return AgentToolResult.error(ABORTED)
        except HookError as error:  # a result that cannot be judged is an error
            return AgentToolResult.error(str(error))
        return _checked(call.call.name, _overridden(result, override))


class _Updates:
    """What a tool calls to tell how far it is; after its end nobody listens."""

    def __init__(self, call: _Call, reports: asyncio.Queue[_Report]) -> None:
        self._call = call
        self._reports = reports
        self._open = True

    def __call__(self, partial: object) -> None:
        if not isinstance(partial, AgentToolResult) or not partial.is_well_formed():
            raise TypeError("an update is an AgentToolResult")
        if self._open:
            call = self._call.call
            # The tool may go on with its own.
            content = [replace(block) for block in partial.content]
            told = _checked(call.name, replace(partial, content=content))
            self._reports.put_nowait(
                ToolExecutionUpdate(call.id, call.name, call.arguments, told, self._call.step)
            )

    def close(self) -> None:
        self._open = False


async def _invoke(
    tool: AgentTool, call: _Call, context: ToolContext, updates: _Updates
) -> AgentToolResult:
    try:
        result = await tool.execute(call.call.id, call.params, context, updates)
    except AbortedError:
        return AgentToolResult.error(ABORTED)
    except (asyncio.CancelledError, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001 - one of the two edges: tools are other people's
        # Also what is no Exception: a panic in an extension, or sys.exit(), which would end the
        # event loop, and every other run in it.
        logger.info("tool %s raised %s", tool.name, type(error).__name__)
        return AgentToolResult.error(error_text(error))
    return _checked(tool.name, result)


def _checked(name: str, result: object) -> AgentToolResult:
    if not isinstance(result, AgentToolResult):
        kind = type(result).__name__
        return AgentToolResult.error(f'Tool "{name}" returned {kind}, not an AgentToolResult')
    if not result.is_well_formed():
        return AgentToolResult.error(f'Tool "{name}" returned content that is not text or images')
    result.is_error, result.terminate = bool(result.is_error), bool(result.terminate)
    if result.details is not None:
        try:
            result.details = _plain(result.details)
        except Exception as error:  # noqa: BLE001 - whatever is in them is other people's
            text = f'Tool "{name}" returned details that are no JSON: {error_text(error)}'
            return AgentToolResult.error(text)
    return result


def _plain(details: Any) -> Any:
    """Return details as JSON: they are stored, and one odd value must not cost the transcript."""
    text: str | bytes
    try:
        text = json.dumps(details, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        from pydantic_core import to_json  # noqa: PLC0415 - heavy and rarely needed

        text = to_json(details, fallback=str, inf_nan_mode="null")
    return json.loads(text, parse_int=_number)


def _number(digits: str) -> int | str:
    """A whole number, or its digits where it has more than 64 bits."""
    try:
        return whole_number(digits)
    except ValueError:
        return digits


def _overridden(
    result: AgentToolResult, override: AgentToolResult | ToolResultOverride | None
) -> AgentToolResult:
    if override is None:
        return result
    if isinstance(override, AgentToolResult):
        return override
    changes = {
        name: value
        for name in ("content", "details", "is_error", "terminate")
        if (value := getattr(override, name)) is not None
    }
    return replace(result, **changes)


def _result_of(call: _Call) -> AgentToolResult:
    if call.result is None:
        raise RuntimeError(f"call {call.call.id} has no result")
    return call.result


def _tool_of(call: _Call) -> AgentTool:
    if call.tool is None:
        raise RuntimeError(f"call {call.call.id} was not prepared")
    return call.tool


def _report_failure(reports: asyncio.Queue[_Report], supervisor: asyncio.Task[None]) -> None:
    # The journal's refusal, or a cancellation; the run would wait for a silent end for ever.
    if supervisor.cancelled():
        reports.put_nowait(asyncio.CancelledError())
    elif (error := supervisor.exception()) is not None:
        reports.put_nowait(error)


def _retrieve(task: asyncio.Future[AgentToolResult]) -> None:
    # A tool that was left behind may still raise; nobody else would take notice.
    if not task.cancelled():
        task.exception()
