"""`python -m bench`: our server beside others, in one run.

All chosen targets are started once, each with stores of its own, and share one scripted model.
Then each workload runs on one target after the other, and all that again for each round; while one
is measured the others are idle. In a last round the loops of our own processes are watched, for
their longest stalls. Medians of the rounds go to OUT, one JSON row a target and workload, and as
tables and plots into docs/performance.md.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import uvloop

from bench import flames, plots, report, targets, workloads
from bench.load import STALL_FIGURES, failed, get_ready, idle, measure, parts
from bench.processes import ended
from bench.targets import Ground, Running, Target
from bench.workloads import WORKLOADS, UnknownNameError
from deploy.local.model import ScriptedModelProcess
from deploy.models.control import ScriptedModel

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"


@dataclass
class Entrant:
    """A target that takes part; `reason` says why it cannot, `boot` what its start was like.

    `folder` has its stores and logs.
    """

    target: Target
    folder: Path
    running: Running | None = None
    reason: str = ""
    boot: dict[str, Any] = field(default_factory=dict)


@dataclass
class Comparison:
    """One run: what takes part, and the rows so far, by target and workload."""

    options: argparse.Namespace
    model: ScriptedModelProcess
    entrants: list[Entrant] = field(default_factory=list)
    rows: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)
    stalls: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def enter(self, target: Target, ground: Ground, names: Sequence[str]) -> None:
        """Start a target and warm it up for these workloads; one that fails stays away from the
        rounds.
        """
        sessions = max(WORKLOADS[name].sessions for name in names)
        entrant = Entrant(target, ground.folder)
        self.entrants.append(entrant)
        say(f"starting {target.name}")
        try:
            entrant.running = target.start(ground)
            model = ScriptedModel(self.model.url)
            ready = uvloop.run(get_ready(entrant.running, model, sessions))
            entrant.boot = {"boot_s": round(ready, 1)}
            entrant.boot |= uvloop.run(idle(entrant.running, self.options.idle))
        except Exception as error:  # noqa: BLE001 - another's failure is a row of the result
            entrant.running = None
            entrant.reason = f"not started: {type(error).__name__}: {error}"[:300]
            say(f"{target.name} {entrant.reason}")

    def round(self, names: Sequence[str]) -> None:
        """Each workload on each target, but for those that take too long to repeat."""
        for name in names:
            for entrant in self.entrants:
                if self.took_long(entrant, name):
                    continue
                row = {**self.row(entrant, name), **entrant.boot}
                self.rows.setdefault((name, entrant.target.name), []).append(row)
                say(_line(row))

    def took_long(self, entrant: Entrant, name: str) -> bool:
        """Whether a round took a target longer than rounds that are repeated may take."""
        rows = self.rows.get((name, entrant.target.name), [])
        return any(row.get("wall_s", 0.0) > self.options.long for row in rows)

    def watched_round(self, names: Sequence[str]) -> None:
        """Each workload on our own servers once more, for the stalls of their loops alone."""
        for name in names:
            for entrant in self.entrants:
                if entrant.running is not None and entrant.running.stalls is not None:
                    row = self.row(entrant, name, watched=True)
                    found = {key: row[key] for key in STALL_FIGURES if key in row}
                    self.stalls[name, entrant.target.name] = found
                    say(f"{name} {entrant.target.name}: {found}")

    def row(self, entrant: Entrant, name: str, *, watched: bool = False) -> dict[str, Any]:
        """One measurement; an error of any kind is its row."""
        load = WORKLOADS[name]
        if entrant.running is None:
            return failed(entrant.target, name, load, entrant.reason)
        try:
            row = uvloop.run(
                measure(
                    entrant.target,
                    name,
                    load,
                    entrant.running,
                    self.model,
                    limit=self.options.limit,
                    watched=watched,
                )
            )
        except Exception as error:  # noqa: BLE001 - as above
            row = failed(entrant.target, name, load, f"{type(error).__name__}: {error}"[:300])
        self.take_out(entrant, name)
        return row

    def take_out(self, entrant: Entrant, during: str) -> None:
        """End the part of a target of which a process has ended by itself; its logs are kept."""
        assert entrant.running is not None
        of = [part for part, pids in parts(entrant.running).items() if ended(pids)]
        if not of:
            return
        kept = self.options.out.parent / "ended" / entrant.target.name
        kept.mkdir(parents=True, exist_ok=True)
        for log in entrant.folder.glob("*.log"):
            shutil.copy(log, kept)
        entrant.running = None
        entrant.reason = f"{' and '.join(of)} ended during {during}; the logs: {kept}"
        say(f"{entrant.target.name}: {entrant.reason}")

    def profile(self, name: str) -> None:
        """One more round, whose figures do not count, with flame graphs of our processes."""
        load = replace(WORKLOADS[name], turns=max(2, WORKLOADS[name].turns))
        seconds = max(5.0, load.turns * load.reply_seconds)
        for entrant in self.entrants:
            if entrant.running is None or entrant.running.stalls is None:
                continue
            folder = self.options.out.parent / "profile" / f"{entrant.target.name}-{name}"
            with flames.recorded(entrant.running.app, folder, seconds=seconds) as lines:
                self.row(entrant, name)
            for line in lines:
                say(line)

    def merged(self) -> list[dict[str, Any]]:
        """The medians, by workload and in the order of the targets."""
        return [
            report.medians(rows) | self.stalls.get(place, {}) for place, rows in self.rows.items()
        ]


def say(line: str) -> None:
    """Tell whoever waits."""
    print(f"bench: {line}", flush=True)


def _line(row: dict[str, Any]) -> str:
    head = f"{row['workload']} {row['target']}: {row['ok']} of {row['turns']}"
    if not row["ok"]:
        return f"{head}; {row['err_sample']}"
    return (
        f"{head}, {row['turns_s']} turns/s, {row['cpu_ms_turn']} ms of CPU a turn, "
        f"first delta over {row['ttft_over_ms']}, others {row['others_cores']} cores"
    )


def run(options: argparse.Namespace, entering: Sequence[Target], names: Sequence[str]) -> int:
    """The whole comparison; 1 where a target had nothing but errors or did not live to its end."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)  # Postgres may have to run as somebody else
        model = stack.enter_context(ScriptedModelProcess(log=folder / "model.log"))
        comparison = Comparison(options, model)
        for target in entering:
            place = folder / target.name
            place.mkdir()
            place.chmod(0o755)
            ground = Ground(place, stack, model, options.workers, options.peers)
            comparison.enter(target, ground, names)
        for number in range(options.repeat):
            say(f"round {number + 1} of {options.repeat}")
            comparison.round(names)
        say("how long our loops stall")
        comparison.watched_round(names)
        rows = comparison.merged()
        if options.profile:
            comparison.profile(names[0])
    report.write_rows(options.out, rows)
    say(f"rows: {options.out}")
    if options.docs is not None:
        write_documents(options.docs, rows)
    return int(any(not row["ok"] for row in rows) or any(e.reason for e in comparison.entrants))


