"""What is asked of a server under load: how many sessions, how many turns, and which model."""

from dataclasses import dataclass


class UnknownNameError(ValueError):
    """A target or a workload that there is none of."""


@dataclass(frozen=True)
class Workload:
    """Sessions that each take so many turns, one after the other.

    `ttft` and `duration` are the model's seconds to its first chunk and from there to its last;
    `spread` the seconds over which sessions begin (None: the length of one reply, so that sessions
    are in all of its phases).
    """

    sessions: int
    turns: int
    ttft: float = 0.2
    chunks: int = 50
    duration: float = 1.0
    spread: float | None = None

    @property
    def reply_seconds(self) -> float:
        """How long the model alone takes."""
        return self.ttft + self.duration

    @property
    def expected(self) -> str:
        """The text that the scripted model streams."""
        return "".join(f"tok{number} " for number in range(self.chunks))


WORKLOADS = {
    "A": Workload(50, 4),
    "B": Workload(200, 2),
    "C": Workload(20, 20, ttft=0.0, duration=0.0),
    "S": Workload(4, 2),
}

ONE_TURN = Workload(1, 1, ttft=0.0, duration=0.0)


def warm_up(sessions: int) -> Workload:
    """What goes before a load of so many sessions."""
    return Workload(min(sessions, 50), 3, ttft=0.0, duration=0.0)


def chosen(names: str) -> list[str]:
    """The workloads of a list with commas; raises UnknownNameError."""
    found = [name for name in names.replace(",", " ").split() if name]
    unknown = [name for name in found if name not in WORKLOADS]
    if unknown or not found:
        raise UnknownNameError(
            f"no workload {', '.join(unknown) or names!r}; there are {', '.join(WORKLOADS)}"
        )
    return found
