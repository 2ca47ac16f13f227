"""One attempt of a task, from its first event to its last: the only place that judges outcomes."""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial

import structlog

from agent_core import AbortSignal, JournalError, Message, StepMismatchError, message_from_dict
from shared.encoding import JsonObject, dumps
from shared.errors import BudgetSpent, FiresideError, StoreUnavailable
from shared.records import Claim, Written
from worker.agents import Answer, RegisteredAgent, Resources, RunningTask, TaskFailed
from worker.deadlines import Deadlines
from worker.metering import Meter
from worker.task_log import TaskLog
from worker.task_store import AttemptLostError
from worker.transcript import transcript_of

log = structlog.get_logger(__name__)

CANCEL_GRACE_SECONDS = 1.0
"""How long an agent may take to end by itself after the user cancelled."""

STOP_SECONDS = 1.0
"""How long an agent that was cancelled may take to clean up; then it is left behind."""


class Cancelled(FiresideError):
    """The user cancelled the task."""


class AgentLeftError(Exception):
    """An agent ended in a way that would have ended more than its task."""


async def run_attempt(
    claim: Claim,
    task_log: TaskLog,
    agents: Mapping[str, RegisteredAgent],
    *,
    resources: Resources,
    signal: AbortSignal,
    task_seconds: float,
    max_attempts: int,
    history: Sequence[Message] | None = None,
) -> Written:
    """Run a claimed task to its one terminal event.

    Whatever goes wrong in an agent ends this task as failed and leaves the session as it was.

    Args:
        history: the newest messages of the branch; without it, those that the claim has read.

    Raises:
        AttemptLostError: the attempt may write no more; another one will end the task.
    """
    kind = "task_started" if claim.attempt == 1 else "task_restarted"
    task_log.record(kind, {"attempt": claim.attempt})
    if signal.is_set():
        return await task_log.end("cancelled", data={})
    if claim.attempts > max_attempts:
        log.error("task is dead", agent=claim.agent, task_id=str(claim.task_id))
        message = _exhausted(claim, max_attempts)
        return await task_log.end("dead", data=_error("attempts_exhausted", message))
    meter = Meter(claim, task_log, resources.tariff)
    try:
        deadlines = Deadlines()
        resources = resources.for_user(claim.user_id, deadlines.stopped, meter)
        async with deadlines.within(task_seconds):
            if history is None:
                history = transcript_of(claim, None).history
            task = _running_task(claim, history, task_log, resources, signal, deadlines)
            answer = await _answer(claim.agent, agents, task)
            view: JsonObject = {"state": answer.public, "choices": list(answer.choices)}
            result = {"text": answer.text, "decision": answer.decision, **view}
            dumps([answer.state, result])  # what is no JSON is the agent's failure, not Postgres's
    except Cancelled:
        return await task_log.end("cancelled", data={})
    except TaskFailed as failure:
        code = BudgetSpent.code if meter.refused else failure.code
        return await _fail(claim, task_log, code, str(failure))
    except TimeoutError:
        message = f"not done within {task_seconds:g} seconds"
        return await _fail(claim, task_log, "task_timeout", message)
    except StepMismatchError as mismatch:
        log.exception("an agent did not repeat itself", agent=claim.agent, error=str(mismatch))
        return await _fail(claim, task_log, "step_mismatch", str(mismatch))
    except AttemptLostError:
        raise
    except StoreUnavailable as error:
        # An agent read something (a story) while Postgres was away: not its fault, nor the task's.
        task_log.lose(str(error))
        raise AttemptLostError(str(error)) from error
    except Exception as error:
        log.exception("agent failed", agent=claim.agent, task_id=str(claim.task_id))
        message = f"the agent failed ({type(error).__name__})"
        return await _fail(claim, task_log, "agent_failed", message)
    result["messages"] = task_log.message_ids()
    data: JsonObject = {"result": result, "usage": task_log.usage.to_dict()}
    return await task_log.end(
        "completed",
        data=data,
        state=answer.state,
        view=view,
        lasting=answer.lasting,
    )