def write_documents(docs: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Put the tables and the plots into `performance.md` of this folder."""
    images = docs / "images"
    images.mkdir(exist_ok=True)
    (images / "throughput.svg").write_text(plots.throughput(rows))
    (images / "cpu.svg").write_text(plots.cpu(rows))
    pictures = "![Throughput](images/throughput.svg)\n\n![CPU a turn](images/cpu.svg)"
    at = max(row["at"] for row in rows)
    all_rounds = {row["rounds"] for row in rows}
    rounds = max(all_rounds)
    medians = "One round" if rounds == 1 else f"Medians of {rounds} interleaved rounds"
    if len(all_rounds) > 1:
        medians += ", of fewer where a round took too long to be repeated (its row says how many)"
    caption = f"{medians}, {at}."
    body = f"{caption}\n\n{report.comparison(rows)}\n{pictures}"
    report.replace_in_file(docs / "performance.md", "comparison", body)
    say(f"tables and plots: {docs / 'performance.md'}")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--targets", default="fireside,naive", help=", ".join(targets.TARGETS))
    parser.add_argument("--workloads", default="A,B,C", help=", ".join(WORKLOADS))
    parser.add_argument("--repeat", type=int, default=3, help="rounds (3)")
    parser.add_argument("--workers", type=int, default=1, help="our worker processes (1)")
    parser.add_argument(
        "--peers",
        type=Path,
        default=os.environ.get("PEERS") or None,
        help="folder with the environments of other servers",
    )
    parser.add_argument("--idle", type=float, default=3.0, help="seconds of idleness measured (3)")
    parser.add_argument("--limit", type=float, default=200.0, help="seconds a turn may take (200)")
    parser.add_argument(
        "--long",
        type=float,
        default=float("inf"),
        help="seconds of a workload beyond which a target's round is not repeated (no such)",
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "latest.jsonl")
    parser.add_argument("--docs", type=Path, help="folder whose performance.md gets the tables")
    parser.add_argument("--profile", action="store_true", help="keep flame graphs beside OUT")
    options = parser.parse_args(argv)
    if options.repeat < 1 or options.workers < 1:
        parser.error("--repeat and --workers must be at least 1")
    if options.idle < 0 or options.limit <= 0:
        parser.error("--idle and --limit are seconds")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line and run; 2 where it asks for what there is not."""
    options = _arguments(argv)
    try:
        wanted, names = targets.chosen(options.targets), workloads.chosen(options.workloads)
    except UnknownNameError as error:
        sys.stderr.write(f"bench: {error}\n")
        return 2
    entering = []
    for target in wanted:
        if reason := targets.missing(target, options.peers):
            say(f"skipped: {reason}")
        else:
            entering.append(target)
    if not entering:
        sys.stderr.write("bench: none of these targets can be started here\n")
        return 2
    return run(options, entering, names)


if __name__ == "__main__":
    sys.exit(main())
