"""Every error this library raises, in one tree."""

from __future__ import annotations


class AgentCoreError(Exception):
    """The root of the tree."""


class AgentBusyError(AgentCoreError, RuntimeError):
    """A run is going on; the agent takes one at a time."""


class NothingToContinueError(AgentCoreError, RuntimeError):
    """The transcript does not end where a model could answer."""


class MalformedDataError(AgentCoreError, ValueError):
    """Data given to a `from_dict` does not have the shape it should have."""


class DuplicateToolError(AgentCoreError, ValueError):
    """Two tools of one set have the same name."""


class ToolDefinitionError(AgentCoreError, TypeError):
    """A function or schema cannot be made into a tool."""


class ToolArgumentsError(AgentCoreError, ValueError):
    """The arguments of a tool call do not fit the tool; the text is meant for the model."""


class PermissionDeniedError(AgentCoreError, PermissionError):
    """The context does not hold the permission that a tool asks for."""


class UnknownToolError(AgentCoreError, LookupError):
    """No tool of that name is registered."""


class UnknownModelError(AgentCoreError, LookupError):
    """No model fits the name or the need."""


class SkillError(AgentCoreError, ValueError):
    """A skill's folder or file breaks the rules of skills."""


class ScriptExhaustedError(AgentCoreError, AssertionError):
    """A scripted model was asked more often than its script is long."""


class HookError(AgentCoreError):
    """A hook, a converter or a queue raised, or answered what it may not.

    `__cause__` is what it raised.
    """


class AbortedError(AgentCoreError):
    """The abort signal was set while something was awaited."""

    def __init__(self, message: str = "Request was aborted") -> None:
        super().__init__(message)


class JournalError(AgentCoreError):
    """The journal refuses to go on; the run stops at once and nothing more is done."""


class StepMismatchError(JournalError):
    """A replayed step asks for something else than was recorded."""


class ProviderError(AgentCoreError):
    """A model provider failed before or while it answered.

    `status` is the HTTP status where there was one, `retry_after` the wait in seconds that the
    provider asked for, `retryable` whether the same request may succeed later.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.retryable = retryable