async def _fail(claim: Claim, task_log: TaskLog, code: str, message: str) -> Written:
    """End a task as failed. The log has its code alone: what an agent says may quote a user."""
    written = await task_log.end("failed", data=_error(code, message))
    log.info(
        "task failed",
        agent=claim.agent,
        session_id=str(claim.fence.session_id),
        task_id=str(claim.task_id),
        code=code,
    )
    return written


async def _answer(name: str, agents: Mapping[str, RegisteredAgent], task: RunningTask) -> Answer:
    agent, signal = agents.get(name), task.signal
    if agent is None:
        raise TaskFailed("agent_unknown", f"no worker has the agent {name!r}")
    running = asyncio.ensure_future(_run_agent(agent, task))
    cancelled = asyncio.ensure_future(signal.wait())
    try:
        await asyncio.wait({running, cancelled}, return_when=asyncio.FIRST_COMPLETED)
        if signal.is_set():
            await asyncio.wait({running}, timeout=CANCEL_GRACE_SECONDS)
            raise Cancelled
        if running.cancelled():
            # Nobody asked for it: were it raised as it is, it would look like a lost attempt.
            raise AgentLeftError("the agent cancelled itself")
        return running.result()
    finally:
        cancelled.cancel()
        await _ended(running)


async def _run_agent(agent: RegisteredAgent, task: RunningTask) -> Answer:
    try:
        return await agent.run(task)
    except SystemExit as error:
        # It would end the loop, and with it every other session of this process.
        raise AgentLeftError("the agent asked the process to exit") from error


async def _ended(running: asyncio.Future[Answer]) -> None:
    """See to it that nothing of the agent goes on, whatever it raises on its way out.

    One that blocks its cancellation is left behind: it can write no more once the attempt is
    over, and must keep neither its session nor the end of the process waiting.
    """
    running.add_done_callback(_retrieve)
    if not running.done():
        running.cancel()
        await asyncio.wait({running}, timeout=STOP_SECONDS)
    if not running.done():
        log.error("an agent does not let itself be cancelled", agent=repr(running))
    elif not running.cancelled() and isinstance(running.exception(), JournalError):
        running.result()


def _retrieve(running: asyncio.Future[Answer]) -> None:
    """An exception that nobody looks at would be reported as lost when it is collected."""
    if not running.cancelled():
        running.exception()


def _running_task(
    claim: Claim,
    history: Sequence[Message],
    task_log: TaskLog,
    resources: Resources,
    signal: AbortSignal,
    deadlines: Deadlines,
) -> RunningTask:
    return RunningTask(
        user_id=claim.user_id,
        session_id=claim.fence.session_id,
        task_id=claim.task_id,
        action=claim.action,
        story=claim.story,
        story_hash=claim.story_hash,
        character=claim.character,
        metadata=claim.metadata,
        state=claim.state,
        view=claim.view,
        history=history,
        resources=resources,
        emit=task_log,
        journal=task_log,
        signal=signal,
        earlier=max(0, claim.next_message - 1 - len(history)),
        steering=partial(task_log.take_in, "steer"),
        follow_ups=partial(task_log.take_in, "steer", "follow_up"),
        deadlines=deadlines,
        told=[message_from_dict(message) for message in task_log.told],
        economy=claim.economy,
    )


def _exhausted(claim: Claim, max_attempts: int) -> str:
    """Why a task is given up, with what the journal knows of the last attempt."""
    begun = [step for step in claim.steps if step.status == "started"]
    last = f"{begun[-1].kind} {begun[-1].name} (step {begun[-1].no})" if begun else "no step"
    return (
        f"given up after {max_attempts} attempts without a finished step; "
        f"the last one had begun {last}"
    )


def _error(code: str, message: str) -> JsonObject:
    return {"error": {"code": code, "message": message}}
