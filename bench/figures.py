"""`python -m bench.figures`: all figures of the documents, in one go; for a quiet machine.

Each step is a program of its own and may fail without the others; what it measured stands in
bench/results and, where DOCS is given, between the markers of the documents.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.local.server import ROOT

QUIET = 0.5  # load of the machine above which times are not worth much


@dataclass(frozen=True)
class Step:
    """A program with its arguments, and the seconds that it took on two shared cores."""

    module: str
    arguments: tuple[str, ...]
    seconds: float

    @property
    def line(self) -> str:
        """As it would be typed."""
        return " ".join(("python -m", self.module, *self.arguments))


OURS = "direct,fireside,fireside-litellm,naive"
PEERS = "langgraph,aegra,agno,agno-queue,adk"
REPEATED = ("--repeat", "3", "--long", "100")
COMPARISON = Step("bench", ("--targets", OURS, *REPEATED), 660)
GROWTH = Step("bench.growth", ("--batches", "2"), 500)
CAPACITY = Step("bench.capacity", (), 20)
GOALS = Step("bench.goals", (), 1)
STEPS = (COMPARISON, GROWTH, CAPACITY, GOALS)


def with_peers(folder: Path) -> Step:
    """The comparison with the servers whose environments are in this folder."""
    return Step(
        "bench", ("--targets", f"{OURS},{PEERS}", *REPEATED, "--peers", str(folder)), 660 + 1300
    )


def run(steps: Sequence[Step], docs: Path | None) -> int:
    """One after the other; how many failed."""
    failed = 0
    for step in steps:
        say(step.line)
        argv = [sys.executable, "-m", step.module, *step.arguments]
        argv += ["--docs", str(docs)] if docs is not None else []
        began = time.monotonic()
        code = subprocess.run(argv, cwd=ROOT, check=False).returncode
        took = time.monotonic() - began
        failed += code != 0
        say(f"{step.module}: {took:.0f} s (expected {step.seconds:.0f}), exit code {code}")
    return failed


def say(line: str) -> None:
    """Tell whoever waits."""
    print(f"figures: {line}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Say how long it will take, and run; 1 where a step failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.figures", description=__doc__)
    names = [step.module for step in STEPS]
    parser.add_argument("--docs", type=Path, help="folder of the documents to write into")
    parser.add_argument("--peers", type=Path, help="folder of other servers' environments")
    parser.add_argument("--only", choices=names, action="append", help="steps to run (all)")
    parser.add_argument("--plan", action="store_true", help="only say what would be run")
    options = parser.parse_args(argv)
    steps = [with_peers(options.peers), *STEPS[1:]] if options.peers else list(STEPS)
    steps = [step for step in steps if not options.only or step.module in options.only]
    minutes = sum(step.seconds for step in steps) / 60
    until = time.strftime("%H:%M", time.localtime(time.time() + minutes * 60))
    say(f"{len(steps)} steps, about {minutes:.0f} minutes, until {until}")
    if options.plan:
        for step in steps:
            say(f"{step.seconds:5.0f} s  {step.line}")
        return 0
    if (load := os.getloadavg()[0]) > QUIET:
        say(f"the machine is not quiet (load {load:.1f}): times will be worse than they could be")
    return int(run(steps, options.docs) > 0)


if __name__ == "__main__":
    sys.exit(main())
