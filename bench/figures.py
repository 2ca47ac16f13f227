"""`python -m bench.figures`: the figures of the documents, in one go; for a quiet machine.

Each step is a program of its own and may fail without the others; what it measured stands in
bench/results and, where DOCS is given and the documents have markers for it, between these: for the
comparison, growth, capacity and goals. Other tables of the documents are written by hand from the
files. What needs something that is not in the project, a file of conversations (`--data`), another
checkout (`--against`) or other servers (`--peers`), is left out without it, and `--plan` says so.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deploy.local.server import ROOT

QUIET = 0.5  # load of the machine above which times are not worth much


@dataclass(frozen=True)
class Step:
    """A program with its arguments, and about how many seconds it takes on two shared cores.

    `documented` says that it takes `--docs`, `needs` which option of ours it can't do without; what
    is given there comes at the end of its arguments. `note` tells what else is in it.
    """

    module: str
    arguments: tuple[str, ...]
    seconds: float
    documented: bool = False
    needs: str = ""
    note: str = ""

    @property
    def line(self) -> str:
        """As it would be typed."""
        return " ".join(("python -m", self.module, *self.arguments))

    def given(self, options: argparse.Namespace) -> "Step | None":
        """With what it needs; None where that was not given."""
        if not self.needs:
            return self
        value = getattr(options, self.needs)
        if value is None:
            return None
        return replace(self, arguments=(*self.arguments, f"--{self.needs}", str(value.absolute())))


def _kept(module: str, *arguments: str, seconds: float, needs: str = "", end: str = "json") -> Step:
    """A step that is told where its figures are kept."""
    file = f"bench/results/{module.removeprefix('bench.')}.{end}"
    return Step(module, (*arguments, "--out", file), seconds, needs=needs)


OURS = "direct,fireside,fireside-vectors,fireside-litellm,naive"
PEERS = "langgraph,aegra,agno,agno-queue,adk"
REPEATED = ("--repeat", "3", "--long", "100")
COMPARISON = Step("bench", ("--targets", OURS, *REPEATED), 860, documented=True)
STEPS = (
    COMPARISON,
    Step(
        "bench.growth",
        ("--batches", "2"),
        560,
        documented=True,
        note="with idle sockets and tasks in flight",
    ),
    _kept("bench.memory", seconds=240, needs="data"),
    _kept("bench.cost", seconds=600, needs="data"),
    _kept("bench.memory_scale", "--crowd", "2000", "--beside-fleet", "32", seconds=240),
    _kept("bench.cues", seconds=30),
    _kept("bench.ledger", seconds=300),
    _kept("bench.budgets", seconds=60),
    _kept("bench.durability", seconds=180),
    _kept("bench.statements", seconds=240, needs="against"),
    _kept("bench.agent_cache", seconds=180, end="jsonl"),
    _kept("bench.homes", seconds=180),
    _kept("bench.rolling", seconds=60),
    _kept("bench.agent_core", seconds=30),
    _kept("bench.streaming", seconds=60),
    _kept("bench.story", seconds=120),
    _kept("bench.ink", seconds=30),
    _kept("bench.referee", "--no-local", seconds=60),
    Step("bench.capacity", (), 20, documented=True),
    Step("bench.goals", (), 1, documented=True),
)
"""In their order: the last two read what the others have written."""


def with_peers(folder: Path) -> Step:
    """The comparison with the servers whose environments are in this folder."""
    arguments = ("--targets", f"{OURS},{PEERS}", *REPEATED, "--peers", str(folder))
    return replace(COMPARISON, arguments=arguments, seconds=COMPARISON.seconds + 1300)


def chosen(options: argparse.Namespace) -> tuple[list[Step], list[Step]]:
    """The steps to run, and those that lack what they need."""
    steps = [with_peers(options.peers), *STEPS[1:]] if options.peers else list(STEPS)
    steps = [step for step in steps if not options.only or step.module in options.only]
    steps = [step for step in steps if step.module not in options.without]
    found = [(step, step.given(options)) for step in steps]
    return [given for _, given in found if given], [step for step, given in found if not given]


def run(steps: Sequence[Step], docs: Path | None) -> int:
    """One after the other; how many failed."""
    failed = 0
    for step in steps:
        say(step.line)
        argv = [sys.executable, "-m", step.module, *step.arguments]
        argv += ["--docs", str(docs)] if docs is not None and step.documented else []
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
    parser.add_argument("--data", type=Path, help="conversations, LoCoMo format")
    parser.add_argument("--against", type=Path, help="another checkout, for bench.statements")
    parser.add_argument("--only", choices=names, action="append", help="steps to run (all)")
    parser.add_argument(
        "--without", choices=names, action="append", default=[], help="steps to leave out"
    )
    parser.add_argument("--plan", action="store_true", help="only say what would be run")
    options = parser.parse_args(argv)
    steps, lacking = chosen(options)
    minutes = sum(step.seconds for step in steps) / 60
    until = time.strftime("%H:%M", time.localtime(time.time() + minutes * 60))
    say(f"{len(steps)} steps, about {minutes:.0f} minutes, until {until}")
    for step in lacking:
        say(f"left out: {step.module} needs --{step.needs}")
    if options.plan:
        for step in steps:
            say(f"{step.seconds:5.0f} s  {step.line}{step.note and f'  ({step.note})'}")
        return 0
    if (load := os.getloadavg()[0]) > QUIET:
        say(f"the machine is not quiet (load {load:.1f}): times will be worse than they could be")
    return int(run(steps, options.docs) > 0)


if __name__ == "__main__":
    sys.exit(main())
