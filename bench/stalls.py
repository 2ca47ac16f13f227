"""The longest stall of the event loops of processes that run with `bench/probe` on their path."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.probe.sitecustomize import FIGURES, WATCHING

PROBE = Path(__file__).parent / "probe"


@dataclass(frozen=True)
class Stall:
    """Milliseconds by which a loop was late at the worst, of CPU its thread used in one go, and of
    the longest garbage collection.

    A loop that only the machine's other work kept waiting is late, but has used no CPU.
    """

    late: float
    busy: float
    collecting: float


class Stalls:
    """The files in which the processes keep their figures."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    @property
    def env(self) -> dict[str, str]:
        """What a process needs in its environment."""
        return {"PYTHONPATH": str(PROBE), "BENCH_STALLS": str(self._folder)}

    def watch(self) -> None:
        """Begin anew. A process that was not watched notices within `REST` seconds."""
        self._write(FIGURES.pack(WATCHING, 0.0, 0.0, 0.0))

    def rest(self) -> None:
        """Watch no more: it costs the processes time that is not theirs."""
        self._write(bytes(FIGURES.size))

    def _write(self, figures: bytes) -> None:
        for file in self._folder.iterdir():
            with file.open("r+b") as opened:
                opened.write(figures)

    def worst(self, pids: Iterable[int]) -> Stall | None:
        """The worst of these processes; None where none of them keeps figures."""
        files = [file for pid in pids if (file := self._folder / str(pid)).exists()]
        found = [FIGURES.unpack(file.read_bytes())[1:] for file in files]
        if not found:
            return None
        return Stall(*(round(max(column) * 1e3, 1) for column in zip(*found, strict=True)))
