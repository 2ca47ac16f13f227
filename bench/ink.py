"""How long stories take: `python -m bench.ink [STORY...] [--out FILE]`; times in milliseconds.

By default our own story and, where the shared data lie beside the checkout, The Intercept.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from worker.ink.cell import CellLimits, run
from worker.ink.check import check_story
from worker.ink.compiler import compile_story
from worker.ink.engine import InkEngine, Turn
from worker.ink.library import read_story

ROOT = Path(__file__).parents[1]
DEFAULT = (ROOT / "stories" / "last-lamp", ROOT / "../shared/data/ink/TheIntercept.ink")
TURNS = 1000


@dataclass(frozen=True)
class Figures:
    source_bytes: int
    compiled_bytes: int
    compile_ms: float
    compile_in_a_cell_ms: float
    load_ms: float
    turn_ms_median: float
    turn_ms_p99: float
    turn_ms_max: float
    save_bytes_median: int
    save_bytes_max: int
    turn_in_a_cell_ms: float
    check_100_paths_ms: float


def measured(path: Path) -> Figures:
    source = read_story(path)
    compiled = compile_story(source.files, source.main).json
    engine = InkEngine(compiled)
    contained = InkEngine(compiled, contained=True)
    times, saves = played(engine)
    files = {"files": source.files, "main": source.main}
    return Figures(
        source_bytes=sum(len(text.encode()) for text in source.files.values()),
        compiled_bytes=len(compiled.encode()),
        compile_ms=best(lambda: compile_story(source.files, source.main)),
        compile_in_a_cell_ms=best(lambda: run("compile", files, limits=CellLimits())),
        load_ms=best(lambda: InkEngine(compiled)),
        turn_ms_median=round(statistics.median(times), 3),
        turn_ms_p99=round(sorted(times)[int(len(times) * 0.99)], 3),
        turn_ms_max=round(max(times), 3),
        save_bytes_median=int(statistics.median(saves)),
        save_bytes_max=max(saves),
        turn_in_a_cell_ms=best(contained.advance),
        check_100_paths_ms=best(lambda: check_story(source.files, source.main, paths=100), times=1),
    )


def played(engine: InkEngine) -> tuple[list[float], list[int]]:
    """The times and save sizes of TURNS turns, each from a save, over as many games as it takes."""
    times, saves = [], []
    turn: Turn | None = None
    for number in range(TURNS):
        begun = time.perf_counter()
        if turn is None or turn.ended:
            turn = engine.advance(seed=number)
        else:
            turn = engine.advance(turn.save, turn.choices[number % len(turn.choices)].id)
        times.append((time.perf_counter() - begun) * 1000)
        saves.append(len(turn.save.encode()))
    return times, saves


def best(work: Callable[[], object], times: int = 3) -> float:
    def once() -> float:
        begun = time.perf_counter()
        work()
        return (time.perf_counter() - begun) * 1000

    return round(min(once() for _ in range(times)), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stories", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "ink.json")
    options = parser.parse_args()
    stories = options.stories or [path for path in DEFAULT if path.exists()]
    result = {
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "turns": TURNS,
        "stories": {read_story(path).name: asdict(measured(path)) for path in stories},
    }
    text = json.dumps(result, indent=2) + "\n"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
