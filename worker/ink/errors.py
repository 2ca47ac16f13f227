"""Everything that can go wrong with a story, as one tree.

InkError
+-- StoryInvalidError        the story's text cannot be compiled or loaded; has `problems`
+-- StoryNotFoundError       no story of that name or hash
+-- StoryNameTakenError      two stories of one name
+-- StoryFailedError         the script itself failed while it was played
+-- BudgetExceededError      a turn took too long or wrote too much
+-- ChoiceNotFoundError      the choice is not among the present ones
+-- PathNotFoundError        the story has no such knot or stitch
+-- VariableInvalidError     no such variable, or not a value that ink can hold
+-- ExternalFailedError      a function given by the caller raised; it is the `__cause__`
+-- ExternalMissingError     the story calls a function that nobody gave
+-- SaveInvalidError         not a save, or another story's
+-- EngineCrashedError       the runtime under the story broke; nothing of the turn is left
+-- CompilerBrokenError      the vendored compiler is not the one this code knows
"""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Problem:
    """One remark on a story's text; `line` counts from 1."""

    severity: Severity
    message: str
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        return f"{place}{self.severity}: {self.message}"


class InkError(Exception):
    """The root of this package's errors."""


class StoryInvalidError(InkError):
    """The story cannot be compiled or loaded; `problems` say where and why."""

    def __init__(self, message: str, problems: tuple[Problem, ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems


class StoryNotFoundError(InkError):
    """There is no story of that name or hash."""


class StoryNameTakenError(InkError):
    """Two stories have one name."""


class StoryFailedError(InkError):
    """The script itself failed while it was played, such as by adding text to a list."""


class BudgetExceededError(InkError):
    """A turn took longer, or wrote more, than it may."""


class ChoiceNotFoundError(InkError):
    """The choice is not among those that the story offers now."""


class PathNotFoundError(InkError):
    """The story has no such knot or stitch."""


class VariableInvalidError(InkError):
    """The story declares no such variable, or ink cannot hold such a value."""


class ExternalFailedError(InkError):
    """A function given by the caller raised, or gave what ink cannot hold."""


class ExternalMissingError(InkError):
    """The story calls an external function that was not given and has no fallback."""


class SaveInvalidError(InkError):
    """The text is not a save of this story."""


class EngineCrashedError(InkError):
    """The runtime under the story broke; nothing of the turn is left."""


class CompilerBrokenError(InkError):
    """The vendored compiler is not the one that this code knows."""
