"""Throws: what the tags of a choice ask for, and what a story is told of how one fell."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from worker.ink.machine import InkValue

DIE: Final = 20


@dataclass(frozen=True, slots=True)
class Check:
    """A deed that takes luck: a die of twenty sides and the variable `stat` against `dc`."""

    stat: str | None
    dc: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"stat": self.stat, "dc": self.dc}


@dataclass(frozen=True, slots=True)
class Throw:
    """A check that was thrown."""

    check: Check
    roll: int
    modifier: float

    @property
    def total(self) -> float:
        """The die and the modifier."""
        return self.roll + self.modifier

    @property
    def success(self) -> bool:
        """Whether it is enough."""
        return self.total >= self.check.dc

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a task's decision."""
        return {
            **self.check.to_dict(),
            "roll": self.roll,
            "modifier": self.modifier,
            "total": self.total,
            "success": self.success,
        }

    def variables(self, declared: Collection[str]) -> dict[str, InkValue]:
        """What a story is told of it, in those of three variables that it declares."""
        told: dict[str, InkValue] = {
            "check_roll": self.roll,
            "check_total": self.total,
            "check_success": self.success,
        }
        return {name: value for name, value in told.items() if name in declared}


def check_in(tags: Iterable[str]) -> Check | None:
    """The check that a choice's tags ask for, such as `dc:12` and `stat:wits`.

    Raises ValueError where the difficulty is no whole number: such a choice takes no throw.
    """
    said = dict(tag.split(":", 1) for tag in reversed(tuple(tags)) if ":" in tag)
    named = {name.strip().lower(): text.strip() for name, text in said.items()}
    if "dc" not in named:
        return None
    try:
        return Check(named.get("stat") or None, int(named["dc"]))
    except ValueError:
        raise ValueError(named["dc"]) from None


def help_of(stat: str | None, variables: Mapping[str, InkValue]) -> float | None:
    """What a variable adds to a throw; None where there is no such number, which adds nothing."""
    value = None if stat is None else variables.get(stat)
    return value if is_number(value) else None


def is_number(value: InkValue) -> TypeGuard[int | float]:
    """Whether a variable can help a throw."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
