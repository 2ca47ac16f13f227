"""What the examples share: a command line with a usage line, and an end that tells of an error."""

import sys
from pathlib import Path

from agent_core import Agent


def arguments(*names: str) -> list[str]:
    """What the command line gives under these names; without it, a usage line and exit code 1."""
    given = sys.argv[1:]
    if len(given) != len(names):
        sys.exit(" ".join(["usage: python -m", f"examples.{Path(sys.argv[0]).stem}", *names]))
    return given


def finish(agent: Agent) -> None:
    """End with the error of the last run and exit code 1, where it had one."""
    if agent.state.error is not None:
        sys.exit(f"error: {agent.state.error}")
