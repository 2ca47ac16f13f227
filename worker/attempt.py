"""One attempt of a task, from its first event to its last: the only place that judges outcomes."""

import asyncio
from collections.abc import Mapping

import structlog

from agent_core import AbortSignal, JournalError, StepMismatchError, message_from_dict
from shared.encoding import JsonObject
from shared.errors import FiresideError
from shared.records import Claim, Written
from worker.agents import Answer, RegisteredAgent, Resources, RunningTask, TaskFailed
from worker.task_log import TaskLog

log = structlog.get_logger(__name__)

CANCEL_GRACE_SECONDS = 3.0
"""How long an agent may take to end by itself after the user cancelled."""


class Cancelled(FiresideError):
    """The user cancelled the task."""


async def run_attempt(
    claim: Claim,
    task_log: TaskLog,
    agents: Mapping[str, RegisteredAgent],
    *,
    resources: Resources,
    signal: AbortSignal,
    task_seconds: float,
    max_attempts: int,
) -> Written:
    """Run a claimed task to its one terminal event.

    Whatever goes wrong in an agent ends this task as failed and leaves the session as it was.

    Raises:
        AttemptLostError: the attempt may write no more; another one will end the task.
    """
    kind = "task_started" if claim.attempt == 1 else "task_restarted"
    task_log.record(kind, {"attempt": claim.attempt})
    if signal.is_set():
        return await task_log.end("cancelled", data={})
    if claim.attempts > max_attempts:
        message = f"given up after {max_attempts} attempts without a finished step"
        return await task_log.end("dead", data=_error("attempts_exhausted", message))
    try:
        async with asyncio.timeout(task_seconds):
            answer = await _answer(claim, task_log, agents, resources, signal)
    except Cancelled:
        return await task_log.end("cancelled", data={})
    except TaskFailed as failure:
        return await task_log.end("failed", data=_error(failure.code, str(failure)))
    except TimeoutError:
        message = f"not done within {task_seconds:g} seconds"
        return await task_log.end("failed", data=_error("task_timeout", message))
    except StepMismatchError as mismatch:
        log.exception("an agent did not repeat itself", agent=claim.agent, error=str(mismatch))
        return await task_log.end("failed", data=_error("step_mismatch", str(mismatch)))
    except JournalError:
        raise
    except Exception as error:
        log.exception("agent failed", agent=claim.agent, task_id=str(claim.task_id))
        message = f"the agent failed ({type(error).__name__})"
        return await task_log.end("failed", data=_error("agent_failed", message))
    return await _complete(task_log, answer)


async def _complete(task_log: TaskLog, answer: Answer) -> Written:
    view: JsonObject = {"state": answer.public, "choices": list(answer.choices)}
    task_log.record("state_changed", view)
    result: JsonObject = {
        "text": answer.text,
        "messages": task_log.message_ids(),
        "decision": answer.decision,
        **view,
    }
    data: JsonObject = {"result": result, "usage": task_log.usage.to_dict()}
    return await task_log.end("completed", data=data, state=answer.state, view=view)


async def _answer(
    claim: Claim,
    task_log: TaskLog,
    agents: Mapping[str, RegisteredAgent],
    resources: Resources,
    signal: AbortSignal,
) -> Answer:
    agent = agents.get(claim.agent)
    if agent is None:
        raise TaskFailed("agent_unknown", f"this worker has no agent {claim.agent!r}")
    running = asyncio.ensure_future(agent.run(_running_task(claim, task_log, resources, signal)))
    cancelled = asyncio.ensure_future(signal.wait())
    try:
        await asyncio.wait({running, cancelled}, return_when=asyncio.FIRST_COMPLETED)
        if signal.is_set():
            await asyncio.wait({running}, timeout=CANCEL_GRACE_SECONDS)
            raise Cancelled
        return await running
    finally:
        cancelled.cancel()
        await _ended(running)


async def _ended(running: asyncio.Future[Answer]) -> None:
    """See to it that nothing of the agent goes on, whatever it raises on its way out."""
    if not running.done():
        running.cancel()
        await asyncio.wait({running})
    if not running.cancelled() and isinstance(running.exception(), JournalError):
        await running


def _running_task(
    claim: Claim, task_log: TaskLog, resources: Resources, signal: AbortSignal
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
        history=[message_from_dict(message) for message in claim.messages],
        resources=resources,
        emit=task_log,
        journal=task_log,
        signal=signal,
        earlier=max(0, claim.next_message - 1 - len(claim.messages)),
    )


def _error(code: str, message: str) -> JsonObject:
    return {"error": {"code": code, "message": message}}
