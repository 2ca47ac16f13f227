"""A mutant: the tree with one safeguard taken out, and where to look for who misses it."""

from dataclasses import dataclass
from pathlib import Path


class StaleMutantError(Exception):
    """The text that a mutant replaces is not in its file exactly once."""


@dataclass(frozen=True, slots=True)
class Change:
    """One exact text of a file, and what stands there instead."""

    file: str
    old: str
    new: str

    def changed(self, root: Path) -> str:
        """The file's text with the change in it; raises StaleMutantError."""
        text = (root / self.file).read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise StaleMutantError(f"{self.file} has {text.count(self.old)} times: {self.old}")
        return text.replace(self.old, self.new)


@dataclass(frozen=True, slots=True)
class Mutant:
    """A safeguard that is missing, and where to look for who misses it: the quickest first.

    Args:
        tests: each is a file, after `::` a test, after a blank what `-k` chooses.
    """

    name: str
    changes: tuple[Change, ...]
    tests: tuple[str, ...]
