"""`python -m worker.ink FILES...`: check stories and print what was found; exits 1 on errors."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from worker.ink.cell import CellLimits
from worker.ink.check import StoryReport, check_story
from worker.ink.errors import InkError
from worker.ink.library import card_of, read_story


def main(arguments: Sequence[str] | None = None) -> int:
    """Check each story that is named; 0 when all may be offered, else 1."""
    options = _parser().parse_args(arguments)
    limits = CellLimits(
        seconds=options.seconds,
        cpu_seconds=max(1, round(options.seconds)),
        memory_bytes=options.memory << 20,
    )
    verdicts = [
        _checked(path, paths=options.paths, seed=options.seed, limits=limits)
        for path in options.files
    ]
    return 0 if all(verdicts) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m worker.ink", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a story or its folder")
    parser.add_argument("--paths", type=int, default=1000, help="random paths to play (1000)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed plays the same paths")
    parser.add_argument("--seconds", type=float, default=120, help="at most, for one story (120)")
    parser.add_argument("--memory", type=int, default=1024, help="MiB, for one story (1024)")
    return parser


def _checked(path: Path, *, paths: int, seed: int, limits: CellLimits) -> bool:
    try:
        source = read_story(path)
    except InkError as error:
        print(f"{path}: error: {error}")
        return False
    report = check_story(source.files, source.main, paths=paths, seed=seed, limits=limits)
    print(f"{path}: {'ok' if report.ok else 'NOT OK'}")
    _print(source.name, report)
    return report.ok


def _print(name: str, report: StoryReport) -> None:
    for problem in report.problems:
        print(f"  {problem}")
    met = report.met
    if not met.played:
        return
    card = card_of(name, met.tags)
    print(f"  title: {card.title}{f', by {card.author}' if card.author else ''}")
    print(
        f"  {met.played} paths; on the middle one {met.choices_per_path:g} choices"
        f" and {met.words_per_path:g} words"
    )
    _print_counts("endings", met.endings)
    _print_counts("dead ends", met.dead_ends)
    _print_counts("loops", met.loops)


def _print_counts(title: str, counts: Mapping[str, int]) -> None:
    print(f"  {title}: {'' if counts else 'none'}")
    for what, count in sorted(counts.items(), key=lambda pair: -pair[1]):
        print(f"    {count:6} {what}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
