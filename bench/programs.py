"""What the programs of this folder share: a folder of their own, and where a row goes."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def own_folder() -> Iterator[Path]:
    """An empty folder that is gone afterwards; Postgres may have to read it as somebody else."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def no_stories(folder: Path) -> str:
    """An empty folder of stories in the folder, for servers that play none: a worker that finds one
    which nobody has checked takes seconds of CPU for it."""
    empty = folder / "stories"
    empty.mkdir()
    return str(empty)


def tell(row: dict[str, Any], out: Path | None) -> None:
    """Print a row as one line, and keep it where that was asked for."""
    print(json.dumps(row))
    if out is not None:
        out.write_text(json.dumps(row, indent=1) + "\n")
